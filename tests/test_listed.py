"""Distances of listed pairs, which miners give: exact as eager, in any order, without the rows of every pair."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.func import grad, vjp, vmap

from fusedloss import backends, ops, use_backend
from fusedloss.backends.blocked import listed, parallel
from fusedloss.backends.request import ListedDistances, ListedDistancesGrad
from fusedloss.reference.common import row_cosine, row_distance
from fusedloss.tools.footprint import Watch
from tests.compare import check
from tests.grid import METRICS, batch, cases, in_full, running

OF_PAIRS = (*METRICS, "similarity", "dot")


def dense(x, anchors, others, y=None, *, metric):
    a, b = x[anchors], (x if y is None else y)[others]
    if metric == "dot":
        return (a * b).sum(1)
    return row_cosine(a, b) if metric == "similarity" else row_distance(a, b, metric)


def distances(x, anchors, others, y=None, *, metric):
    return ops.listed_distances(x, y, anchors, others, metric)


LISTS = {
    "any order": lambda at, P: at,
    "sorted": lambda at, P: at.sort().values,
    "one anchor": lambda at, P: at.where(torch.arange(2)[:, None] > 0, at[0, 0]),
    "every pair three times": lambda at, P: at[:, torch.arange(P) // 3],
}


def pairs(N, M, P, order="any order", seed=0):
    """Indices of anchors and others, of which the last row of either side has none."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.stack([torch.randint(max(n - 1, 1), (P,), generator=generator) for n in (N, M)])
    return dict(zip(("anchors", "others"), LISTS[order](at, P), strict=True))


# N, M, P and D: one pair, runs below and above a block of pairs, D below, above and no multiple of a chunk, and one.
SHAPES = ((3, 2, 1, 64), (23, 11, 7, 300), (41, 37, 150, 3), (9, 7, 1000, 37), (19, 5, 61, 1))


@cases(dict(shape=SHAPES, metric=OF_PAIRS, order=tuple(LISTS), refs=(False, True)), blocked=3, triton=2)
def test_distances_and_gradients_are_as_exact_as_eager(backend, case, monkeypatch):
    N, M, P, D = case["shape"]
    of_angles = case["metric"] in ("cosine", "similarity")
    D = 3 if D == 1 and of_angles else D  # in one dimension the gradient of a cosine is 0
    refs = case["refs"] or P == 1
    given = pairs(N, M if refs else N, P, case["order"]) | dict(x=batch(N, D)[0])
    given |= dict(y=batch(M, D, seed=1)[0]) if refs else {}
    ours, eager = (partial(of, metric=case["metric"]) for of in (distances, dense))
    with running(backend, case["plan"]) as device:
        for share in (0, listed.SHARE) if backend == "blocked" else (0,):  # by their rows, and many by products
            monkeypatch.setattr(listed, "SHARE", share)
            check(ours, given, case["dtype"], device, oracle=eager)


@pytest.mark.parametrize("metric", OF_PAIRS)
@pytest.mark.parametrize("refs", [False, True])
def test_gradients_are_those_of_differences(metric, refs):
    at = pairs(7, 5 if refs else 7, 23)
    rows = [batch(N, 4, seed=seed)[0].requires_grad_() for seed, N in enumerate((7, 5)[: 1 + refs])]

    def of_rows(x, y=None):
        apart = at["anchors"] != at["others"] if y is None else slice(None)  # a distance of 0 is a kink
        return distances(x, at["anchors"][apart], at["others"][apart], y, metric=metric)

    assert torch.autograd.gradcheck(of_rows, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "M"), [(5, 4), (0, 3), (3, 0), (0, 0), (5, None), (0, None)])
def test_no_pairs_are_no_distances_and_gradients_of_zero(backend, device, N, M, dtype):
    rows = [torch.ones(n, 3, dtype=dtype, device=device, requires_grad=True) for n in (N, M) if n is not None]
    none = torch.empty(0, dtype=torch.int64, device=device)
    found = distances(rows[0], none, none, *rows[1:], metric="euclidean")
    assert found.shape == (0,) and found.dtype == torch.float32
    for v, slope in zip(rows, torch.autograd.grad(found.sum(), rows), strict=True):
        assert slope.shape == v.shape and slope.dtype == dtype and not slope.count_nonzero()


@pytest.mark.parametrize("metric", [metric for metric in OF_PAIRS if metric != "manhattan"])
def test_many_pairs_are_products_of_blocks(metric, monkeypatch):
    """Blocks of pairs are as exact as single pairs, far from the origin too, and for equal and almost equal rows."""
    monkeypatch.setattr(listed, "TILE", 90)
    x = 100 + batch(30, 6)[0].float()
    x[3], x[5] = x[4], x[6] * (1 + 1e-6)
    y = torch.cat([x[:11], batch(12, 6, seed=3)[0].float()])
    at = torch.stack([torch.randint(n, (400,)) for n in (30, 23)])
    for refs in (None, y):
        anchors, others = at[0], at[1] if refs is not None else at[1] % 30
        found = []
        for dtype, share in ((torch.float64, 0), (torch.float32, 0), (torch.float32, 32)):
            monkeypatch.setattr(listed, "SHARE", share)
            rows = [v.to(dtype).requires_grad_() for v in (x, refs) if v is not None]
            d = distances(rows[0], anchors, others, *rows[1:], metric=metric)
            found.append([d.detach(), *torch.autograd.grad(d.square().sum(), rows)])
        for exact, one_by_one, products in zip(*found, strict=True):
            bound = 1.5 * float((one_by_one - exact).abs().max()) + 1e-6 * float(exact.abs().max())
            assert float((products - exact).abs().max()) <= bound


@pytest.mark.parametrize("metric", OF_PAIRS)
@pytest.mark.parametrize("refs", [False, True])
def test_a_row_of_nan_stays_in_its_pairs(backend, device, metric, refs):
    rows = [batch(n, 5, seed=n)[0].float().to(device) for n in (9, 6)[: 1 + refs]]
    rows[0][4] = torch.nan
    rows = [v.requires_grad_() for v in rows]
    anchors, others = torch.tensor([[4, 0, 0, 1, 7, 5], [2, 1, 3, 5, 0 if refs else 4, 3]], device=device)
    met = (anchors == 4) | ((others == 4) & (not refs))
    found = distances(rows[0], anchors, others, *rows[1:], metric=metric)
    assert torch.equal(found.isnan(), met)
    slopes = torch.autograd.grad(found, rows, torch.ones_like(found))
    wanted = torch.autograd.grad(distances(rows[0], anchors[~met], others[~met], *rows[1:], metric=metric).sum(), rows)
    reached = [[4, *([] if refs else [2, 7])], [2]]
    for slope, want, rows_reached in zip(slopes, wanted, reached, strict=False):
        apart = [i for i in range(len(slope)) if i not in rows_reached]
        torch.testing.assert_close(slope[apart], want[apart])


@pytest.mark.parametrize("metric", [metric for metric in OF_PAIRS if metric != "dot"])
@pytest.mark.parametrize("refs", [False, True])
def test_rows_at_distance_zero_have_no_gradient(backend, device, metric, refs):
    rows = [torch.ones(n, 4, device=device, requires_grad=True) for n in (5, 3)[: 1 + refs]]
    at = {name: index.to(device) for name, index in pairs(5, 3, 40).items()}
    found = distances(rows[0], *at.values(), *rows[1:], metric=metric)
    assert torch.equal(found, torch.full_like(found, metric == "similarity"))
    assert all(not slope.count_nonzero() for slope in torch.autograd.grad(found.sum(), rows))


@pytest.mark.parametrize("refs", [False, True])
def test_only_wanted_gradients_are_computed(backend, device, refs):
    x, y = (batch(n, 5)[0].float().to(device) for n in (9, 6))
    at = {name: index.to(device) for name, index in pairs(9, 6, 20).items()}
    slopes = torch.ones(1, 20, device=device)
    for want_x, want_y in ((True, False), (False, True)):
        of = ListedDistances(x, y, at["anchors"], at["others"][None], "euclidean")
        dx, dy = backends.module(backend).listed_distances_grad(ListedDistancesGrad(of, slopes, want_x, want_y))
        assert (dx.shape == x.shape, dy.shape == y.shape) == (want_x, want_y) and dx.numel() * dy.numel() == 0


@pytest.mark.parametrize("plan", ["small", "default"])
@pytest.mark.parametrize("refs", [False, True])
def test_blocked_results_do_not_depend_on_the_number_of_threads(monkeypatch, refs, plan):
    monkeypatch.setattr(parallel, "INLINE", 0)
    before, found = torch.get_num_threads(), []
    P, D = (200, 7) if plan == "small" else (3000, 64)
    at = pairs(23, 11, P)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows = [batch(n, D)[0].float().requires_grad_() for n in (23, 11)[: 1 + refs]]
            with running("blocked", plan):
                value = distances(rows[0], *at.values(), *rows[1:], metric="cosine")
                value.backward(torch.arange(P) % 7 / 7)
            found.append([value, *(v.grad for v in rows)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_kernels_give_the_same_bits_again():
    found = []
    with running("triton", "default") as device:
        for _ in range(2):
            x = batch(23, 37)[0].float().to(device).requires_grad_()
            value = distances(x, *(index.to(device) for index in pairs(23, 23, 200).values()), metric="euclidean")
            value.sum().backward()
            found.append((value, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["blocked", "triton"])
@pytest.mark.parametrize("refs", [False, True])
def test_memory_is_linear_in_pairs_and_in_rows(backend, refs):
    """50 bytes per number of both sides and 150 per pair, where the rows of a pair would take 2,048."""
    N, M, P, D = 128, 64, 20_000, 256
    launch = pytest.importorskip("fusedloss.backends.triton.launch")
    rows = [torch.ones(n, D, device="meta", requires_grad=True) for n in (N, M)[: 1 + refs]]
    at = [torch.ones(P, dtype=torch.int64, device="meta") for _ in range(2)]
    with use_backend(backend), launch.recording("sm_90", kept=False), Watch([*rows, *at]) as watch:
        distances(rows[0], *at, *rows[1:], metric="cosine").sum().backward()
    assert 0 < watch.peak <= 150 * P + 50 * sum(v.numel() for v in rows)


@pytest.mark.parametrize("metric", ["euclidean", *in_full("cosine")])
@pytest.mark.parametrize("refs", [False, True])
def test_compiled_with_a_number_of_pairs_that_varies_equals_eager(backend, device, metric, refs):
    torch._dynamo.reset()
    of = partial(distances, metric=metric)
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    for N, P in ((9, 20), (11, 31)):  # the second compiles with symbolic sizes
        at = [index.to(device) for index in pairs(N, N - 2, P).values()]
        outputs = []
        for function in (compiled, of):
            rows = [batch(n, 5)[0].float().to(device).requires_grad_() for n in (N, N - 2)[: 1 + refs]]
            value = function(rows[0], *at, *rows[1:])
            outputs.append((value, *torch.autograd.grad(value.square().sum(), rows)))
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("refs", [False, True])
def test_transforms_of_torch_func_equal_autograd(backend, device, refs):
    rows = [batch(n, 5)[0].float().to(device) for n in (9, 6)[: 1 + refs]]
    at = [index.to(device) for index in pairs(9, 6, 20).values()]

    def total(*rows):
        return distances(rows[0], *at, *rows[1:], metric="euclidean").square().sum()

    def wanted(rows):
        leaves = [v.clone().requires_grad_() for v in rows]
        return torch.autograd.grad(total(*leaves), leaves)

    every = tuple(range(len(rows)))
    value, pull = vjp(total, *rows)
    assert torch.equal(value, total(*rows))
    assert all(map(torch.equal, pull(torch.ones_like(value)), wanted(rows)))
    batches = [torch.stack([v, v.flip(0)]) for v in rows]
    found = vmap(grad(total, every))(*batches)
    for i in range(2):
        assert all(torch.equal(a[i], b) for a, b in zip(found, wanted([v[i] for v in batches]), strict=True))


COMPILE = """
import json, sys
import torch
from fusedloss import ops, use_backend
from fusedloss.backends.triton.launch import recording
from fusedloss.tools.compiling import compile_source, source, target

found = []
for arch in ("sm_90", "gfx942"):
    for metric, M in (("euclidean", None), ("cosine", 999)):
        with use_backend("triton"), recording(arch) as launches:
            rows = [torch.ones(n, 256, device="meta", dtype=torch.bfloat16) for n in (4096, M) if n is not None]
            rows = [v.requires_grad_() for v in rows]
            at = torch.ones(2, 9999, dtype=torch.int64, device="meta")
            ops.listed_distances(rows[0], rows[1] if M else None, *at, metric).sum().backward()
        for code in {source(launch) for launch in launches}:
            made = compile_source(code, target(arch))
            found.append((arch, code.kernel.name, made.get("error"), made.get("spills"), made.get("registers")))
json.dump(found, sys.stdout)
"""


def test_its_kernels_compile_for_both_vendors_without_spills():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    kernels = {"row_distances", "row_slopes", "gather_grad"}
    assert {(arch, kernel) for arch, kernel, *_ in found} == {(a, k) for a in ("sm_90", "gfx942") for k in kernels}
    assert not [row for row in found if row[2] is not None or row[3]]
