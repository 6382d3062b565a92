"""Memory is linear: forward and backward of a batch take less than one N x N matrix, in a process of their own."""

import pytest
import torch

import fusedloss
from bench.workloads import CASES
from fusedloss.tools.measure import batch, measure, training_step
from tests.grid import in_full

N = 4096


@pytest.mark.parametrize("n", [1024, *in_full(N)])
@pytest.mark.parametrize("case", ["linear cross entropy, 100,000 classes", *in_full("arcface, 100,000 classes")])
def test_a_hundred_thousand_classes_take_less_memory_than_their_logits(case, n):
    """For 4,096 rows these take 1.5 GiB, where the limit is less than 1 GiB."""
    found = measure("bench.workloads:in_batch", case=case, implementation="fusedloss", n=n, d=128, repeats=1)
    assert 0 < found.peak_bytes < min(2**30, n * 100_000 * 4)


@pytest.mark.parametrize(
    "case", ["batch-hard", "all triplets, 32 classes", "supcon", *in_full("contrastive", "semi-hard")]
)
def test_a_batch_takes_less_memory_than_its_distances(case):
    assert case in CASES
    found = measure("bench.workloads:in_batch", case=case, implementation="fusedloss", n=N, d=128, repeats=1)
    assert 0 < found.peak_bytes < 4 * N * N


def semihard_against(references, n, classes):
    """Maker: the rows of a batch against many more references."""
    torch.set_num_threads(2)  # each has a tile
    (x, labels), (y, y_labels) = (batch(size, 4, classes, "cpu", "float32") for size in (n, references))

    def loss(x, labels):
        return fusedloss.batch_semihard_triplet_loss(x, labels, y.detach(), y_labels)

    return training_step(loss, x, labels)


@pytest.mark.parametrize("classes", [32, *in_full(4)])
def test_semihard_takes_no_row_of_all_references_for_each_of_a_block(classes):
    """Counts per reference, and places for each positive, once took 2.5 and 6 times as much memory as the distances."""
    n, references = 128, 131_072
    maker = "tests.test_memory:semihard_against"
    found = measure(maker, n=n, references=references, classes=classes, repeats=1)
    assert 0 < found.peak_bytes < 4 * n * references
