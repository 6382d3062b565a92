"""Given, listed and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels import configs, rows
from ..request import ListedDistances, ListedDistancesGrad, RowDistances, RowDistancesGrad
from .launch import Launch, cdiv


def launch(kernel: Any, r: RowDistances, anchors: Tensor | None, others: Tensor | None, *outs: Tensor) -> None:
    """Launch a kernel on rows (a_i, b_i, c_i), or on the rows of b and c with the indices `others` [pairs, N] and those
    of a with the indices `anchors` [N]."""
    D = r.a.shape[1]
    N = r.a.shape[0] if others is None else others.shape[1]
    indexed = "" if others is None else "others" if anchors is None else "all"
    index = (r.a if anchors is None else anchors, *((r.a,) if others is None else others))
    BM, BD = configs.ROWS_PER_PROGRAM, configs.ROW_CHUNK
    options = dict(METRIC=r.metric, PAIRS=r.pairs, INDEXED=indexed, BM=BM, BD=BD, num_warps=4)
    args = (r.a, r.b, r.b if r.c is None else r.c, *index[:2], index[-1], *outs, N, D, r.eps)
    Launch(kernel, (cdiv(N, BM),), args, options).run()


def row_distances(r: RowDistances) -> Tensor:
    out = torch.empty(r.pairs, len(r.a), dtype=torch.float32, device=r.a.device)
    launch(rows.row_distances, r, None, None, out)
    return out


def row_distances_grad(g: RowDistancesGrad) -> tuple[Tensor, ...]:
    a, b, c = g.forward.a, g.forward.b, g.forward.c
    grads = torch.empty_like(a), torch.empty_like(b), a.new_empty(0) if c is None else torch.empty_like(c)
    launch(rows.row_distances_grad, g.forward, None, None, g.ddistances, *grads)
    return grads


def listed(of: ListedDistances) -> RowDistances:
    y = of.x if of.y is None else of.y
    return RowDistances(of.x, y, y, of.metric, 0.0, of.others.shape[0])


def listed_distances(of: ListedDistances) -> Tensor:
    out = torch.empty(of.others.shape, dtype=torch.float32, device=of.x.device)
    launch(rows.row_distances, listed(of), of.anchors, of.others, out)
    return out


def listed_distances_grad(g: ListedDistancesGrad) -> tuple[Tensor, Tensor]:
    x, y, anchors, others, metric = g.forward
    slopes = torch.empty(2, 2, others.shape[1], dtype=torch.float32, device=x.device)  # alphas and betas
    nothing = x.new_empty(0)
    if anchors is None:
        dx = torch.empty_like(x, dtype=torch.float32 if y is None else x.dtype)
        launch(rows.row_distances_grad, listed(g.forward), None, others, g.ddistances, dx, slopes, slopes)
        if y is None:
            return gather_grad(x, x, others.flatten(), None, slopes.flatten(1), metric, dx), nothing
        dy = gather_grad(y, x, others.flatten(), None, slopes.flatten(1), metric) if g.want_y else nothing
        return dx if g.want_x else nothing, dy
    launch(rows.row_distances_grad, listed(g.forward), anchors, others, g.ddistances, nothing, slopes, slopes)
    (ends,) = others
    if y is None:
        either, opposite = torch.cat([anchors, ends]), torch.cat([ends, anchors])
        return gather_grad(x, x, either, opposite, slopes.flatten(1), metric), nothing
    dx = gather_grad(x, y, anchors, ends, slopes[:, 0], metric) if g.want_x else nothing
    return dx, gather_grad(y, x, ends, anchors, slopes[:, 1], metric) if g.want_y else nothing


def gather_grad(
    rows_of: Tensor, others: Tensor, index: Tensor, ends: Tensor | None, slopes: Tensor, metric: str,
    base: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The gradient by the rows of one side, plus a base. Pair e is of row index[e] (-1: none) with row ends[e] of the
    others or, without ends, with row e modulo their number."""
    out, (M, D) = torch.empty_like(rows_of), rows_of.shape
    entries, starts = runs(index, M)
    options = dict(METRIC=metric, LISTED=ends is not None, ADD=base is not None, BE=configs.ENTRIES)
    options |= dict(BD=configs.ROW_CHUNK, num_warps=4)
    ends, base = entries if ends is None else ends, out if base is None else base
    args = (others, rows_of, entries, starts, ends, *slopes, base, out, len(others), D)
    Launch(rows.gather_grad, (M, cdiv(D, configs.ROW_CHUNK)), args, options).run()
    return out


def runs(index: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """The order of the pairs by row, and where the run of each row begins [M + 1]."""
    found, entries = torch.where(index < 0, M, index).sort(stable=True)
    return entries, torch.searchsorted(found, torch.arange(M + 1, device=index.device))
