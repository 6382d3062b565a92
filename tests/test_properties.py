"""Equivalences that hold for any batch, whatever the loss computes.

Rows are of length 1, short or long, around the origin or far from it, and labels may be any integers.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from bench.regimes import Regime
from fusedloss import reference
from tests.grid import DRAWN, FULL, METRICS, WITH_CLASSES

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Distances near 0 have a relative error of 1e-3 or so (they are roots of differences), in eager as here.
CLOSE = dict(rtol=1e-5, atol=1e-5)
LOSSES = [
    fusedloss.pairwise_contrastive_loss,
    fusedloss.batch_hard_triplet_loss,
    fusedloss.batch_all_triplet_loss,
    fusedloss.batch_semihard_triplet_loss,
]


class AnyBatch(NamedTuple):
    x: torch.Tensor
    labels: torch.Tensor
    regime: Regime
    scale: float  # of logits: a temperature is its inverse

    def on(self, device):
        return self.x.to(device), self.labels.to(device)


LENGTHS = st.sampled_from([1.0, 1e-6, 1e-3, 1e3])
OFFSETS = st.sampled_from([0.0, 10.0, 1000.0])
SCALES = st.sampled_from([4.0, 100.0, 1000.0])
LABELS = [
    lambda N: st.lists(st.integers(0, 4), min_size=N, max_size=N),
    lambda N: st.lists(st.sampled_from([-(2**63), 2**63 - 1, 2**32, 0, -1]), min_size=N, max_size=N),
    lambda N: st.just([-7] * N),
    lambda N: st.just([*range(-3, N - 3)]),
]


@st.composite
def batches(draw):
    N, D, seed = draw(st.integers(2, 17)), draw(st.integers(2, 9)), draw(st.integers(0, 2**31))
    labels = draw(draw(st.sampled_from(LABELS))(N))
    regime = Regime(draw(LENGTHS), draw(OFFSETS))
    DRAWN.append(seed)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(seed))
    return AnyBatch(regime.length * (x + regime.offset), torch.tensor(labels), regime, draw(SCALES))


def on_any_batch(test):
    """Few examples, the same in every run, since the interpreter is slow; the backend fixture suits all of them."""
    options = dict(derandomize=True, max_examples=24 if FULL else 4, deadline=None, database=None)
    return settings(**options, suppress_health_check=[HealthCheck.function_scoped_fixture])(
        given(any_batch=batches())(test)
    )


def close(x, metric, tolerance=1e-5):
    """Compare relative to the largest distance, since hinges are differences of two distances."""
    largest = reference.pairwise_distance(x.double(), x.double(), metric).max().item()
    return dict(rtol=tolerance, atol=tolerance * max(1.0, largest))


def of_logits(*logits):
    """Compare relative to the largest logit."""
    return dict(rtol=1e-5, atol=1e-5 * max(1.0, *(z.abs().max().item() for z in logits)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_the_order_of_rows_does_not_matter(backend, device, loss, metric, any_batch):
    x, labels = any_batch.on(device)
    order = torch.arange(len(x) - 1, -1, -1, device=device)
    terms = loss(x, labels, metric=metric, reduction="none")
    found = loss(x[order], labels[order], metric=metric, reduction="none")
    torch.testing.assert_close(found, terms[order], **close(x, metric))


@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_the_names_of_classes_do_not_matter(backend, device, loss, any_batch):
    x, labels = any_batch.on(device)
    found, want = (loss(x, names, reduction="none") for names in (7 - 3 * labels, labels))  # modulo 2^64 one to one
    torch.testing.assert_close(found, want, **close(x, "sqeuclidean"))


@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_sum_is_the_sum_of_none(backend, device, loss, any_batch):
    x, labels = any_batch.on(device)
    torch.testing.assert_close(loss(x, labels, reduction="sum"), loss(x, labels, reduction="none").sum())


@pytest.mark.parametrize("metric", METRICS)
@on_any_batch
def test_a_copy_of_the_batch_as_references_adds_only_the_pairs_of_a_row_with_itself(backend, device, metric, any_batch):
    x, labels = any_batch.on(device)
    pos_margin = 0.5 * min(1.0, any_batch.regime.length)  # below it the pairs (i, i) cost nothing
    options = dict(metric=metric, reduction="none", pos_margin=pos_margin)
    alone = fusedloss.pairwise_contrastive_loss(x, labels, **options)
    found = fusedloss.pairwise_contrastive_loss(x, labels, x, labels, **options)
    torch.testing.assert_close(found, alone, **close(x, metric))


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "manhattan"])
@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_a_translation_does_not_matter(backend, device, loss, metric, any_batch):
    x, labels = any_batch.on(device)
    shift = 8 * any_batch.regime.length * (torch.arange(x.shape[1], device=device) % 3 - 1.0)
    moved = x + shift  # rounded
    terms = loss(moved - shift, labels, metric=metric, reduction="none")
    found = loss(moved, labels, metric=metric, reduction="none")
    torch.testing.assert_close(found, terms, **close(x, metric))


@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_the_lengths_of_rows_do_not_matter_to_cosine(backend, device, loss, any_batch):
    x, labels = any_batch.on(device)
    lengths = 1.0 + torch.arange(len(x), device=device)[:, None]
    terms = loss(x, labels, metric="cosine", reduction="none")
    torch.testing.assert_close(loss(lengths * x, labels, metric="cosine", reduction="none"), terms, **CLOSE)


@on_any_batch
def test_sqeuclidean_of_unit_rows_is_twice_cosine(backend, device, any_batch):
    x, labels = any_batch.on(device)
    x = F.normalize(x)
    found = fusedloss.batch_hard_triplet_loss(x, labels, metric="sqeuclidean", margin=0.4)
    torch.testing.assert_close(
        found, 2 * fusedloss.batch_hard_triplet_loss(x, labels, metric="cosine", margin=0.2), **CLOSE
    )


@pytest.mark.parametrize("metric", METRICS)
@on_any_batch
def test_batch_hard_is_the_triplet_loss_of_hardest_pairs(backend, device, metric, any_batch):
    x, labels = any_batch.on(device)
    found = fusedloss.hardest_pairs(x, labels, metric=metric)
    valid = (found.positive_index >= 0) & (found.negative_index >= 0)
    triplets = x[valid], x[found.positive_index[valid]], x[found.negative_index[valid]]
    given_triplets = fusedloss.triplet_margin_loss(*triplets, margin=0.3, metric=metric, eps=0.0)
    mined = fusedloss.batch_hard_triplet_loss(x, labels, margin=0.3, metric=metric)
    torch.testing.assert_close(mined, given_triplets, **close(x, metric, 1e-6))


def with_classes(any_batch, device):
    """Rows, one row a class and targets: some classes may have none."""
    x, labels = any_batch.on(device)
    return x, torch.randn(5, x.shape[1], generator=torch.Generator().manual_seed(len(x))).to(device), labels % 5


@pytest.mark.parametrize("loss", WITH_CLASSES)
@on_any_batch
def test_the_order_of_classes_does_not_matter(backend, device, loss, any_batch):
    x, rows, target = with_classes(any_batch, device)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    found = loss(x, rows[order], order.argsort()[target])
    torch.testing.assert_close(found, loss(x, rows, target), **of_logits(x @ rows.T, x.square().sum(1)))


@on_any_batch
def test_linear_losses_are_those_of_the_logits(backend, device, any_batch):
    x, rows, target = with_classes(any_batch, device)
    bias = torch.arange(5.0, device=device)
    logits = x @ rows.T + bias
    found = fusedloss.linear_cross_entropy_loss(x, rows, target, bias=bias, label_smoothing=0.1)
    want = fusedloss.cross_entropy_loss(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(found, want, **of_logits(logits))
    found = fusedloss.linear_cross_entropy_loss(x, rows, target, bias=bias, gamma=1.5, ignore_index=2)
    want = fusedloss.focal_loss(logits, target, gamma=1.5, ignore_index=2)
    torch.testing.assert_close(found, want, **of_logits(logits))


@on_any_batch
def test_without_a_margin_all_losses_on_the_sphere_are_one(backend, device, any_batch):
    given = with_classes(any_batch, device)
    scale = any_batch.scale
    want, near = fusedloss.normalized_softmax_loss(*given, temperature=1 / scale), of_logits(torch.tensor(scale))
    for loss in (fusedloss.arcface_loss, fusedloss.cosface_loss):
        torch.testing.assert_close(loss(*given, margin=0.0, scale=scale), want, **near)
    torch.testing.assert_close(fusedloss.proxy_nca_loss(*given, scale=scale / 2), want, **near)


@pytest.mark.parametrize("loss", [fusedloss.cross_entropy_loss, fusedloss.focal_loss])
@on_any_batch
def test_a_number_added_to_all_logits_of_a_row_does_not_matter(backend, device, loss, any_batch):
    x, target = any_batch.on(device)
    z, target = x.repeat(1, 5), target % 5 * x.shape[1]
    shifts = torch.arange(len(z), device=device)[:, None] - 7.0
    torch.testing.assert_close(loss(z + shifts, target), loss(z, target), **of_logits(z))


@on_any_batch
def test_an_index_is_the_probability_one(backend, device, any_batch):
    x, target = any_batch.on(device)
    z, target = x.repeat(1, 5), target % 5 * x.shape[1]
    certain = F.one_hot(target, z.shape[1]).to(z.dtype)
    for options in ({}, dict(label_smoothing=0.2), dict(weight=z.new_ones(z.shape[1]))):
        found = fusedloss.cross_entropy_loss(z, certain, **options)
        torch.testing.assert_close(found, fusedloss.cross_entropy_loss(z, target, **options), **of_logits(z))
