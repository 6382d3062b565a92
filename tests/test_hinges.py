"""Losses of mined pairs and triplets that kernels close: equal to what is composed of distances, in few launches."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.func import grad, vmap

pytest.importorskip("triton")

import triton
import triton.language as tl

import fusedloss
from fusedloss import ops
from fusedloss.kernels import configs, hinges
from fusedloss.losses.triplets import _hinge
from fusedloss.tools.footprint import footprint
from fusedloss.tools.workloads import Workload
from tests.compare import ATOL, poisoned_memory, rounding
from tests.grid import IGNORED, METRICS, batch, covering, ignoring, in_full, named, references, running


@pytest.fixture
def device():
    with running("triton", "small") as device:
        yield device


@triton.jit
def closed(z_ptr, term_ptr, slope_ptr, N, CLOSE: tl.constexpr, BLOCK: tl.constexpr):
    r = tl.arange(0, BLOCK)
    term, slope = CLOSE(tl.load(z_ptr + r, mask=r < N, other=0.0))
    tl.store(term_ptr + r, term, mask=r < N)
    tl.store(slope_ptr + r, slope, mask=r < N)


CLOSINGS = {
    "hinge": lambda z: _hinge(z, 0.0, False),
    "soft_hinge": lambda z: _hinge(z, 0.0, True),
    "half": lambda z: z / 2,
}


@pytest.mark.parametrize("name", CLOSINGS)
def test_a_closing_formula_and_its_derivative_equal_autograd(device, name):
    edges = [0.0, -0.0, 1e-30, -1e-30, 15.0, -15.0, 88.0, -88.0, 3e38, -3e38, torch.inf, -torch.inf, torch.nan]
    z = torch.tensor([*edges, *torch.linspace(-41, 41, 99)], device=device).requires_grad_()
    want = CLOSINGS[name](z)
    term, slope = torch.empty_like(z), torch.empty_like(z)
    closed[(1,)](z.detach(), term, slope, len(z), CLOSE=getattr(hinges, name), BLOCK=128)
    (slopes,) = torch.autograd.grad(want.sum(), z)
    number = ~z.isnan()
    torch.testing.assert_close(term, want.detach(), rtol=1e-6, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(slope[number], slopes[number], rtol=1e-6, atol=1e-30)
    assert slope[~number].count_nonzero() == (~number).sum()  # so that the gradient of a NaN distance shows


def outcomes(loss, arguments, device, dtype, monkeypatch, composed):
    """A loss and its gradients, by kernels that close it or composed of distances."""
    with monkeypatch.context() as patch, poisoned_memory():
        if composed:
            patch.setattr(ops, "closes", lambda *_: False)
        tensors = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
        for name, v in tensors.items():
            if isinstance(v, torch.Tensor) and v.is_floating_point():
                tensors[name] = v.to(dtype if v.dim() else torch.float32, copy=True).requires_grad_()
        value = loss(**tensors)
        value.backward(torch.tensor(3.0, device=device))
    return [value.detach(), *(v.grad for v in tensors.values() if isinstance(v, torch.Tensor) and v.requires_grad)]


def assert_same(loss, arguments, device, dtype, monkeypatch):
    ours, composed = (outcomes(loss, arguments, device, dtype, monkeypatch, how) for how in (False, True))
    assert any(v.count_nonzero() for v in composed)
    for found, want in zip(ours, composed, strict=True):
        assert (found.shape, found.dtype) == (want.shape, want.dtype)
        size = float(want.double().abs().nan_to_num(0.0).max())
        atol = (ATOL[torch.float32] + 2 * rounding(want.dtype)) * size
        torch.testing.assert_close(found, want, rtol=0.0, atol=atol, equal_nan=True)


# Pairs that are scanned, pairs that are sorted, splits whose parts are merged in blocks; with the N, M and D of each.
WAYS = {"default": (11, 9, 7), "small": (19, 9, 37), "split": (11, 35, 5)}
AXES = dict(
    metric=METRICS, soft=(False, True), positives=("hardest", "easiest"), reduction=("mean", "sum", "active"),
    negatives=("hardest", "easiest", "semihard"), refs=("self", "refs", "among"), ignored=IGNORED,
    learned=(False, True), plan=tuple(WAYS), dtype=(torch.float32, torch.float16, torch.bfloat16),
)  # fmt: skip


@pytest.mark.parametrize("case", covering(AXES, 2), ids=lambda case: "-".join(map(named, case.values())))
def test_closed_triplets_equal_composed_ones(case, monkeypatch):
    N, M, D = WAYS[case["plan"]]
    (x, labels), (y, ref_labels) = batch(N, D, classes=3), batch(M, D, classes=3, seed=1)
    arguments = dict(embeddings=x, labels=labels, **references(case["refs"], x, labels, y, ref_labels))
    arguments = ignoring(case["ignored"], arguments)
    options = {name: case[name] for name in ("metric", "positives", "negatives", "reduction")}
    margin = 5.0 if case["negatives"] == "easiest" else 0.3  # some triplets cost something
    options |= dict(margin=torch.tensor(margin) if case["learned"] else margin, soft_margin=case["soft"])
    with running("triton", case["plan"]) as device:
        assert_same(fusedloss.batch_hard_triplet_loss, arguments | options, device, case["dtype"], monkeypatch)


@pytest.mark.parametrize("plan", ["default", "small"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("loss", "dtype"), [(fusedloss.center_loss, torch.bfloat16), (fusedloss.island_loss, torch.float32)]
)
def test_closed_losses_of_centers_equal_composed_ones(loss, dtype, reduction, plan, monkeypatch):
    N, _, D = WAYS[plan]
    (x, target), centers = batch(N, D, classes=3), batch(7, D, seed=1)[0]
    ignored = 1 if plan == "small" else None
    arguments = dict(embeddings=x, centers=centers, target=target, reduction=reduction, ignore_index=ignored)
    with running("triton", plan) as device:
        assert_same(loss, arguments, device, dtype, monkeypatch)


LABELS = {
    "one class": torch.zeros(9, dtype=torch.int64),
    "all different": torch.arange(9),
    "no rows": torch.zeros(0, dtype=torch.int64),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("negatives", ["hardest", "semihard"])
@pytest.mark.parametrize("refs", [None, 0, 3])
def test_without_a_triplet_the_loss_and_its_gradients_are_zero(device, labels, negatives, refs):
    if refs == 3 and labels == "all different":
        pytest.skip("there are triplets")
    of = LABELS[labels].to(device)
    rows = [torch.randn(n, 4, device=device, requires_grad=True) for n in (len(of), refs) if n is not None]
    given = [] if refs is None else [rows[1], torch.zeros(refs, dtype=torch.int64, device=device)]
    margin = torch.tensor(0.5, device=device, requires_grad=True)
    with poisoned_memory():
        loss = fusedloss.batch_hard_triplet_loss(rows[0], of, *given, margin=margin, negatives=negatives)
        loss.backward()
    assert loss == 0 and loss.shape == () and margin.grad == 0
    assert all(v.grad.shape == v.shape and not v.grad.count_nonzero() for v in rows)


@pytest.mark.parametrize("plan", ["default", "small"])
def test_a_row_in_many_pairs_gets_all_of_their_gradients_and_ties_go_to_the_lowest(plan, monkeypatch):
    """Equal rows, all of which mine the first row of another class; a gradient is 0 at distance 0, so of squares."""
    x = torch.ones(22, 5)
    x[0] = 1.5
    labels = torch.arange(22) % 2
    arguments = dict(embeddings=x, labels=labels, metric="sqeuclidean", margin=9.0)
    with running("triton", plan) as device:
        assert_same(fusedloss.batch_hard_triplet_loss, arguments, device, torch.float32, monkeypatch)
        found = fusedloss.hardest_pairs(x.to(device), labels.to(device))
        assert found.negative_index[1::2].tolist() == [2] * 11 and found.positive_index[2::2].tolist() == [0] * 10


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "active"])
def test_a_row_of_nan_shows_in_the_loss_and_in_its_gradient(device, soft, reduction):
    x, labels = batch(9, 4, classes=2)
    x[3] = torch.nan
    leaf = x.float().to(device).requires_grad_()
    loss = fusedloss.batch_hard_triplet_loss(leaf, labels.to(device), soft_margin=soft, reduction=reduction)
    loss.backward()
    assert loss.isnan() and leaf.grad[3].isnan().all()


def test_a_class_out_of_range_is_nan_where_it_cannot_be_read(device):
    x, centers = (batch(n, 4)[0].float().to(device).requires_grad_() for n in (5, 3))
    index = torch.tensor([0, 2, -2, 1, -1], device=device)  # as checks.class_indices marks them: wrong, ignored
    loss = ops.to_centers(x, centers, index, "mean")
    loss.backward()
    assert loss.isnan() and x.grad.isfinite().all() and centers.grad.isfinite().all()
    assert not x.grad[[2, 4]].count_nonzero()
    torch.testing.assert_close(x.grad[0], (x[0] - centers[0]).detach() / 3)


def test_kernels_give_the_same_bits_again(monkeypatch):
    x, labels = batch(11, 37, classes=3)
    for plan in ("default", "small"):
        with running("triton", plan) as device:
            given = fusedloss.batch_hard_triplet_loss, dict(embeddings=x, labels=labels), device, torch.float32
            found = [outcomes(*given, monkeypatch, False) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_transforms_of_torch_func_equal_autograd(device):
    x, labels = (t.to(device) for t in batch(9, 4, classes=2))
    batches = torch.stack([x.float(), x.float().flip(0)])

    def loss(x):
        return fusedloss.batch_hard_triplet_loss(x, labels, margin=1.0)

    found = vmap(grad(loss))(batches)
    leaves = [x.clone().requires_grad_() for x in batches]
    want = [torch.autograd.grad(loss(x), x)[0] for x in leaves]
    with pytest.raises(RuntimeError, match="double backward"):
        (dx,) = torch.autograd.grad(loss(leaves[0]), leaves[0], create_graph=True)
        dx.sum().backward()
    assert all(map(torch.equal, found, want))


# Beside the operators of mining's preparation (a box, and from 4,097 rows on a sort and two searches) and the 1 that
# is the derivative of the loss: nothing, and from 16,384 rows on a sort and a search of the pairs.
LAUNCHES = {
    ("batch_hard_triplet_loss", "hardest", 4096): (5, 3), ("batch_hard_triplet_loss", "hardest", 65_536): (5, 9),
    ("batch_hard_triplet_loss", "semihard", 4096): (6, 3), ("batch_hard_triplet_loss", "semihard", 65_536): (6, 9),
    ("center_loss", "", 4096): (4, 6), ("center_loss", "", 65_536): (4, 9),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "negatives", "N"), LAUNCHES)
@pytest.mark.parametrize("dtype", ["bf16", *in_full("fp32")])
def test_a_step_has_few_launches(loss, negatives, N, dtype):
    options = (("negatives", negatives),) * bool(negatives)
    found = footprint(Workload(loss, N, 128, dtype, options=options, classes=8192), "sm_90")
    kernels, operators = LAUNCHES[loss, negatives, N]
    assert found.kernels == kernels and found.operators <= operators


def test_pairs_are_sorted_from_so_many_rows_on(monkeypatch):
    assert configs.SORT_PAIRS_FROM == 16_384 * 2 * 16_384
    few, many = (footprint(Workload("batch_hard_triplet_loss", N, 64, "bf16"), "sm_90") for N in (16_383, 16_384))
    assert few.operators == many.operators - 3


COMPILE = """
import json, sys
from fusedloss.tools.compiling import compile_source, source, target
from fusedloss.tools.report import launches
from fusedloss.tools.workloads import Workload

OURS = ("close_triplets", "close_pairs", "reduce_terms", "gather_grad")
smooth = (("soft_margin", True), ("metric", "cosine"))
of = [Workload("batch_hard_triplet_loss", N, 256, "bf16", options=smooth) for N in (4096, 65536)]
of += [Workload("center_loss", 4096, 256, "fp32")]
codes = {source(launch) for work in of for launch in launches(work, "sm_90")}
made = [(code.kernel.name, compile_source(code, target("sm_90"))) for code in codes if code.kernel.name in OURS]
json.dump([(name, found.get("error"), found.get("spills")) for name, found in made], sys.stdout)
"""


def test_its_kernels_compile_without_spills():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name for name, *_ in found} == {"close_triplets", "close_pairs", "reduce_terms", "gather_grad"}
    assert not [row for row in found if row[1] is not None or row[2]]
