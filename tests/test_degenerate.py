"""Degenerate batches: empty, one class, duplicates, zero rows, odd labels, layouts and inputs that are not finite."""

import pytest
import torch

import fusedloss
from fusedloss import reference
from tests.compare import check
from tests.grid import (
    ELEMENTS,
    FULL,
    GIVEN_LOGITS,
    IN_BATCH,
    LOSSES,
    METRICS,
    batch,
    example,
    in_front,
    metrics,
    reductions,
)

TRIPLETS = [loss for loss in IN_BATCH if "batch" in loss.__name__]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def run(loss, arguments, **options):
    """The value, and the gradient of its sum by every floating argument; both attached to the graph."""
    leaves = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
    value = loss(**arguments, **options)
    assert value.requires_grad
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


def put(arguments, device, dtype=torch.float32):
    return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in arguments.items()}


EMPTY = [dict(N=0)] + [dict(N=N, M=M, refs=True) for N, M in ((0, 7), (0, 0), (9, 0))]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("loss", "size", "reduction"),
    [
        (loss, size, reduction)
        for loss in LOSSES
        for size in (EMPTY if loss in IN_BATCH else EMPTY[:1])
        for reduction in reductions(loss) or (None,)
    ],
)
def test_nothing_to_compare_is_zero_with_zero_gradient(backend, device, loss, size, reduction, dtype):
    arguments = put(example(loss, **size), device, dtype)
    options = dict(weight=0.0) if loss is fusedloss.island_loss else {}  # its centers stay apart from each other
    options |= {} if reduction is None else dict(reduction=reduction)
    value, grads = run(loss, arguments, **options)
    terms = {**dict.fromkeys(ELEMENTS, (0, 5)), fusedloss.proxy_anchor_loss: (7,)}.get(loss, (size["N"],))
    assert value.shape == (terms if reduction == "none" else ())
    assert not value.count_nonzero()
    for v, grad in zip([v for v in arguments.values() if v.is_floating_point()], grads, strict=True):
        assert (grad.shape, grad.dtype) == (v.shape, dtype)
        assert not grad.count_nonzero()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [[7], [3] * 6, [0, 1, 2, 3, 4, 5]], ids=["one row", "one class", "all distinct"])
@pytest.mark.parametrize("loss", TRIPLETS)
def test_without_a_triplet_the_loss_is_zero_with_zero_gradient(backend, device, loss, metric, labels):
    x = batch(len(labels), 5)[0].float().to(device)
    arguments = dict(embeddings=x, labels=torch.tensor(labels, device=device))
    value, (grad,) = run(loss, arguments, metric=metric)
    assert value == 0
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("labels", [[7], [3] * 6, [0, 1, 2, 3, 4, 5]], ids=["one row", "one class", "all distinct"])
def test_hardest_pairs_without_a_pair_have_index_minus_one_and_distance_nan(backend, device, labels):
    x = batch(len(labels), 5)[0].float().to(device).requires_grad_()
    found = fusedloss.hardest_pairs(x, torch.tensor(labels, device=device))
    index = torch.stack([found.positive_index, found.negative_index])
    distance = torch.stack([found.positive_distance, found.negative_distance])
    absent = [len(set(labels)) == len(labels), len(set(labels)) == 1]
    assert (index == -1).all(1).tolist() == (index == -1).any(1).tolist() == absent
    assert torch.equal(distance.isnan(), index == -1)
    assert torch.autograd.grad(torch.where(index >= 0, distance, 0.0).sum(), x)[0].isfinite().all()


def test_hardest_pairs_in_no_references_are_absent(backend, device):
    x, labels = (t.to(device) for t in batch(9, 5))
    found = fusedloss.hardest_pairs(x.float(), labels, x[:0].float(), labels[:0])
    assert (found.positive_index == -1).all() and (found.negative_index == -1).all()
    assert found.positive_distance.isnan().all() and found.negative_distance.isnan().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [[3] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all distinct"])
def test_pairwise_contrastive_of_one_kind_of_pairs_is_exact(backend, device, metric, labels):
    arguments = dict(embeddings=batch(6, 5)[0], labels=torch.tensor(labels), metric=metric, neg_margin=4.0)
    check(fusedloss.pairwise_contrastive_loss, arguments, device=device)


def odd_rows(kind):
    """A batch with rows that are equal or (nearly) zero, in whole numbers, so that equal rows are at distance 0."""
    x, labels = batch(12, 5, classes=2)
    x = (4 * x).round()
    if kind == "duplicates":
        x[6:] = x[:6]
    else:
        x[::3] = {"zeros": 0.0, "tiny": 1e-9, "subnormal": 1e-42}[kind] * (x[::3] + 1)
    return dict(embeddings=x, labels=labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "tiny", "subnormal"])
def test_equal_zero_and_tiny_rows_are_exact(backend, device, kind, metric):
    arguments = odd_rows(kind) | dict(metric=metric)
    check(fusedloss.pairwise_contrastive_loss, arguments | dict(neg_margin=4.0), device=device)
    check(fusedloss.batch_hard_triplet_loss, arguments | dict(margin=9.0), device=device)
    check(fusedloss.batch_all_triplet_loss, arguments | dict(margin=9.0), device=device)
    check(fusedloss.batch_semihard_triplet_loss, arguments | dict(margin=9.0), device=device)
    x1 = arguments["embeddings"]
    pairs = dict(x1=x1, x2=x1.roll(3, 0), target=torch.arange(12) % 2, metric=metric, margin=9.0)
    check(fusedloss.contrastive_loss, pairs, device=device)


@pytest.mark.parametrize("scale", [1e-20, 1e-22])
def test_rows_whose_squared_distance_is_no_normal_number_are_not_apart(backend, device, scale):
    """Where the hardware flushes such a number to 0, its root is 0, and not its product with an infinite inverse."""
    x, labels = batch(12, 5, classes=2)
    arguments = put(dict(embeddings=scale * x, labels=labels), device, torch.float32)
    value, (grad,) = run(fusedloss.pairwise_contrastive_loss, arguments, metric="euclidean", neg_margin=1.0)
    negatives = (labels[:, None] != labels).sum() / (12 * 11)
    assert value.item() == pytest.approx(0.5 * negatives.item(), rel=1e-6) and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "tiny", "subnormal"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_loss_is_finite_and_a_gradient_where_its_dtype_can_hold_it(backend, device, metric, kind, dtype):
    for loss in IN_BATCH:
        arguments = put(odd_rows(kind), device, dtype)
        options = dict(metric=metric) if metric in metrics(loss) else {}
        value, (grad,) = run(loss, arguments, **options)
        exact = {name: v.detach().cpu() for name, v in arguments.items()}
        _, (want,) = run(getattr(reference, loss.__name__), put(exact, "cpu", torch.float64), **options)
        assert value.isfinite()
        assert grad.cpu().isfinite()[want.to(dtype).isfinite()].all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("length", [0.03, 0.001])
@pytest.mark.parametrize("apart", [0.0, 1e-3])
def test_short_rows_close_together_have_a_finite_gradient(backend, device, apart, length, dtype):
    x, _ = batch(9, 23)
    x = length * torch.cat([x, x * (1 + apart * batch(9, 23, seed=1)[0])])
    arguments = put(dict(embeddings=x, labels=torch.arange(18)), device, dtype)
    _, (grad,) = run(fusedloss.pairwise_contrastive_loss, arguments)
    assert grad.isfinite().all()


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "manhattan"])
def test_a_gradient_at_distance_zero_is_zero(backend, device, metric):
    x = torch.ones(4, 3, device=device)
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3]):
        arguments = dict(embeddings=x.clone(), labels=torch.tensor(labels, device=device))
        _, (grad,) = run(fusedloss.pairwise_contrastive_loss, arguments, metric=metric)
        assert not grad.count_nonzero()


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (torch.int64, [2**40, 2**40 + 2**32, -(2**63), 2**63 - 1]),
        (torch.int64, [0, 2**32, -(2**32), 2**33]),
        (torch.int32, [-(2**31), 2**31 - 1, -1, 0]),
        (torch.int16, [-(2**15), 2**15 - 1, -1, 0]),
        (torch.int8, [-128, 127, -1, 0]),
        (torch.uint8, [0, 255, 128, 1]),
    ],
)
@in_front(IN_BATCH)
def test_labels_of_any_integer_dtype_and_size_select_the_same_pairs(backend, device, loss, dtype, values):
    x = batch(12, 5)[0].float().to(device)
    plain = torch.arange(12, device=device) % 4
    labels = torch.tensor(values, dtype=dtype, device=device)[plain]
    for refs, plain_refs in (((), ()), ((x, labels.long()), (x, plain))):
        found, want = loss(x, labels, *refs, reduction="none"), loss(x, plain, *plain_refs, reduction="none")
        torch.testing.assert_close(found, want, rtol=1e-6, atol=0)  # sorted by label the order of a sum may differ


@in_front(IN_BATCH)
def test_bool_labels_are_two_classes(backend, device, loss):
    arguments = put(example(loss, refs=True), device)
    for name in ("labels", "ref_labels"):
        arguments[name] = arguments[name] % 2
    told = arguments | {name: arguments[name].bool() for name in ("labels", "ref_labels")}
    for options in ({}, dict(ignore_index=1)):
        assert torch.equal(loss(**told, **options), loss(**arguments, **options))
    mixed = arguments | dict(labels=told["labels"])
    assert torch.equal(loss(**mixed), loss(**arguments))


def test_bool_labels_are_mined_by(backend, device):
    x, labels = (t.to(device) for t in batch(9, 5))
    found, want = (fusedloss.hardest_pairs(x.float(), of) for of in (labels > 2, (labels > 2).long()))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t.repeat_interleave(2)[::2],
    "strided": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "offset": lambda t: torch.cat([t[:1] + 1, t])[1:],
}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint32])
@in_front(IN_BATCH)
def test_labels_of_a_narrow_dtype_are_not_those_of_a_wide_one_that_end_in_the_same_bits(backend, device, loss, dtype):
    x, y = (batch(9, 5, seed=seed)[0].float().to(device) for seed in range(2))
    labels = torch.arange(9) % 3
    wide = labels + (1 << 32)
    found, want = (loss(x, of.to(device), y, refs.to(device), reduction="sum") for of, refs in (
        (labels.to(dtype), wide), (torch.zeros(9, dtype=torch.int64), torch.ones(9, dtype=torch.int64)),
    ))  # fmt: skip
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)  # as for labels of which none are equal


@pytest.mark.parametrize("layout", LAYOUTS)
@in_front(LOSSES)
def test_the_layout_of_inputs_does_not_matter(backend, device, loss, layout):
    arguments = put(example(loss, refs=True), device)
    value, grads = run(loss, {name: LAYOUTS[layout](v) if v.dim() else v for name, v in arguments.items()})
    want, want_grads = run(loss, arguments)
    assert torch.equal(value, want)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        assert torch.equal(grad, want_grad)


@in_front(LOSSES)
def test_each_gradient_alone_equals_its_part_of_all(backend, device, loss):
    arguments = put(example(loss, refs=True), device)
    rows = [name for name, v in arguments.items() if v.is_floating_point()]
    assert not loss(**arguments).requires_grad
    _, together = run(loss, {name: v.clone() for name, v in arguments.items()})
    for name, want in zip(rows, together, strict=True):
        alone = arguments[name].clone().requires_grad_()
        loss(**{**arguments, name: alone}).backward()
        assert torch.equal(alone.grad, want)


@in_front(LOSSES)
def test_two_runs_are_equal_bit_for_bit(backend, device, loss):
    N, D, M = (41, 23, 37) if backend == "blocked" or FULL else (19, 17, 37)
    arguments = put(example(loss, N, D, M=M, refs=True), device)
    (value, grads), (again, grads_again) = run(loss, arguments), run(loss, arguments)
    assert torch.equal(value, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


@pytest.mark.parametrize(
    ("loss", "metric", "bad"),
    [
        (loss, m, bad)
        for loss in LOSSES
        for m in metrics(loss) or [None]
        for bad in (torch.nan, torch.inf, -torch.inf)
        # A logit of -inf leaves its class out, and an infinite one may be right about its element: see test_logits.
        if (bad != -torch.inf or loss not in GIVEN_LOGITS) and (bad != torch.inf or loss not in ELEMENTS)
    ],
)
def test_a_value_that_is_not_finite_shows_in_the_loss(backend, device, loss, metric, bad):
    arguments = put(example(loss), device)
    next(v for v in arguments.values() if v.is_floating_point())[0, 2] = bad
    for labels in (v for v in arguments.values() if not v.is_floating_point()):
        labels[:2] = 1  # row 0 has a positive or is similar: a negative infinitely far away costs nothing
    assert not loss(**arguments, **({} if metric is None else dict(metric=metric))).isfinite()
