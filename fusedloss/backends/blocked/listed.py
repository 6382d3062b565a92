"""Listed pairs that are a large share of all pairs: their scores come from products of blocks of rows, in float64.

A small distance, of which a product loses digits, is computed from the rows themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..moving import MOVED
from ..request import ListedDistances, ListedDistancesGrad
from .parallel import Tasks
from .tiles import inverse_norm, slices

SHARE = 32  # if one pair in so many is listed, or more, whole tiles cost less than the rows of single pairs
TILE = 1 << 20  # scores of a block of anchors
LOST = 1e-8  # a squared distance below this share of the squared lengths has too few digits in a product


def are_many(of: ListedDistances) -> bool:
    """Whether the listed pairs are that many; False unless the rows are on a CPU, finite and of at most 32 bits."""
    x, y = of.x, of.x if of.y is None else of.y
    if of.anchors is None or of.metric == "manhattan" or x.device.type != "cpu" or x.element_size() == 8:
        return False
    many = of.anchors.shape[0] * SHARE > x.shape[0] * y.shape[0] > 0
    return many and bool(x.isfinite().all() and y.isfinite().all())


class Sides(NamedTuple):
    """Both sides in float64, as the products need them: scaled to length 1, or centered on the mean of all rows."""

    x: Tensor
    y: Tensor
    x_scale: Tensor | None  # the inverse lengths [N, 1], if the rows are scaled to length 1
    y_scale: Tensor | None


def sides(of: ListedDistances) -> Sides:
    x, y = of.x.double(), of.x.double() if of.y is None else of.y.double()
    if of.metric in ("similarity", "cosine"):
        x_scale, y_scale = inverse_norm(x), inverse_norm(y)
        return Sides(x * x_scale, y * y_scale, x_scale, y_scale)
    middle = (x.sum(0) + y.sum(0)) / (x.shape[0] + y.shape[0]) if of.metric in MOVED else 0.0
    return Sides(x - middle, y - middle, None, None)


class Block(NamedTuple):
    """A block of anchors, and their pairs."""

    rows: slice
    pairs: Tensor  # their numbers in the list
    anchors: Tensor  # their rows, from the first of the block on
    others: Tensor


def blocks(of: ListedDistances, M: int) -> list[Block]:
    assert of.anchors is not None
    known, order = of.anchors, torch.arange(of.anchors.shape[0])
    if not bool((known.diff() >= 0).all()):
        known, order = known.sort(stable=True)
    found, rows = [], slices(of.x.shape[0], max(1, TILE // M))
    edges = torch.searchsorted(known, torch.tensor([n.start for n in rows] + [of.x.shape[0]])).tolist()
    for n, first, last in zip(rows, edges[:-1], edges[1:], strict=True):
        pairs = order[first:last]
        found.append(Block(n, pairs, known[first:last] - n.start, of.others[0].index_select(0, pairs)))
    return found


def scores(of: ListedDistances, s: Sides, b: Block) -> Tensor:
    """The products of a block's pairs, or their squared distances. [pairs]"""
    x = s.x[b.rows]
    found = (x @ s.y.T)[b.anchors, b.others]
    if of.metric not in MOVED:
        return found
    lengths = x.square().sum(1)[b.anchors] + s.y.square().sum(1)[b.others]
    squares = lengths - 2 * found
    lost = (squares < LOST * lengths).nonzero()[:, 0]
    differences = x[b.anchors[lost]] - s.y[b.others[lost]]
    return squares.index_put((lost,), differences.square().sum(1))


def distances(of: ListedDistances, found: Tensor) -> None:
    """Write the distances into `found` [1, P]."""
    s = sides(of)
    tasks, parts = Tasks(), blocks(of, s.y.shape[0])

    def of_block(i: int) -> None:
        d = scores(of, s, parts[i])
        d = d.sqrt() if of.metric == "euclidean" else 1 - d if of.metric == "cosine" else d
        found[0].index_copy_(0, parts[i].pairs, d.to(found.dtype))

    tasks.run(len(parts), of_block)


def gradients(g: ListedDistancesGrad) -> tuple[Tensor, Tensor]:
    """The gradients by the anchors and by the other rows (zeros if not wanted), in float64."""
    of, s = g.forward, sides(g.forward)
    dx, dy = torch.zeros_like(s.x), torch.zeros_like(s.y)
    want_others = of.y is None or g.want_y
    tasks, parts = Tasks(), blocks(of, s.y.shape[0])

    def of_block(i: int) -> None:
        b, x = parts[i], s.x[parts[i].rows]
        slopes = g.ddistances[0].index_select(0, b.pairs).double()
        if of.metric == "euclidean":
            d = scores(of, s, b).sqrt()
            slopes = torch.where(d > 0, slopes / (2 * d).where(d > 0, 1.0), 0.0)  # by the squared distance
        elif of.metric == "cosine":
            slopes = -slopes
        weights = slopes.new_zeros(x.shape[0] * s.y.shape[0])
        weights = weights.index_add_(0, b.anchors * s.y.shape[0] + b.others, slopes).view(x.shape[0], -1)
        dx[b.rows] = pulled(of.metric, x, s.y, weights)
        of_others = pulled(of.metric, s.y, x, weights.T) if want_others else None
        with tasks.turn(0, i):
            if of_others is not None:
                dy.add_(of_others)

    tasks.run(len(parts), of_block)
    return of_rows(dx, s.x, s.x_scale), of_rows(dy, s.y, s.y_scale)


def pulled(metric: str, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The gradient by rows x of the weighted sum of products, or of squared distances."""
    if metric not in MOVED:
        return weights @ y
    return 2 * (weights.sum(1, keepdim=True) * x - weights @ y)


def of_rows(d: Tensor, unit: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient by rows from that by rows of length 1; rows shorter than 1e-8 were divided by that constant."""
    if scale is None:
        return d
    along = ((d * unit).sum(1, keepdim=True) * unit).where(scale < 9.9e7, 0.0)
    return (d - along) * scale
