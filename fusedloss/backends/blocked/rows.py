"""Given, listed and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..dtypes import loss_dtype
from ..request import ListedDistances, ListedDistancesGrad, RowDistances, RowDistancesGrad
from . import listed
from .parallel import Tasks, single_threaded, spread
from .tiles import inverse_norm, slices, widen

ELEMENTS = (1 << 15) - 1  # of a block of rows; from 1 << 15 on, index_put_ uses threads and adds in any order


def pair_distance(a: Tensor, b: Tensor, metric: str, eps: float) -> Tensor:
    """The distances d(a_i, b_i), or the similarities. [N]"""
    if metric == "dot":
        return (a * b).sum(1)
    if metric in ("cosine", "similarity"):
        cos = (a * b).sum(1) * (inverse_norm(a) * inverse_norm(b))[:, 0]
        return cos if metric == "similarity" else 1 - cos
    diff = a - b + eps
    if metric == "manhattan":
        return diff.abs().sum(1)
    s = diff.square().sum(1)
    return s.sqrt() if metric == "euclidean" else s


def pair_grad(a: Tensor, b: Tensor, g: Tensor, metric: str, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i g_i d(a_i, b_i) by a and by b. [N, D]"""
    g = g[:, None]
    if metric == "dot":
        return g * b, g * a
    if metric in ("cosine", "similarity"):
        g = -g if metric == "similarity" else g
        ra, rb = inverse_norm(a), inverse_norm(b)
        cross = -g * (ra * rb)
        cos = (a * b).sum(1, keepdim=True) * (ra * rb)
        own_a, own_b = (g * cos * r.square().where(r < 9.9e7, r.new_zeros(())) for r in (ra, rb))
        return cross * b + own_a * a, cross * a + own_b * b
    diff = a - b + eps
    if metric == "manhattan":
        da = g * diff.sign()
    elif metric == "sqeuclidean":
        da = 2 * g * diff
    else:
        inverse = diff.square().sum(1, keepdim=True).rsqrt_().nan_to_num_(nan=float("nan"), posinf=0.0)
        da = g * inverse * diff
    return da, -da


PAIRS = [(0, 1), (0, 2), (1, 2)]  # the ends of each distance of (a, b, c)


@single_threaded(lambda r: r.a)
def row_distances(r: RowDistances) -> Tensor:
    given = [t for t in (r.a, r.b, r.c) if t is not None]
    found = torch.empty(r.pairs, len(r.a), dtype=loss_dtype(r.a), device=r.a.device)

    def of_rows(n: slice) -> None:
        ends = [widen(t[n]) for t in given]
        for k, (i, j) in enumerate(PAIRS[: r.pairs]):
            found[k, n] = pair_distance(ends[i], ends[j], r.metric, r.eps)

    by_rows(r.a, of_rows)
    return found


@single_threaded(lambda g: g.forward.a)
def row_distances_grad(g: RowDistancesGrad) -> tuple[Tensor, ...]:
    a, b, c, metric, eps, pairs = g.forward
    given = [t for t in (a, b, c) if t is not None]
    grads = [torch.empty_like(t) for t in given]

    def of_rows(n: slice) -> None:
        ends, parts = [widen(t[n]) for t in given], dict[int, Tensor]()
        for d, (i, j) in zip(g.ddistances, PAIRS[:pairs], strict=True):
            for end, part in zip((i, j), pair_grad(ends[i], ends[j], d[n], metric, eps), strict=True):
                parts[end] = parts[end].add_(part) if end in parts else part
        for grad, part in zip(grads, (parts[k] for k in sorted(parts)), strict=True):
            grad[n] = part

    by_rows(a, of_rows)
    return *grads, *([a.new_empty(0)] if c is None else [])


def met(of: ListedDistances) -> Tensor:
    """A tensor that takes no memory, with as many elements as the anchors of all pairs have together."""
    return of.others[0, :, None].expand(-1, of.x.shape[1])


@single_threaded(met)
def listed_distances(of: ListedDistances) -> Tensor:
    x, refs = of.x, of.x if of.y is None else of.y
    found = torch.full(of.others.shape, torch.nan, dtype=loss_dtype(x), device=x.device)
    if listed.are_many(of):
        listed.distances(of, found)
        return found

    def of_pairs(n: slice) -> None:
        a = anchors_of(of, n)
        for k, at, none in there(of, n):
            d = pair_distance(a, widen(refs.index_select(0, at)), of.metric, 0.0)
            found[k, n] = d if none is None else d.masked_fill_(none, torch.nan)

    if len(refs):
        by_rows(met(of), of_pairs)
    return found


def anchors_of(of: ListedDistances, n: slice) -> Tensor:
    return widen(of.x[n] if of.anchors is None else of.x.index_select(0, of.anchors[n]))


def there(of: ListedDistances, n: slice) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The pairs of some anchors: the row of `others`, the other rows of the pairs, and for mined pairs where there are
    none. A row of `others` without any mined pair is left out where looking needs no sync."""
    for k, at in enumerate(of.others[:, n]):
        none = at < 0 if of.anchors is None else None
        if none is None:
            yield k, at, None
        elif at.device.type != "cpu" or not bool(none.all()):
            yield k, at.clamp(min=0), none


@single_threaded(lambda g: met(g.forward))
def listed_distances_grad(g: ListedDistancesGrad) -> tuple[Tensor, Tensor]:
    of, x, y = g.forward, g.forward.x, g.forward.y
    refs = x if y is None else y
    if listed.are_many(of):
        dx, dy = listed.gradients(g)
        return in_dtypes(g, dx + dy if y is None else dx, dy)
    dx = torch.zeros_like(x, dtype=loss_dtype(x))
    dy = dx if y is None else torch.zeros_like(refs, dtype=dx.dtype)
    tasks = Tasks()
    blocks = row_blocks(met(of)) if len(refs) else []

    def of_pairs(b: int) -> None:
        n, found = blocks[b], []
        a = anchors_of(of, n)
        for k, at, none in there(of, n):
            d = g.ddistances[k, n]
            d = d if none is None else d.masked_fill(none, 0.0)
            di, dj = pair_grad(a, widen(refs.index_select(0, at)), d, of.metric, 0.0)
            found.append((at, di, dj if none is None else dj.masked_fill_(none[:, None], 0.0)))
        with tasks.turn(0, b):
            for at, di, dj in found:
                if of.anchors is None:
                    dx[n] += di
                elif g.want_x:
                    dx.index_put_((of.anchors[n],), di, accumulate=True)
                if y is None or g.want_y:
                    dy.index_put_((at,), dj, accumulate=True)

    tasks.run(len(blocks), of_pairs)
    return in_dtypes(g, dx, dy)


def in_dtypes(g: ListedDistancesGrad, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted gradients in the dtypes of the rows; dx is that of both sides if there is one set of rows."""
    x, y = g.forward.x, g.forward.y
    nothing = x.new_empty(0)
    return dx.to(x.dtype) if g.want_x else nothing, dy.to(y.dtype) if y is not None and g.want_y else nothing


def row_blocks(x: Tensor) -> list[slice]:
    return slices(x.shape[0], max(1, ELEMENTS // x.shape[1]))


def by_rows(x: Tensor, task: Callable[[slice], None]) -> None:
    blocks = row_blocks(x)
    spread(len(blocks), lambda i: task(blocks[i]))
