"""Given and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels import configs, rows
from ..request import MinedDistances, MinedDistancesGrad, RowDistances, RowDistancesGrad
from .launch import Launch, cdiv


def launch(kernel: Any, r: RowDistances, index: Tensor | None, *outs: Tensor) -> None:
    """A kernel on rows (a_i, b_i, c_i), or, if an index [2, N] is given, on a_i and the rows of b and c it names."""
    N, D = r.a.shape
    b_index, c_index = (r.a, r.a) if index is None else index
    BM, BD = configs.ROWS_PER_PROGRAM, configs.ROW_CHUNK
    options = dict(METRIC=r.metric, PAIRS=r.pairs, INDEXED=index is not None, BM=BM, BD=BD, num_warps=4)
    args = (r.a, r.b, r.b if r.c is None else r.c, b_index, c_index, *outs, N, D, r.eps)
    Launch(kernel, (cdiv(N, BM),), args, options).run()


def row_distances(r: RowDistances) -> Tensor:
    out = torch.empty(r.pairs, len(r.a), dtype=torch.float32, device=r.a.device)
    launch(rows.row_distances, r, None, out)
    return out


def row_distances_grad(g: RowDistancesGrad) -> tuple[Tensor, ...]:
    a, b, c = g.forward.a, g.forward.b, g.forward.c
    grads = torch.empty_like(a), torch.empty_like(b), a.new_empty(0) if c is None else torch.empty_like(c)
    launch(rows.row_distances_grad, g.forward, None, g.ddistances, *grads)
    return grads


def mined(m: MinedDistances) -> RowDistances:
    y = m.x if m.y is None else m.y
    return RowDistances(m.x, y, y, m.metric, 0.0, 2)


def mined_distances(m: MinedDistances) -> Tensor:
    out = torch.empty(2, len(m.x), dtype=torch.float32, device=m.x.device)
    launch(rows.row_distances, mined(m), m.mined, out)
    return out


def mined_distances_grad(g: MinedDistancesGrad) -> tuple[Tensor, Tensor]:
    x, y, index, metric = g.forward
    slopes = torch.empty(4, len(x), dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x, dtype=torch.float32 if y is None else x.dtype)
    launch(rows.row_distances_grad, mined(g.forward), index, g.ddistances, dx, slopes, slopes)
    if y is not None and not g.want_y:
        return dx, x.new_empty(0)
    refs = x if y is None else y
    dy, (M, D) = torch.empty_like(refs), refs.shape
    entries, starts = mined_runs(index, M)
    options = dict(METRIC=metric, ADD=y is None, BE=configs.ENTRIES, BD=configs.ROW_CHUNK, num_warps=4)
    args = (x, refs, entries, starts, slopes, dx, dy, len(x), D)
    Launch(rows.gather_grad, (M, cdiv(D, configs.ROW_CHUNK)), args, options).run()
    return (dy, x.new_empty(0)) if y is None else (dx, dy)


def mined_runs(index: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """The mined pairs ordered by the row they mined [2N], and where each row's run begins [M + 1]."""
    flat = index.reshape(-1)
    mined, entries = torch.where(flat < 0, M, flat).sort(stable=True)
    return entries, torch.searchsorted(mined, torch.arange(M + 1, device=index.device))
