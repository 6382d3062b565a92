"""All triplets and semi-hard triplets: exact as eager over a covering grid, and counted by brute force."""

import itertools
from fractions import Fraction

import pytest
import torch

import fusedloss
from fusedloss import ops, reference
from fusedloss.backends.triplet_requests import STORED
from fusedloss.checks import Batch
from tests.compare import check, poisoned_memory
from tests.grid import FULL, IGNORED, METRICS, REFS, batch, cases, ignoring, middle, references, running, shapes

# Ragged in rows, columns, dimensions and classes: 3 or 5 classes of random size, and one row alone in its class.
SHAPES = shapes((23, 29, 37), (11, 31, 3), (37, 5, 19), (17, 13, 67))
ENGINE = dict(metric=METRICS, shape=SHAPES, refs=REFS, ignored=IGNORED)
PLANS = ("default", "small", "held", "split", "tight")
WEIGHTS = 2  # as in test_in_batch


def in_batch(case):
    """Inputs of a case, a margin that some triplets exceed and some do not, and which inputs are constants."""
    N, M, D = case["shape"]
    (x, labels), (y, ref_labels) = batch(N, D, classes=3 if N == 37 else 5), batch(M, D, classes=3, seed=1)
    arguments = dict(embeddings=x, labels=labels, metric=case["metric"])
    arguments |= references(case["refs"], x, labels, y, ref_labels)
    margin = middle(reference.pairwise_distance(x, y, case["metric"])) / 3
    margin, constant = clear(margin, x, arguments), ["ref_embeddings"] if case["refs"] == "constant" else []
    return ignoring(case["ignored"], arguments), margin, constant


def clear(margin, x, arguments):
    """A margin near this one with no triplet at the border of it, or of a tenth of it, where rounding decides."""
    d = reference.pairwise_distance(x, arguments.get("ref_embeddings", x), arguments["metric"])
    gaps = (d[:, :, None] - d[:, None]).abs().flatten()
    candidates = margin * torch.linspace(0.9, 1.1, 41, dtype=torch.float64)
    room = [min(((gaps - m).abs() / m).min(), ((gaps - m / 10).abs() / m).min()) for m in candidates]
    return candidates[max(range(41), key=room.__getitem__)].float().item()


@cases(
    ENGINE
    | dict(
        triplets=("all", "hard", "semihard", "easy"),
        margin=("number", "tensor", None),
        soft_margin=(False, True),
        reduction=("mean", "sum", "none", "active"),
    ),
    blocked=3,
    triton=2,
    plans=PLANS,
)
def test_all_triplets_are_as_exact_as_eager(backend, case):
    arguments, margin, constant = in_batch(case)
    soft = case["soft_margin"] or case["triplets"] == "easy"  # by the margin the easy ones cost nothing
    margin /= 10 if case["triplets"] == "easy" else 1
    arguments |= dict(soft_margin=soft, triplets=case["triplets"], reduction=case["reduction"])
    if case["margin"] is not None or not soft or case["triplets"] in ("semihard", "easy"):
        arguments |= dict(margin=torch.tensor(margin) if case["margin"] == "tensor" else margin)
    with running(backend, case["plan"]) as device:
        check(fusedloss.batch_all_triplet_loss, arguments, case["dtype"], device, constant=constant, roundings=WEIGHTS)


@cases(
    ENGINE | dict(margin=("number", "tensor"), reduction=("mean", "sum", "none", "active"), stored=(512, 2)),
    blocked=3,
    triton=2,
    plans=PLANS,
)
def test_semihard_triplets_are_as_exact_as_eager(backend, case, monkeypatch):
    monkeypatch.setitem(STORED, (backend, "nearest"), case["stored"])
    arguments, margin, constant = in_batch(case)
    margin = torch.tensor(margin) if case["margin"] == "tensor" else margin
    arguments |= dict(margin=margin, reduction=case["reduction"])
    with running(backend, case["plan"]) as device:
        check(
            fusedloss.batch_semihard_triplet_loss, arguments, case["dtype"], device,
            constant=constant, roundings=WEIGHTS,
        )  # fmt: skip


def points(classes, N=15, seed=0):
    """Whole numbers on a line, by label: equal distances and triplets on the border of a kind are frequent."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-6, 7, (N, 1), generator=generator).float()
    return x, torch.tensor(classes)[torch.randint(len(classes), (N,), generator=generator)].sort().values


def triplets_of(x, labels):
    """Every anchor with the squared distance to each positive, and with those to all negatives."""
    x, labels, rows = [int(v) for v in x], labels.tolist(), range(len(x))

    def d(i, j):
        return (x[i] - x[j]) ** 2

    for a, p in itertools.permutations(rows, 2):
        if labels[a] == labels[p]:
            yield a, d(a, p), [d(a, n) for n in rows if labels[n] != labels[a]]


CLASSES = {"ragged": [0, 0, 0, 0, 0, 1, 1, 2, 3], "one giant": [0] * 12 + [1], "two": [0, 1]}
KINDS = {
    "all": lambda gap, m: True,
    "hard": lambda gap, m: gap >= 0,
    "semihard": lambda gap, m: -m <= gap < 0,
    "easy": lambda gap, m: gap < -m,
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_triplets_of_a_kind_are_those_that_brute_force_counts(backend, device, kind, margin, classes):
    x, labels = points(CLASSES[classes])
    gaps = [[p - n for a, p, ns in triplets_of(x, labels) if a == i for n in ns] for i in range(len(x))]
    of_kind = [[gap + margin for gap in of if KINDS[kind](gap, margin)] for of in gaps]
    total = [sum(max(0, h) for h in of) for of in of_kind]
    chosen, active = [len(of) for of in of_kind], [sum(h > 0 for h in of) for of in of_kind]
    rows = Batch(x.to(device), None, labels.to(device), labels.to(device), 0)
    with poisoned_memory():
        for soft, counted in itertools.product((False, True), ("chosen", "active")):
            found = [s.tolist() for s in ops.fold_triplets(rows, float(margin), "sqeuclidean", kind, soft, counted)]
            if counted == "chosen":
                assert found[1] == chosen
            if not soft:
                assert found == [total, chosen if counted == "chosen" else active]
    options = dict(margin=float(margin), metric="sqeuclidean", triplets=kind, reduction="sum")
    assert_exact_gradient(fusedloss.batch_all_triplet_loss, x, labels, device, options)


def assert_exact_gradient(loss, x, labels, device, options):
    """In whole numbers: a term of 0 has slope 0, even if it is just about to cost something."""
    leaf, exact = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    loss(leaf, labels.to(device), **options).backward()
    getattr(reference, loss.__name__)(exact, labels, **options).backward()
    assert torch.equal(leaf.grad.cpu().double(), exact.grad)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("stored", [512, 2])
def test_semihard_is_what_brute_force_finds(backend, device, stored, classes, monkeypatch):
    monkeypatch.setitem(STORED, (backend, "nearest"), stored)
    N = 37 if backend == "blocked" or FULL else 23
    x, labels = points(CLASSES[classes], N=N, seed=1)  # several tiles, with ties between them
    margin, total = 3, [0] * len(x)
    for a, p, ns in triplets_of(x, labels):
        if ns:
            total[a] += max(0, p - min((n for n in ns if n > p), default=max(ns)) + margin)
    rows = x.to(device), labels.to(device)
    found = fusedloss.batch_semihard_triplet_loss(*rows, margin=float(margin), reduction="none")
    assert found.tolist() == total
    options = dict(margin=float(margin), reduction="sum")
    assert_exact_gradient(fusedloss.batch_semihard_triplet_loss, x, labels, device, options)


def exact_sums(rows, margin, kind, counted):
    """Of all anchors, the sum of the terms and how many are counted."""
    found = ops.fold_triplets(rows, margin, "euclidean", kind, counted=counted)
    return [int(2 * Fraction(s.sum().item())) / 2 for s in found]


@pytest.mark.parametrize("margin", [1.5, 0.5])
def test_more_triplets_than_32_bits_count_are_exact(margin):
    n = 1100
    x = torch.tensor([[0.0], [1.0]]).repeat_interleave(n, 0)  # d_ap = 0 and d_an = 1 everywhere
    labels = torch.arange(2 * n) // n
    count = 2 * n * (n - 1) * n
    assert count > 2**31
    rows = Batch(x, None, labels, labels, 0)
    total, active = exact_sums(rows, margin, "all", "active")
    _, chosen = exact_sums(rows, margin, "all", "chosen")
    assert chosen == count
    assert (2 * total, active) == ((count, count) if margin > 1 else (0, 0))
    options = dict(margin=margin, metric="euclidean")
    mean = fusedloss.batch_all_triplet_loss(x, labels, **options, triplets="semihard" if margin > 1 else "easy")
    assert mean == (0.5 if margin > 1 else 0.0)
    assert fusedloss.batch_all_triplet_loss(x, labels, **options, reduction="sum") == (count / 2 if margin > 1 else 0)
    assert fusedloss.batch_semihard_triplet_loss(x, labels, margin=margin, reduction="sum") == (
        2 * n * (n - 1) / 2 if margin > 1 else 0
    )


@pytest.fixture
def wide(backend):
    """A device, with tiles for very many columns: the interpreter takes long for a program."""
    with running(backend, "small") as device, pytest.MonkeyPatch.context() as patch:
        if backend == "triton" and device == "cpu":
            from fusedloss.kernels import configs

            tile = configs.Tile(BM=1, BN=16384, BD=16, num_warps=4, num_stages=1, held=16, near=16384)
            patch.setattr(configs, "choose", lambda *_: tile)
            patch.setattr(configs, "POSITIVES", 16)
            patch.setattr(configs, "ROWS_PER_PROGRAM", 1 << 14)
        yield device


def one_anchor(positives, negatives, device):
    """An anchor of class 0 at 0, where its positives are too; its negatives are at 1."""
    y = torch.tensor([[0.0]] * positives + [[1.0]] * negatives)
    y_labels = (torch.arange(len(y)) >= positives).long()
    return [t.to(device) for t in (torch.zeros(1, 1), y, torch.zeros(1, dtype=torch.int64), y_labels)]


def test_more_triplets_of_an_anchor_than_float32_counts_are_exact(wide):
    positives, negatives = 65, 2**18 + 1
    count = positives * negatives
    assert count > 2**24 and count % 2
    rows = Batch(*one_anchor(positives, negatives, wide), None)
    for counted in ("chosen", "active"):
        assert exact_sums(rows, 1.5, "semihard", counted) == [count / 2, count]


def test_a_row_in_more_triplets_than_float16_holds_has_its_gradient(wide):
    x, y, labels, y_labels = one_anchor(1, 70_000, wide)
    x, y[0] = x.half().requires_grad_(), 2.0
    fusedloss.batch_all_triplet_loss(x, labels, y.half(), y_labels, metric="sqeuclidean").backward()
    assert abs(x.grad.item() + 2.0) < 0.01  # 2 (x - p) - 2 (x - n), the mean of 70,000


KINDS_OF_LOSS = {kind: dict(triplets=kind, soft_margin=soft) for kind, soft in (("all", False), ("hard", True))}


def outcome(loss, plan, rows, stored, options, numbers=()):
    """The losses of the anchors and the gradients of their sum, if the forward keeps so many positives."""
    pytest.importorskip("triton")
    with running("triton", plan) as device, pytest.MonkeyPatch.context() as patch:
        for name, value in dict(numbers).items():
            patch.setattr(f"fusedloss.kernels.configs.{name}", value)
        for kind in ("all", "nearest"):
            patch.setitem(STORED, ("triton", kind), stored)
        leaves = [t.float().to(device).requires_grad_() if t.is_floating_point() else t.to(device) for t in rows]
        values = loss(*leaves, reduction="none", **options)
        values.sum().backward()
        return values.detach(), *(t.grad for t in leaves if t.requires_grad)


@pytest.mark.parametrize("plan", ["small", "sorted split"])
@pytest.mark.parametrize("kind", [*KINDS_OF_LOSS, "nearest"])
def test_positives_that_are_not_kept_are_found_again(kind, plan):
    loss = fusedloss.batch_semihard_triplet_loss if kind == "nearest" else fusedloss.batch_all_triplet_loss
    (x, labels), (y, y_labels) = batch(13, 7, classes=2), batch(21, 7, classes=2, seed=1)
    options = KINDS_OF_LOSS.get(kind, {}) | dict(margin=0.4)
    for rows in ((y, y_labels), (x, labels, y, y_labels)):
        some, every = (outcome(loss, plan, rows, stored, options) for stored in (5, 64))
        for a, b in zip(some, every, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * b.abs().max().item())


@pytest.mark.parametrize("kind", ["all", "nearest"])
@pytest.mark.parametrize(("distance", "costs"), [(8.0, False), (0.0, True)], ids=["idle", "all active"])
def test_tiles_in_which_nothing_or_everything_costs(kind, distance, costs):
    """The classes are far apart, or in one place."""
    loss = fusedloss.batch_semihard_triplet_loss if kind == "nearest" else fusedloss.batch_all_triplet_loss
    x, labels = batch(48, 5)[0] / 8, torch.arange(48) % 3
    x = x + distance * labels[:, None]
    values, grad = outcome(loss, "sorted split", (x, labels), 64, dict(margin=0.0 if not costs else 9.0))
    if costs:
        assert (values > 0).all()
        check(loss, dict(embeddings=x, labels=labels, margin=9.0), device="cpu", roundings=WEIGHTS)
    else:
        assert (values == 0).all() and (grad == 0).all()


@pytest.mark.parametrize("positives", [1, 2, 16, 600 if FULL else 150])
def test_an_anchor_with_few_or_many_positives(positives):
    """Its negatives are as far as they are, and the positives beyond those kept are in the tail."""
    configs = pytest.importorskip("fusedloss.kernels.configs")
    tile = configs.Tile(BM=16, BN=128, BD=16, num_warps=4, num_stages=1, held=16, near=128)
    generator = torch.Generator().manual_seed(positives)
    x, y = torch.randn(1, 3, generator=generator).double(), torch.randn(positives + 9, 3, generator=generator).double()
    y_labels = (torch.arange(len(y)) >= positives).long()
    rows = x, torch.zeros(1, dtype=torch.int64), y, y_labels
    kept = 512 if FULL else 128
    wide = dict(choose=lambda *_: tile, POSITIVES=16, SPLIT_TARGET=1)
    values, dx, dy = outcome(fusedloss.batch_all_triplet_loss, "default", rows, kept, dict(margin=0.3), wide)
    leaf = x.clone().requires_grad_()
    refs = y.clone().requires_grad_()
    want = fusedloss.reference.batch_all_triplet_loss(leaf, rows[1], refs, y_labels, margin=0.3, reduction="sum")
    want.backward()
    torch.testing.assert_close(values.sum().double(), want.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close((dx.double(), dy.double()), (leaf.grad, refs.grad), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "nearest"])
def test_nan_shows_in_every_anchor_that_is_compared_with_it_and_no_other(kind):
    x, labels = batch(23, 5, classes=3)  # the last is alone in its class
    x[4] = torch.nan
    loss = fusedloss.batch_semihard_triplet_loss if kind == "nearest" else fusedloss.batch_all_triplet_loss
    options = dict(margin=0.3) if kind == "nearest" else dict(margin=0.3, triplets=kind)
    values, grad = outcome(loss, "sorted", (x, labels), 512, options)
    assert values[:-1].isnan().all() and values[-1] == 0 and grad[4].isnan().all()
