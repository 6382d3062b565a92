"""Smooth-AP and the recall@k surrogate: exact as eager over a covering grid, and the measures that they smooth."""

import pytest
import torch

import fusedloss
from fusedloss import ops
from fusedloss.checks import SIMILARITIES, Batch
from fusedloss.reference.common import similarities
from tests.compare import check, poisoned_memory
from tests.grid import FULL, IGNORED, REFS, batch, cases, ignoring, references, running, shapes

# Ragged in rows, columns, dimensions and classes, as in test_triplets.
SHAPES = shapes((23, 29, 37), (11, 31, 3), (37, 5, 19), (17, 13, 67))
ENGINE = dict(metric=SIMILARITIES, shape=SHAPES, refs=REFS, ignored=IGNORED, reduction=("mean", "sum", "none"))
ENGINE |= dict(temperature=(0.2, 0.4))
PLANS = ("default", "small", "held", "split", "sorted", "tight")
WEIGHTS = 2  # as in test_in_batch
LOSSES = [fusedloss.smooth_ap_loss, fusedloss.recall_at_k_loss]


def in_batch(case):
    """The inputs of a case, and which of them are constants. Temperatures are of the size of the scores, since they
    magnify the scores' rounding errors."""
    N, M, D = case["shape"]
    (x, labels), (y, ref_labels) = batch(N, D, classes=3 if N == 37 else 5), batch(M, D, classes=3, seed=1)
    temperature = case["temperature"] * similarities(x, y, case["metric"]).abs().max().item()
    arguments = dict(embeddings=x, labels=labels, metric=case["metric"], reduction=case["reduction"])
    arguments |= dict(temperature=temperature)
    arguments |= references(case["refs"], x, labels, y, ref_labels)
    return ignoring(case["ignored"], arguments), ["ref_embeddings"] if case["refs"] == "constant" else []


@cases(ENGINE, blocked=3, triton=2, plans=PLANS)
def test_smooth_ap_is_as_exact_as_eager(backend, case):
    arguments, constant = in_batch(case)
    with running(backend, case["plan"]) as device:
        check(fusedloss.smooth_ap_loss, arguments, case["dtype"], device, constant=constant, roundings=WEIGHTS)


@cases(ENGINE | dict(k=((1, 2, 4, 8, 16), (9,)), k_temperature=(1.0, 3.0)), blocked=3, triton=2, plans=PLANS)
def test_recall_at_k_is_as_exact_as_eager(backend, case):
    arguments, constant = in_batch(case)
    arguments |= dict(k=case["k"], k_temperature=case["k_temperature"])
    with running(backend, case["plan"]) as device:
        check(fusedloss.recall_at_k_loss, arguments, case["dtype"], device, constant=constant, roundings=WEIGHTS)


@pytest.mark.parametrize("metric", SIMILARITIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_ties_between_equal_rows_are_exact(backend, device, loss, metric):
    x, labels = batch(12, 5, classes=2)
    x = (4 * x).round()
    x[6:] = x[:6]
    check(loss, dict(embeddings=x, labels=labels, metric=metric, temperature=0.2), device=device)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_default_temperature_is_exact_too(backend, device, loss):
    x, labels = batch(41, 23, classes=4)
    check(loss, dict(embeddings=x, labels=labels), device=device)


@pytest.mark.parametrize("loss", LOSSES)
def test_several_turns_over_large_classes_equal_one(loss):
    pytest.importorskip("triton")
    x, labels = batch(41 if FULL else 21, 7, classes=2)
    grads = []
    for plan in ("small", "tight"):
        with running("triton", plan) as device:
            leaf = x.float().to(device).requires_grad_()
            loss(leaf, labels.to(device), temperature=0.3).backward()
            grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("labels", [[7], [3] * 6, [0, 1, 2, 3, 4, 5]], ids=["one row", "one class", "all distinct"])
def test_smooth_ap_without_a_positive_or_a_negative_is_zero(backend, device, labels):
    x = batch(len(labels), 5)[0].float().to(device).requires_grad_()
    value = fusedloss.smooth_ap_loss(x, torch.tensor(labels, device=device), temperature=0.3)
    (grad,) = torch.autograd.grad(value, x)
    assert value == 0 and torch.equal(grad, torch.zeros_like(x))


def test_recall_of_one_class_is_exact(backend, device):
    arguments = dict(embeddings=batch(9, 5)[0], labels=torch.zeros(9, dtype=torch.int64), temperature=0.3)
    check(fusedloss.recall_at_k_loss, arguments, device=device)


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_reaches_every_anchor_that_is_compared_with_it_and_no_other(backend, device, loss):
    x, labels = batch(23, 5, classes=3)  # the last is alone in its class
    x = x.float()
    x[4] = torch.nan
    leaf = x.to(device).requires_grad_()
    values = loss(leaf, labels.to(device), temperature=0.3, reduction="none")
    assert values[:-1].isnan().all() and values[-1] == 0
    assert torch.autograd.grad(values.sum(), leaf)[0].isnan().all()  # the last is a negative of the others


@pytest.mark.parametrize("metric", SIMILARITIES)
def test_at_low_temperatures_smooth_ap_is_one_minus_average_precision(backend, device, metric):
    measures = pytest.importorskip("sklearn.metrics")
    x, labels = batch(23, 7, classes=3)
    x = x.float()
    values = fusedloss.smooth_ap_loss(
        x.to(device), labels.to(device), temperature=1e-5, metric=metric, reduction="none"
    ).tolist()
    for i, row in enumerate(similarities(x, x, metric)):
        others = torch.arange(len(x)) != i
        same = (labels == labels[i])[others]
        if same.any():
            assert values[i] == pytest.approx(1 - measures.average_precision_score(same, row[others]), abs=1e-5)
        else:
            assert values[i] == 0


@pytest.mark.parametrize("k", [(1,), (2, 5), (40,)])
def test_at_low_temperatures_recall_is_the_share_of_positives_among_the_first(backend, device, k):
    """A rank is compared with the middle between k and k + 1; a place is taken by one row alone."""
    x, labels = batch(23, 7, classes=3)
    x, others = x.float(), ~torch.eye(23, dtype=torch.bool)
    order = similarities(x, x, "cosine").masked_fill(~others, -torch.inf).argsort(1, True)
    hits = (labels[order] == labels[:, None])[:, :-1].double()  # the anchor itself is the last
    wanted = []
    for n in k:
        before, at = hits[:, : n - 1].sum(1), hits[:, n - 1 : n].sum(1)
        wanted.append((before + at / 2) / hits.sum(1).clamp(1, n))  # at place k half of it counts
    positive = hits.any(1)
    want = torch.where(positive, 1 - torch.stack(wanted).mean(0), 0.0)
    options = dict(k=k, temperature=1e-5, k_temperature=0.01, reduction="none")
    found = fusedloss.recall_at_k_loss(x.to(device), labels.to(device), **options)
    torch.testing.assert_close(found.cpu().double(), want, rtol=0, atol=1e-5)


def test_small_losses_keep_their_digits(backend, device):
    """1 - precision is not computed as a difference of numbers near 1."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0], [0.001, 1.0]])
    options = dict(temperature=0.05, reduction="none")
    labels = torch.tensor([0, 0, 1, 1])
    want = fusedloss.reference.smooth_ap_loss(x.double(), labels, **options)
    found = fusedloss.smooth_ap_loss(x.to(device), labels.to(device), **options)
    assert 0 < want.max() < 1e-6
    torch.testing.assert_close(found.cpu().double(), want, rtol=1e-4, atol=0)


def test_the_op_counts_positives(backend, device):
    x, labels = batch(23, 7, classes=3)
    rows = Batch(x.float().to(device), None, labels.to(device), labels.to(device), 0)
    with poisoned_memory():
        *_, count = ops.rank(rows, "similarity", 10.0, "recall", [1.0, 1.0, 2.0])
    assert count.tolist() == [(labels == label).sum() - 1 for label in labels]


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_deterministic(backend, device, loss):
    x, labels = (t.to(device) for t in batch(23, 7, classes=3))
    outcomes = []
    for _ in range(2):
        leaf = x.float().requires_grad_()
        value = loss(leaf, labels, temperature=0.3)
        outcomes.append((value.detach(), *torch.autograd.grad(value, leaf)))
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


@pytest.mark.parametrize("k", [3, "12", torch.tensor([1, 2]), [1.5], [True], None])
def test_k_is_a_sequence_of_ints(k):
    x, labels = batch(9, 5)
    with pytest.raises(TypeError, match=r"^k must be .*got"):
        fusedloss.recall_at_k_loss(x, labels, k=k)
