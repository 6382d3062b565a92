"""Gradients of rows too wide for a program: panels of weights and library products."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import fusedloss
from tests.compare import check
from tests.grid import batch, ignoring, running

pytest.importorskip("triton")

from fusedloss.backends import use_backend
from fusedloss.backends.triton import launch, panels
from fusedloss.backends.triton.launch import Product
from fusedloss.kernels import configs
from fusedloss.tools.footprint import footprint
from fusedloss.tools.report import launches
from fusedloss.tools.workloads import Workload

D = 37  # above what the tiles of `wide` hold


@contextmanager
def wide(plan, workspace=4096):
    """Gradients on panels of few rows and columns; yields the device."""
    with running("triton", plan) as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "WORKSPACE", workspace)
        patch.setattr(configs, "PANEL_ROWS", 20)
        yield device


def request(N, M, BM=16, BN=32):
    chosen = SimpleNamespace(tile=configs.Tile(BM, BN, 16, 4, 1, 0))
    return panels.Request(chosen, (), {}, "dot", SimpleNamespace(n=N), SimpleNamespace(n=M), None, ())


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("pairs", [1, 600, 5000, 10**6])
@pytest.mark.parametrize(("N", "M"), [(1, 1), (40, 1000), (1000, 40), (333, 333), (16, 32), (0, 5), (5, 0)])
def test_panels_have_every_pair_once_and_fit_the_workspace(N, M, pairs, both, monkeypatch):
    monkeypatch.setattr(configs, "PANEL_ROWS", 64)
    seen = torch.zeros(N, M, dtype=torch.int64)
    for (first, stop), (low, high) in request(N, M).cuts(pairs, both):
        seen[first:stop, low:high] += 1
        assert first % 16 == 0 and low % 32 == 0, "no tile is in two panels"
        assert (stop - first) * launch.padded(high - low) <= max(pairs, 16 * 32)
    assert (seen == 1).all()


def test_panels_are_wide_or_square():
    (rows, columns), *_ = request(65_536, 65_536, 128, 128).cuts(128 << 20, False)
    assert rows == (0, 2048) and columns == (0, 65_536)
    (rows, columns), *_ = request(65_536, 65_536, 128, 128).cuts(128 << 20, True)
    assert abs(math.log(rows[1] / columns[1])) < 0.2 and rows[1] * columns[1] > 0.9 * (128 << 20)


def labelled(N=45, M=70, refs=True, ignored=None):
    (x, labels), (y, ref_labels) = batch(N, D), batch(M, D, seed=1)
    arguments = dict(embeddings=x, labels=labels)
    return ignoring(ignored, arguments | (dict(ref_embeddings=y, ref_labels=ref_labels) if refs else {}))


MARGINS = dict(pos_margin=torch.tensor(0.5), neg_margin=torch.tensor(1.5))
CASES = {
    "contrastive": (fusedloss.pairwise_contrastive_loss, labelled(refs=False) | MARGINS),
    "contrastive, references": (fusedloss.pairwise_contrastive_loss, labelled() | dict(neg_margin=1.5)),
    "ignored": (fusedloss.pairwise_contrastive_loss, labelled(ignored=1) | dict(neg_margin=1.5)),
    "supcon, ignored": (fusedloss.supcon_loss, labelled(refs=False, ignored=1)),
    "supcon": (fusedloss.supcon_loss, labelled()),
    "lifted, offsets of both sides": (fusedloss.lifted_structure_loss, labelled(refs=False)),
    "clip": (
        fusedloss.clip_loss, dict(image=batch(45, D)[0], text=batch(45, D, seed=1)[0], logit_scale=torch.tensor(5.0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("plan", ["small", "sorted"])
def test_panels_are_as_exact_as_eager(name, plan):
    loss, arguments = CASES[name]
    turn = [*CASES].index(name) + (plan == "sorted")
    with wide(plan) as device:
        check(loss, arguments, (torch.float32, torch.float16, torch.bfloat16)[turn % 3], device, roundings=2)


def cast(arguments, dtype, device):
    """The arguments, and their embeddings, which want their gradient."""
    given = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    names = [name for name in given if name.endswith("embeddings")]
    given |= {name: given[name].to(dtype, copy=True).requires_grad_() for name in names}
    return given, [given[name] for name in names]


def test_the_workspace_changes_only_the_order_of_sums_and_runs_repeat():
    loss, arguments = CASES["contrastive, references"]
    found = []
    for workspace in (1 << 20, 4096, 4096):
        with wide("sorted", workspace) as device:
            given, rows = cast(arguments, torch.float32, device)
            found.append(torch.autograd.grad(loss(**given), rows))
    for once, often, again in zip(*found, strict=True):
        torch.testing.assert_close(often, once, rtol=1e-5, atol=1e-7)
        assert torch.equal(often, again), "bit for bit"


def test_every_row_and_every_column_of_float16_has_its_own_scale():
    """Weights differ by 2^20 from row to row and, by the lengths of the columns, from column to column."""
    q, k = (batch(n, D, seed=n)[0] for n in (24, 40))
    q, k = (t / t.norm(dim=1, keepdim=True) for t in (q, k))
    k = (k * 2.0 ** -torch.linspace(0, 12, 40).round()[:, None]).half()
    upstream = 2.0 ** -torch.linspace(0, 20, 24).round()
    labels = dict(labels=torch.zeros(24, dtype=torch.int64), ref_labels=torch.ones(40, dtype=torch.int64))
    found = []
    for dtype in (torch.float16, torch.float64):
        with wide("small") as device, use_backend("triton" if dtype == torch.float16 else "blocked"):
            device = device if dtype == torch.float16 else "cpu"
            given, rows = cast(dict(embeddings=q.half(), ref_embeddings=k, **labels), dtype, device)
            loss = fusedloss.pairwise_contrastive_loss(**given, metric="cosine", neg_margin=3.0, reduction="none")
            found.append(torch.autograd.grad(loss, rows, upstream.to(loss)))
    for ours, exact in zip(*found, strict=True):
        size = exact.abs().amax(1)
        stored = size > 2.0**-14  # of float16 with all its digits
        assert stored.sum() > 10
        assert ((ours.double().cpu() - exact).abs().amax(1) / size)[stored].max() < 2**-9


def test_numbers_alone_have_their_gradient_without_a_product():
    loss, arguments = CASES["contrastive"]
    margin, found = torch.tensor(1.5, requires_grad=True), []
    for wanted in (False, True):
        made: list[None] = []
        with wide("sorted") as device, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Product, "run", lambda product, made=made, run=Product.run: made.append(run(product)))
            given, (x,) = cast(arguments | dict(neg_margin=margin), torch.float32, device)
            x.requires_grad_(wanted)
            found.append(torch.autograd.grad(loss(**given), margin)[0])
            assert bool(made) == wanted
    assert found[0] == found[1] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_shows_and_empty_batches_have_no_gradient(dtype):
    loss, arguments = CASES["contrastive, references"]
    with wide("sorted") as device:
        given, rows = cast(arguments, dtype, device)
        with torch.no_grad():
            rows[0][7] = torch.nan
        dx, dy = torch.autograd.grad(loss(**given), rows)
        assert dx[7].isnan().all() and dy.isnan().all()
        given, rows = cast(
            {k: v[:0] if k in ("embeddings", "labels") else v for k, v in arguments.items()}, dtype, device
        )
        dx, dy = torch.autograd.grad(loss(**given), rows)
        assert dx.shape == (0, D) and dy.shape == (70, D) and not dy.count_nonzero()


def test_products_add_up_in_float32():
    out = torch.ones(3, 5)
    a, b = torch.randn(4, 3).bfloat16().t(), torch.randn(4, 5).bfloat16()
    Product(out, a, b).run()
    torch.testing.assert_close(out, 1 + a.float() @ b.float())


@pytest.mark.parametrize(("loss", "sides"), [("supcon_loss", 1), ("clip_loss", 2), ("pairwise_contrastive_loss", 1)])
def test_one_panel_serves_both_sides(loss, sides):
    for N in (4096, 65_536):
        recorded = launches(Workload(loss, N, 512, "bf16"), "sm_90")
        names = [one.kernel.fn.__name__ for one in recorded]
        assert "grad" not in names and names.count("finish_rows") == sides
        count = names.count("panel")
        assert count == (1 if N == 4096 else 32 if sides == 1 else 36) and len(recorded.products) == sides * count
        flop = sum(2 * p.a.numel() * p.b.shape[1] for p in recorded.products)
        assert flop == sides * 2 * N * N * 512
    manhattan = launches(Workload("pairwise_contrastive_loss", 4096, 512, "bf16", "manhattan"), "sm_90")
    assert "grad" in [one.kernel.fn.__name__ for one in manhattan] and not manhattan.products
    narrow = launches(Workload(loss, 65_536, 256, "bf16"), "sm_90")
    assert "panel" not in [one.kernel.fn.__name__ for one in narrow] and not narrow.products


@pytest.mark.parametrize("loss", ["supcon_loss", "clip_loss", "pairwise_contrastive_loss", "lifted_structure_loss"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_memory_of_wide_rows_is_linear(loss, dtype):
    for N, wide in ((8192, 512), (65_536, 768), (262_144, 320)):
        sides = 4 if loss == "clip_loss" else 2
        peak = footprint(Workload(loss, N, wide, dtype), "sm_90").peak_bytes
        assert peak <= 16 * sides * N * wide + configs.WORKSPACE * 1.1
