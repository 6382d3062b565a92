"""Given, listed and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, rows
from ..request import ListedDistances, ListedDistancesGrad, MinedGrad, RowDistances, RowDistancesGrad
from .launch import Launch, cdiv


def blocks() -> dict[str, int]:
    """The options of kernels whose programs have a block of rows each."""
    return dict(BM=configs.ROWS_PER_PROGRAM, BD=configs.ROW_CHUNK, num_warps=4)


def row_distances(r: RowDistances) -> Tensor:
    N, D = r.a.shape
    out = torch.empty(r.pairs, N, dtype=torch.float32, device=r.a.device)
    args = (r.a, r.b, r.b if r.c is None else r.c, r.a, r.a, r.a, out, N, D, r.eps)
    options = dict(METRIC=r.metric, PAIRS=r.pairs, INDEXED="") | blocks()
    Launch(rows.row_distances, (cdiv(N, configs.ROWS_PER_PROGRAM),), args, options).run()
    return out


def row_distances_grad(g: RowDistancesGrad) -> tuple[Tensor, ...]:
    a, b, c, metric, eps, pairs = g.forward
    grads = torch.empty_like(a), torch.empty_like(b), a.new_empty(0) if c is None else torch.empty_like(c)
    args = (a, b, b if c is None else c, g.ddistances, *grads, *a.shape, eps)
    options = dict(METRIC=metric, PAIRS=pairs) | blocks()
    Launch(rows.row_distances_grad, (cdiv(len(a), configs.ROWS_PER_PROGRAM),), args, options).run()
    return grads


def of_listed(of: ListedDistances) -> tuple[tuple[Tensor, ...], dict[str, Any], int]:
    """The rows (a, b, c) of listed pairs and their indices, as kernels take them, their options, and the grid."""
    x, y, anchors, others, metric = of
    refs = x if y is None else y
    index = (others if anchors is None else anchors, others[0], others[-1])
    options = dict(METRIC=metric, PAIRS=len(others), INDEXED="others" if anchors is None else "all") | blocks()
    return (x, refs, refs, *index), options, cdiv(others.shape[1], configs.ROWS_PER_PROGRAM)


def listed_distances(of: ListedDistances) -> Tensor:
    out = torch.empty(of.others.shape, dtype=torch.float32, device=of.x.device)
    given, options, grid = of_listed(of)
    Launch(rows.row_distances, (grid,), (*given, out, out.shape[1], of.x.shape[1], 0.0), options).run()
    return out


def listed_distances_grad(g: ListedDistancesGrad) -> tuple[Tensor, Tensor]:
    x, y, anchors, others, metric = g.forward
    # alphas, betas of the ends, betas of the anchors
    slopes = torch.empty(3, *others.shape, dtype=torch.float32, device=x.device)
    given, options, grid = of_listed(g.forward)
    Launch(rows.row_slopes, (grid,), (*given, g.ddistances, slopes, others.shape[1], x.shape[1]), options).run()
    if anchors is None:
        return pulled_both_ways(x, y, others, slopes, metric, (), g.want_x, g.want_y)
    (ends,), nothing = others, x.new_empty(0)
    alpha, of_ends, of_anchors = slopes.flatten(1)
    if y is None:
        either, opposite = torch.cat([anchors, ends]), torch.cat([ends, anchors])
        pairs = Pairs(either, torch.cat([alpha, alpha]), torch.cat([of_anchors, of_ends]), opposite)
        return gather_grad(x, x, pairs, metric), nothing
    dx = gather_grad(x, y, Pairs(anchors, alpha, of_anchors, ends), metric) if g.want_x else nothing
    return dx, gather_grad(y, x, Pairs(ends, alpha, of_ends, anchors), metric) if g.want_y else nothing


def mined_grad(g: MinedGrad) -> tuple[Tensor, Tensor]:
    return pulled_both_ways(
        g.x, g.y, g.others, g.slopes, g.metric, (g.dloss.reshape(1), g.factors), g.want_x, g.want_y
    )  # fmt: skip


class Pairs(NamedTuple):
    """Pairs of rows on one side, as `kernels.rows.gather_grad` takes them."""

    rows: Tensor  # the row of this side, negative for none; [K, N] or [P]
    alpha: Tensor
    beta: Tensor
    ends: Tensor | None = None  # the row of the other side; None: pair e is of row e % N
    own: Tensor | None = None  # the betas of the rows of this side as anchors of these very pairs


def pulled_both_ways(
    x: Tensor, y: Tensor | None, index: Tensor, slopes: Tensor, metric: str, factors: tuple[Tensor, ...],
    want_x: bool, want_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dy of mined pairs with their index [K, N] and slopes [3, K, N]; empty where not wanted."""
    (alpha, of_ends, of_anchors), nothing = slopes, x.new_empty(0)
    if y is None:
        return gather_grad(x, x, Pairs(index, alpha, of_ends, own=of_anchors), metric, factors), nothing
    own = Pairs(index, alpha, of_anchors, own=of_anchors)
    dx = gather_grad(x, y, own, metric, factors, of_others=False) if want_x else nothing
    return dx, gather_grad(y, x, Pairs(index, alpha, of_ends), metric, factors) if want_y else nothing


def gather_grad(
    rows_of: Tensor, others: Tensor, pairs: Pairs, metric: str, factors: tuple[Tensor, ...] = (), *,
    of_others: bool = True,
) -> Tensor:  # fmt: skip
    """The gradient by the rows of one side from their pairs with others, if `of_others`, and from their own pairs."""
    (M, D), P, N = rows_of.shape, pairs.rows.numel(), pairs.rows.shape[-1]
    out = torch.empty(M, D, dtype=rows_of.dtype, device=rows_of.device)
    walk = "" if not of_others else "scan" if M * P < configs.SORT_PAIRS_FROM else "runs"
    entries, starts = runs(pairs.rows, M) if walk == "runs" else (pairs.rows, pairs.rows)
    ends, own = (pairs.rows if pairs.ends is None else pairs.ends), (pairs.beta if pairs.own is None else pairs.own)
    options = dict(METRIC=metric, OWN=0 if pairs.own is None else len(pairs.rows), OTHERS=walk)
    BD = min(configs.ROW_CHUNK, max(16, 1 << (D - 1).bit_length()))  # a wider chunk would be masked
    options |= dict(LISTED=pairs.ends is not None, SCANNED=configs.SCANNED, BE=configs.ENTRIES, BD=BD)
    args = (others, rows_of, pairs.rows, entries, starts, ends, pairs.alpha, pairs.beta, own, factors, out, N, P, D)
    grid = (M, cdiv(D, BD))
    Launch(rows.gather_grad, grid, args, options | dict(num_warps=4 if walk == "runs" else 1)).run()
    return out


def runs(index: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """The order of the pairs by row, those without a row first, and where the run of each row begins [M + 1]."""
    found, entries = index.flatten().sort(stable=True)
    return entries, torch.searchsorted(found, torch.arange(M + 1, dtype=found.dtype, device=index.device))
