"""Equivalences that hold for any batch, whatever the loss computes."""

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from tests.grid import METRICS

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


@st.composite
def batches(draw):
    N, D = draw(st.integers(2, 17)), draw(st.integers(2, 9))
    labels = draw(st.lists(st.integers(0, 4), min_size=N, max_size=N))
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    return x, torch.tensor(labels)


def on_any_batch(test):
    """Few examples, the same in every run, since the interpreter is slow; the backend fixture suits all of them."""
    options = dict(derandomize=True, max_examples=4, deadline=None, database=None)
    return settings(**options, suppress_health_check=[HealthCheck.function_scoped_fixture])(
        given(any_batch=batches())(test)
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_the_order_of_rows_does_not_matter(backend, device, loss, metric, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    order = torch.arange(len(x) - 1, -1, -1, device=device)
    terms = loss(x, labels, metric=metric, reduction="none")
    torch.testing.assert_close(loss(x[order], labels[order], metric=metric, reduction="none"), terms[order], **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_the_names_of_classes_do_not_matter(backend, device, loss, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    torch.testing.assert_close(loss(x, 7 - 3 * labels, reduction="none"), loss(x, labels, reduction="none"), **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_sum_is_the_sum_of_none(backend, device, loss, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    torch.testing.assert_close(loss(x, labels, reduction="sum"), loss(x, labels, reduction="none").sum())


@pytest.mark.parametrize("metric", METRICS)
@on_any_batch
def test_a_copy_of_the_batch_as_references_adds_only_the_pairs_of_a_row_with_itself(backend, device, metric, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    options = dict(metric=metric, reduction="none", pos_margin=0.5)  # below it the pairs (i, i) cost nothing
    alone = fusedloss.pairwise_contrastive_loss(x, labels, **options)
    torch.testing.assert_close(fusedloss.pairwise_contrastive_loss(x, labels, x, labels, **options), alone, **CLOSE)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "manhattan"])
@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_a_translation_does_not_matter(backend, device, loss, metric, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    shift = torch.arange(x.shape[1], device=device) % 3 - 1.0
    terms = loss(x, labels, metric=metric, reduction="none")
    torch.testing.assert_close(loss(x + shift, labels, metric=metric, reduction="none"), terms, **CLOSE)


@pytest.mark.parametrize("loss", LOSSES)
@on_any_batch
def test_the_lengths_of_rows_do_not_matter_to_cosine(backend, device, loss, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    lengths = 1.0 + torch.arange(len(x), device=device)[:, None]
    terms = loss(x, labels, metric="cosine", reduction="none")
    torch.testing.assert_close(loss(lengths * x, labels, metric="cosine", reduction="none"), terms, **CLOSE)


@on_any_batch
def test_sqeuclidean_of_unit_rows_is_twice_cosine(backend, device, any_batch):
    x, labels = F.normalize(any_batch[0]).to(device), any_batch[1].to(device)
    found = fusedloss.batch_hard_triplet_loss(x, labels, metric="sqeuclidean", margin=0.4)
    torch.testing.assert_close(
        found, 2 * fusedloss.batch_hard_triplet_loss(x, labels, metric="cosine", margin=0.2), **CLOSE
    )


@pytest.mark.parametrize("metric", METRICS)
@on_any_batch
def test_batch_hard_is_the_triplet_loss_of_hardest_pairs(backend, device, metric, any_batch):
    x, labels = (t.to(device) for t in any_batch)
    found = fusedloss.hardest_pairs(x, labels, metric=metric)
    valid = (found.positive_index >= 0) & (found.negative_index >= 0)
    triplets = x[valid], x[found.positive_index[valid]], x[found.negative_index[valid]]
    given_triplets = fusedloss.triplet_margin_loss(*triplets, margin=0.3, metric=metric, eps=0.0)
    mined = fusedloss.batch_hard_triplet_loss(x, labels, margin=0.3, metric=metric)
    torch.testing.assert_close(mined, given_triplets, rtol=1e-6, atol=1e-6)
