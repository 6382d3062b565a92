"""Integration: custom ops, torch.compile, autocast, no_grad, the choice of backend and the matmul precision."""

import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import fusedloss
from fusedloss import backends
from fusedloss.backends.request import (
    Elements,
    ElementsGrad,
    Fold,
    FoldGrad,
    HardTriplets,
    ListedDistances,
    ListedDistancesGrad,
    Logits,
    LogitsGrad,
    MinedGrad,
    Mining,
    RowDistances,
    RowDistancesGrad,
    ToCenters,
)
from fusedloss.backends.triplet_requests import Ranking, RankingGrad, Triplets, TripletsGrad
from fusedloss.checks import Batch
from fusedloss.ops import folds, hinges, logits, ranking, rows, triplets
from fusedloss.ops.registration import OPERATIONS, as_tensor, flat
from tests.compare import differentiate, is_rows
from tests.grid import (
    FULL,
    GIVEN_LOGITS,
    IN_BATCH,
    LEARNABLE,
    LOSSES,
    ROW_BY_ROW,
    SAMPLE,
    batch,
    example,
    in_front,
    running,
    unreadable,
)

OPS = [*OPERATIONS.values()]


def op_inputs(device):
    """(operation, record) for every operation: a batch with itself, references with a margin on the device, rows among
    their references with some ignored, and any layout."""
    x, labels = (t.to(device) for t in batch(9, 5, classes=2))
    y, ref_labels = (t.to(device) for t in batch(7, 5, classes=2, seed=1))
    x, y = x.float(), y.float().t().contiguous().t()
    alone, pairs = Batch(x, None, labels, labels, 0), Batch(x, y, labels, ref_labels, None)
    inside = Batch(x[:5], torch.cat([y[:2], x[:5]]), labels[:5], torch.cat([ref_labels[:2], labels[:5]]), 2, 1)
    margins, states = torch.tensor([[0.0], [1.0]]), torch.ones(2, 9, device=device)
    contrastive = ("contrastive", "euclidean", ["sum"], ["sum"])
    scales, both, offsets = torch.tensor([[2.0, 0.0]] * 2), torch.ones(2, 16, device=device), x.new_ones(16)
    softmax = ("softmax", "similarity", ["sum"], ["lse"])

    def wants(*which):
        return [i in which for i in (0, 1, 2, 3, 3)]  # dx, dy, dnumbers, doffsets of either side

    lifted = (offsets.clone(), *contrastive[:3], [])
    yield folds.fold_op, Fold(alone, margins, None, *contrastive, False)
    yield folds.fold_op, Fold(pairs, margins.to(device), None, *contrastive, False)
    yield folds.fold_op, Fold(pairs, scales.to(device, copy=True).requires_grad_(), None, *softmax, True)
    yield folds.fold_op, Fold(pairs, margins, offsets.clone().requires_grad_(), *lifted[1:], False, "both")
    yield folds.fold_op, Fold(pairs, scales, offsets[:7].clone().requires_grad_(), *softmax, False)
    yield folds.fold_op, Fold(inside, margins, None, *contrastive, False)
    yield folds.fold_grad_op, FoldGrad(Fold(alone, margins, None, *contrastive, False), states, states, *wants(0, 2))
    yield folds.fold_grad_op, FoldGrad(Fold(pairs, margins, None, *contrastive, False), states, states, *wants(1))
    yield folds.fold_grad_op, FoldGrad(Fold(pairs, scales, None, *softmax, True), both, both, *wants(0, 1, 2), "both")
    yield folds.fold_grad_op, FoldGrad(Fold(pairs, margins, *lifted, False, "both"), both[:1], both[:1], *wants(0, 3))
    yield folds.fold_grad_op, FoldGrad(Fold(pairs, scales, offsets[:7], *softmax, False), states, states, *wants(3))
    five = both[:, :5]
    yield folds.fold_grad_op, FoldGrad(Fold(inside, margins, None, *contrastive, False), five, five, *wants(0, 1))

    yield rows.mine_op, Mining(pairs, "manhattan", "nearest", "beyond")
    margin, negatives = margins[1].clone(), torch.tensor(9 * [[2, -1, 0, 3, 1, 4, 2, 0, 5]], device=device)
    leaf, du = margin.clone().requires_grad_(), states[0]
    yield triplets.fold_triplets_op, Triplets(alone, leaf, "euclidean", "all", False, "active", 0)
    yield triplets.fold_triplets_op, Triplets(pairs, leaf, "cosine", "semihard", True, "chosen", 0)
    yield triplets.fold_triplets_op, Triplets(inside, margin, "sqeuclidean", "nearest", False, "none", 0)
    for of, wants in (
        (Triplets(alone, margin, "euclidean", "hard", False, "none", 4), (True, False)),
        (Triplets(pairs, margin, "manhattan", "all", True, "none", 4), (True, True)),
        (Triplets(pairs, margin, "sqeuclidean", "nearest", False, "none", 32), (False, True)),
    ):
        places = negatives[:7].int() if of.triplets == "nearest" else of.new_places().zero_()
        yield triplets.fold_triplets_grad_op, TripletsGrad(of, places, of.new_kept().zero_(), du, *wants)

    recall = ("recall", [1.0, 1.0, 3.0], 2)
    yield ranking.rank_op, Ranking(alone, "similarity", 4.0, "imprecision", [], 1)
    yield ranking.rank_op, Ranking(pairs, "euclidean", -4.0, *recall)
    yield ranking.rank_grad_op, RankingGrad(Ranking(inside, "dot", 4.0, *recall), five, True, True)
    of_precision = Ranking(pairs, "cosine", -4.0, "imprecision", [], 1)
    yield ranking.rank_grad_op, RankingGrad(of_precision, states[:1], True, False)

    index = torch.tensor([[1, -1, 2, 3, 0, 0, 0, 5, 6], [2, 3, 4, -1, 6, 0, 1, 1, 1]], device=device)
    mined, listed = (None, index.abs()), (index[0].abs(), index[1:].abs())  # opcheck finds NaN not equal
    yield rows.listed_distances_op, ListedDistances(x, None, *mined, "euclidean")
    yield rows.listed_distances_op, ListedDistances(x, y, *listed, "cosine")
    for refs, metric, want_y in ((None, "euclidean", False), (y, "cosine", True), (y, "manhattan", False)):
        for pairs in ((None, index), listed):
            of, derivatives = ListedDistances(x, refs, *pairs, metric), states[: len(pairs[1])]
            yield rows.listed_distances_grad_op, ListedDistancesGrad(of, derivatives, metric != "cosine", want_y)
    triplets_of = ("euclidean", "farthest", "nearest", False, "mean")
    yield hinges.hard_triplets_op, HardTriplets(alone, margin.clone().requires_grad_(), *triplets_of)
    yield hinges.hard_triplets_op, HardTriplets(inside, margin, "cosine", "nearest", "beyond", True, "sum")
    yield hinges.to_centers_op, ToCenters(x, y, index[0], "mean")
    slopes, factors, dloss = torch.ones(3, 2, 9, device=device), torch.ones(2, device=device), x.sum()
    yield hinges.mined_grad_op, MinedGrad(x, None, index, slopes, factors, dloss, "euclidean", True, False)
    yield hinges.mined_grad_op, MinedGrad(x, y, index, slopes, factors, dloss, "cosine", False, True)
    a, b = (batch(5, 9, seed=seed)[0].float().to(device).t() for seed in range(2))
    every = RowDistances(x, a, b, "euclidean", 1e-6, 3)
    yield rows.row_distances_op, RowDistances(x, a, b, "cosine", 0.0, 3)
    yield rows.row_distances_grad_op, RowDistancesGrad(RowDistances(x, a, None, "manhattan", 1e-6, 1), states[:1])
    yield rows.row_distances_grad_op, RowDistancesGrad(every, torch.ones(3, 9, device=device))

    z, index = x.t().contiguous().t()[:, :, None].clone(), torch.tensor([0, 4, -1, 2, 2, 0, 1, 3, 3], device=device)
    shares, weight, of_rows = z.softmax(1), z[0, :, 0].abs(), torch.ones(3, 9, dtype=torch.float64, device=device)
    images, leaf = torch.stack([z[:4, :, 0], z[4:8, :, 0]], 2), z.clone().requires_grad_()
    yield logits.fold_logits_op, Logits(leaf, index, None, 0.0, False, False)
    yield logits.fold_logits_op, Logits(images.clone().requires_grad_(), index[:8], weight, 0.0, True, False)
    yield logits.fold_logits_op, Logits(leaf, shares.clone().requires_grad_(), weight, 0.1, True, False)
    of_index, of_shares = Logits(z, index, weight, 0.0, False, False), Logits(z, shares, None, 0.1, True, False)
    yield logits.logits_grad_op, LogitsGrad(of_index, of_rows[:2], of_rows[:2])
    yield logits.logits_grad_op, LogitsGrad(of_shares, of_rows, of_rows)
    bce, focal = ("binary_cross_entropy", []), ("sigmoid_focal", [0.25, 2.0])
    yield logits.fold_elements_op, Elements(leaf, shares, None, None, *bce, False, False)
    yield logits.fold_elements_op, Elements(leaf, shares, weight, shares, *bce, True, False)
    yield logits.fold_elements_op, Elements(leaf, shares > 0.2, None, None, *focal, True, False)
    one, each = (
        Elements(z, shares, weight, None, *bce, True, False),
        Elements(z, shares, None, None, *focal, False, False),
    )
    yield logits.elements_grad_op, ElementsGrad(one, of_rows.float().sum())
    yield logits.elements_grad_op, ElementsGrad(each, shares)


def differentiable(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[-1] == 5
    return value.detach().requires_grad_() if floating and not value.requires_grad else value


# All triplets take long in the interpreter.
CHECKED = [("blocked", op) for op in OPS if hasattr(backends.module("blocked"), op.name)]
CHECKED += [("triton", op) for op in OPS if FULL or "fold_triplets" not in op.name]


DIFFERENTIABLE = (
    folds.fold_op, triplets.fold_triplets_op, ranking.rank_op, rows.listed_distances_op, rows.row_distances_op,
    hinges.hard_triplets_op, hinges.to_centers_op,
)  # fmt: skip


@pytest.mark.parametrize(("backend", "op"), CHECKED, ids=lambda value: getattr(value, "name", value))
def test_every_custom_op_passes_opcheck(backend, device, op):
    inputs = [flat(record) for of, record in op_inputs(device) if of is op]
    assert inputs
    for arguments in inputs:
        if op in DIFFERENTIABLE:
            arguments = [differentiable(v) for v in arguments]
        for i in op.floats:
            arguments[i] = as_tensor(arguments[i])
        torch.library.opcheck(op.op, (*arguments, backend))


WITH_REFS = [(loss, False) for loss in LOSSES] + [(loss, True) for loss in IN_BATCH]


# The front of both backends is the same code: with Triton's interpreter, which is slow, a sample of the losses.
FRONT = [("blocked", loss, refs) for loss, refs in WITH_REFS]
FRONT += [("triton", loss, refs) for loss, refs in WITH_REFS if FULL or (loss in SAMPLE and not refs)]


@pytest.mark.parametrize(("backend", "loss", "refs"), FRONT)
def test_compiled_without_graph_breaks_equals_eager(backend, device, loss, refs):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for N in (9, 11):  # the second size compiles with a symbolic number of rows
        arguments = example(loss, N, refs=refs)
        arguments |= {name: torch.tensor(0.5) for of, name in LEARNABLE if of is loss}
        assert_equal_outcomes(compiled, loss, arguments, device)


@pytest.mark.parametrize(
    ("backend", "function"),
    [("blocked", f) for f in (*LOSSES, fusedloss.hardest_pairs)]
    + [("triton", f) for f in (LOSSES if FULL else SAMPLE)],
)
def test_compiled_for_inputs_that_need_no_gradient_equals_eager(backend, device, function):
    torch._dynamo.reset()
    arguments = {name: v.to(device) for name, v in example(function).items()}
    found, want = torch.compile(function, fullgraph=True, backend="aot_eager")(**arguments), function(**arguments)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_compiled_by_inductor_equals_eager(device, backend):
    torch._dynamo.reset()
    loss = fusedloss.batch_hard_triplet_loss
    assert_equal_outcomes(torch.compile(loss, fullgraph=True), loss, example(loss, 41, 23), device)


def assert_equal_outcomes(compiled, loss, arguments, device):
    found, want = (differentiate(f, arguments, torch.float32, device, ()) for f in (compiled, loss))
    assert found.keys() == want.keys()
    for name, value in want.items():
        # Composed, dL/dloss is in every weight; in the closing kernels' gradient it multiplies the sums of the weights,
        # whose errors are those of their largest terms. The circle loss has gamma = 80 of them.
        largest = value.abs().max().item() if value.numel() else 0.0
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7 + 2e-6 * largest)


@in_front(LOSSES)
def test_checkpointed_equals_eager(backend, device, loss):
    arguments = {name: v.to(device) for name, v in example(loss, refs=True).items()}
    rows = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
    found = torch.autograd.grad(checkpoint(loss, **arguments, use_reentrant=False), rows)
    assert all(torch.equal(a, b) for a, b in zip(found, torch.autograd.grad(loss(**arguments), rows), strict=True))


@in_front([loss for loss in LOSSES if loss not in (*GIVEN_LOGITS, *ROW_BY_ROW)])
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_inputs(backend, device, loss):
    arguments = {name: v.to(device) for name, v in example(loss, refs=True).items()}
    rows = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
    with torch.autocast(device, torch.bfloat16):
        value = loss(**arguments)
    grads = torch.autograd.grad(value, rows)
    rounded = {name: v.bfloat16() if v.is_floating_point() and v.dim() > 1 else v for name, v in arguments.items()}
    want = loss(**rounded)
    assert value.dtype == torch.float32
    assert torch.equal(value, want)
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(want, rows), strict=True))
    assert all(grad.dtype == torch.float32 for grad in grads)


@in_front([*GIVEN_LOGITS, *ROW_BY_ROW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_given_logits_and_rows_compared_one_by_one_as_they_are(backend, device, loss, dtype):
    arguments = {name: v.to(device, dtype if is_rows(v) else v.dtype) for name, v in example(loss).items()}
    rows = [v.requires_grad_() for v in arguments.values() if is_rows(v)]
    with torch.autocast(device, torch.bfloat16):
        value = loss(**arguments)
    want = loss(**arguments)
    assert torch.equal(value, want) and value.dtype == want.dtype
    for grad, want_grad in zip(torch.autograd.grad(value, rows), torch.autograd.grad(want, rows), strict=True):
        assert torch.equal(grad, want_grad) and grad.dtype == dtype


@in_front(ROW_BY_ROW)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)])
def test_under_autocast_rows_of_two_dtypes_are_compared_in_one_that_holds_both(backend, device, loss, dtypes):
    arguments = {name: v.to(device) for name, v in example(loss).items()}
    names = [name for name, v in arguments.items() if is_rows(v)]
    for name, dtype in zip(names, (*dtypes, dtypes[0]), strict=False):
        arguments[name] = arguments[name].to(dtype).requires_grad_()
    rows = [arguments[name] for name in names]
    with torch.autocast(device, torch.bfloat16):
        value = loss(**arguments)
    want = loss(**arguments | {name: arguments[name].float() for name in names})
    assert torch.equal(value, want)
    for grad, want_grad, v in zip(*(torch.autograd.grad(of, rows) for of in (value, want)), rows, strict=True):
        assert torch.equal(grad, want_grad) and grad.dtype == v.dtype
    with pytest.raises(TypeError, match="must have the dtype of"):
        loss(**arguments)


def test_a_distance_that_16_bits_do_not_hold_counts_under_autocast(backend, device):
    x1, x2 = torch.tensor([[1.0, 0.5]], device=device), torch.tensor([[1.001, 0.5]], device=device)
    with torch.autocast(device, torch.bfloat16):
        value = fusedloss.contrastive_loss(x1.requires_grad_(), x2, torch.ones(1, dtype=torch.int64, device=device))
    value.backward()
    assert value.item() == pytest.approx(5e-7, rel=1e-3)
    assert x1.grad.tolist() == [[pytest.approx(-1e-3, rel=1e-3), 0.0]]


@pytest.mark.parametrize("module", [fusedloss.CenterLoss, fusedloss.IslandLoss])
def test_centers_of_a_module_are_not_rounded_to_embeddings_of_autocast(backend, device, module):
    torch.manual_seed(0)
    loss, x = module(7, 5).to(device), example(module.function)["embeddings"].to(device).bfloat16()
    target = example(module.function)["target"].to(device)
    with torch.autocast(device, torch.bfloat16):
        value = loss(x, target)
    assert torch.equal(value, module.function(x.float(), loss.centers, target))


def test_whether_a_device_has_autocast_is_asked_once(backend, device, monkeypatch):
    def asked(kind):
        raise AssertionError("Dynamo of PyTorch 2.11 cannot trace this")

    monkeypatch.setattr(torch.amp, "is_autocast_available", asked)
    for loss in (fusedloss.contrastive_loss, fusedloss.pairwise_contrastive_loss):
        loss(**{name: v.to(device) for name, v in example(loss).items()})


def test_float64_stays_float64_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert fusedloss.pairwise_contrastive_loss(*batch(9, 5)).dtype == torch.float64


@in_front(LOSSES)
def test_the_backward_uses_the_backend_of_its_forward(backend, device, loss, monkeypatch):
    arguments = {name: v.to(device) for name, v in example(loss).items()}
    wanted = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
    value = loss(**arguments)
    used = []
    module = backends.module
    monkeypatch.setattr(backends, "module", lambda name: used.append(name) or module(name))
    with fusedloss.use_backend("blocked" if backend == "triton" else "triton"):
        torch.autograd.grad(value, wanted)
    assert used and set(used) == {backend}


def test_use_backend_restores_the_choice_also_after_an_error():
    fusedloss.set_backend("blocked")
    try:
        with pytest.raises(ZeroDivisionError), fusedloss.use_backend("triton"):
            raise ZeroDivisionError
        assert backends.resolve_backend(torch.ones(1)) == "blocked"
    finally:
        fusedloss.set_backend("auto")
    assert backends.resolve_backend(torch.ones(1)) == "blocked"
    assert backends.resolve_backend(torch.ones(1, device="meta")) == "blocked"


@in_front(LOSSES)
def test_under_no_grad_there_is_a_value_and_no_graph(backend, device, loss):
    arguments = {name: v.to(device) for name, v in example(loss).items()}
    want = loss(**arguments)
    for v in arguments.values():
        v.requires_grad_(v.is_floating_point())
    with torch.no_grad():
        value = loss(**arguments)
    assert not value.requires_grad
    assert torch.equal(value, want)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_reads_a_value(backend, device, loss, monkeypatch):
    unreadable(monkeypatch)
    arguments = example(loss, refs=True)
    with FakeTensorMode():  # whose tensors have no values: reading one is an error
        absent = {
            name: torch.ones(v.shape, dtype=v.dtype, device=device, requires_grad=v.is_floating_point())
            for name, v in arguments.items()
        }
        value = loss(**absent)
        value.backward()
    assert value.shape == ()
    assert all(v.grad.shape == v.shape for v in absent.values() if v.is_floating_point())


def nearest_tf32(x):
    bits = x.view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & -8192).view(torch.float32)


def to_bfloat16(x):
    truncated = (x.view(torch.int32) & -65536).view(torch.float32)
    return truncated if os.environ.get("TRITON_INTERPRET") == "1" else x.bfloat16().float()


@pytest.mark.parametrize("P", [1, 2, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_are_merged(P, dtype):
    common = pytest.importorskip("fusedloss.backends.triton.launch")
    with running("triton", "default") as device:
        parts = torch.randn(P, 3, 130, dtype=dtype, device=device) * 50
        parts[:, 1, 0], parts[-1, 1, 1], parts[0, 1, 2] = -torch.inf, torch.inf, torch.nan
        found = common.merge(parts, ((), ((),), ()))
        want = torch.stack([parts[:, 0].sum(0), parts[:, 1].logsumexp(0), parts[:, 2].sum(0)])
        torch.testing.assert_close(
            found, want, equal_nan=True, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-3
        )
        total = common.total(parts[:, ::2].contiguous(), torch.float16)
        torch.testing.assert_close(total, parts[:, ::2].sum(0).half(), rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("mode", "rounded", "unit"), [("high", nearest_tf32, 2**-11), ("medium", to_bfloat16, 2**-8)])
def test_a_lower_matmul_precision_is_the_loss_of_rounded_rows(mode, rounded, unit, metric):
    x, labels = batch(23, 37)
    given = dict(embeddings=x.float(), labels=labels, metric=metric, neg_margin=1.3)
    at_once = given | dict(embeddings=rounded(x.float()))
    before = torch.get_float32_matmul_precision()
    with running("triton", "small") as device:
        try:
            torch.set_float32_matmul_precision(mode)
            found, same = (
                differentiate(fusedloss.pairwise_contrastive_loss, arguments, torch.float32, device, ())
                for arguments in (given, at_once)
            )
        finally:
            torch.set_float32_matmul_precision(before)
        want = differentiate(fusedloss.pairwise_contrastive_loss, at_once, torch.float32, device, ())
    assert torch.equal(found["value"], same["value"]) and torch.equal(found["embeddings"], same["embeddings"])
    torch.testing.assert_close(found["value"], want["value"], rtol=1e-6, atol=0)
    grad = want["embeddings"]  # of weights that are rounded too
    torch.testing.assert_close(found["embeddings"], grad, rtol=0, atol=2 * unit * float(grad.abs().max()))
