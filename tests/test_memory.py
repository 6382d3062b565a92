"""Memory is linear: forward and backward of a batch take less than one N x N matrix, in a process of their own."""

import pytest

from bench.workloads import CASES
from fusedloss.tools.measure import measure

N = 4096


@pytest.mark.parametrize("case", ["linear cross entropy, 100,000 classes", "arcface, 100,000 classes"])
def test_a_hundred_thousand_classes_take_less_than_a_gibibyte(case):
    """Their logits alone take 1.5."""
    found = measure("bench.workloads:in_batch", case=case, implementation="fusedloss", n=N, d=128, repeats=1)
    assert 0 < found.peak_bytes < 2**30


@pytest.mark.parametrize("case", ["contrastive", "batch-hard", "all triplets, 32 classes", "semi-hard", "supcon"])
def test_a_batch_takes_less_memory_than_its_distances(case):
    assert case in CASES
    found = measure("bench.workloads:in_batch", case=case, implementation="fusedloss", n=N, d=128, repeats=1)
    assert 0 < found.peak_bytes < 4 * N * N
