"""Given and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import configs, rows
from .common import Launch, cdiv


def row_launch(
    kernel: Any, ends: tuple[Tensor, ...], indices: tuple[Tensor, Tensor] | None, outs: tuple[Tensor, ...], metric: str,
    eps: float, pairs: int,
) -> Launch:  # fmt: skip
    a = ends[0]
    N, D = a.shape
    b_index, c_index = indices if indices else (a, a)
    options = dict(
        METRIC=metric, PAIRS=pairs, INDEXED=indices is not None, BM=configs.ROWS_PER_PROGRAM, BD=configs.ROW_CHUNK
    )
    args = (*ends, b_index, c_index, *outs, N, D, eps)
    return Launch(kernel, (cdiv(N, configs.ROWS_PER_PROGRAM),), args, options | dict(num_warps=4))


def row_distances(a: Tensor, b: Tensor, c: Tensor | None, metric: str, eps: float, pairs: int) -> Tensor:
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N] float32"""
    out = torch.empty(pairs, len(a), dtype=torch.float32, device=a.device)
    row_launch(rows.row_distances, (a, b, b if c is None else c), None, (out,), metric, eps, pairs).run()
    return out


def row_distances_grad(
    a: Tensor, b: Tensor, c: Tensor | None, dout: Tensor, metric: str, eps: float, pairs: int
) -> tuple[Tensor, ...]:
    """da, db, dc; dc is empty without c."""
    da, db, dc = torch.empty_like(a), torch.empty_like(b), a.new_empty(0) if c is None else torch.empty_like(c)
    ends = (a, b, b if c is None else c)
    row_launch(rows.row_distances_grad, ends, None, (dout, da, db, dc), metric, eps, pairs).run()
    return da, db, dc


def mined_distances(x: Tensor, y: Tensor | None, index: Tensor, metric: str) -> Tensor:
    """Exact distances of x_i to y[index[0, i]] and y[index[1, i]], NaN for index -1. [2, N] float32"""
    refs = x if y is None else y
    out = torch.empty(2, len(x), dtype=torch.float32, device=x.device)
    row_launch(rows.row_distances, (x, refs, refs), tuple(index), (out,), metric, 0.0, 2).run()
    return out


def mined_distances_grad(
    x: Tensor, y: Tensor | None, index: Tensor, dout: Tensor, metric: str, want_y: bool
) -> tuple[Tensor, Tensor]:
    """dx, and dy if wanted: an O(N D) gather over the anchors that mined each row."""
    refs = x if y is None else y
    slopes = torch.empty(4, len(x), dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x, dtype=torch.float32 if y is None else x.dtype)
    outs = (dout, dx, slopes, slopes)
    row_launch(rows.row_distances_grad, (x, refs, refs), tuple(index), outs, metric, 0.0, 2).run()
    if y is not None and not want_y:
        return dx, x.new_empty(0)
    dy = torch.empty_like(refs)
    entries, starts = mined_runs(index, len(refs))
    gather_launch(x, refs, entries, starts, slopes, dx, dy, metric, y is None).run()
    return (dy, x.new_empty(0)) if y is None else (dx, dy)


def mined_runs(index: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """The mined pairs ordered by the row they mined [2N], and where each row's run begins [M + 1]."""
    flat = index.reshape(-1)
    mined, entries = torch.where(flat < 0, M, flat).sort(stable=True)
    return entries, torch.searchsorted(mined, torch.arange(M + 1, device=index.device))


def gather_launch(
    x: Tensor,
    y: Tensor,
    entries: Tensor,
    starts: Tensor,
    slopes: Tensor,
    base: Tensor,
    out: Tensor,
    metric: str,
    add: bool,
) -> Launch:
    (M, D), N = y.shape, len(x)
    options = dict(METRIC=metric, ADD=add, BE=configs.ENTRIES, BD=configs.ROW_CHUNK, num_warps=4)
    grid = (M, cdiv(D, configs.ROW_CHUNK))
    return Launch(rows.gather_grad, grid, (x, y, entries, starts, slopes, base, out, N, D), options)
