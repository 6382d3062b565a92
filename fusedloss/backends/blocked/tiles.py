"""The score matrix tile by tile, and the gradient by the rows of both sides, added up from the tiles' dL/ds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...checks import Batch
from .scores import SCALED, manhattan_grad, pull, score, unit, unit_grad

BLOCK = 512  # rows and columns of a tile: 1 MiB in float32 stays in a core's L2 cache


class Side(NamedTuple):
    """One side of the score matrix in the order it is walked."""

    rows: Tensor
    squares: Tensor  # their squared lengths
    scale: Tensor | None  # by which they were scaled [N, 1]
    labels: Tensor
    order: Tensor | None
    bounds: list[tuple[int, int]] | None  # first and last label of each block, where reading them costs no sync
    ref_column: Tensor | None = None  # where each row is among those of y, if it is there (`Batch.ref_offset`) [N]

    def ordered(self, t: Tensor) -> Tensor:
        """t [..., N] in the walking order."""
        return t if self.order is None else t[..., self.order]

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """t, in the walking order, in the order of the inputs."""
        return t if self.order is None else t.new_empty(t.shape).index_copy_(dim, self.order, t)


def widen(x: Tensor) -> Tensor:
    return x if x.element_size() == 8 else x.float()


def side(x: Tensor, labels: Tensor, metric: str, sort: bool) -> Side:
    order = labels.argsort(stable=True) if sort else None
    if order is not None:
        x, labels = x[order], labels[order]
    rows, scale = unit(widen(x)) if metric in SCALED else (widen(x), None)
    bounds = None
    if sort and x.device.type == "cpu":
        last = torch.arange(BLOCK - 1, len(labels) + BLOCK - 1, BLOCK).clamp_(max=len(labels) - 1)
        bounds = list(zip(labels[::BLOCK].tolist(), labels[last].tolist(), strict=True))
    return Side(rows, rows.square().sum(1), scale, labels, order, bounds)


def sides(b: Batch, metric: str, *, sort: bool) -> tuple[Side, Side]:
    """Both sides, the same one in a self batch."""
    x = side(b.x, b.x_labels, metric, sort)
    if b.y is None:
        return x, x
    y = side(b.y, b.y_labels, metric, sort)
    if b.ref_offset is not None:
        at = y.restore(torch.arange(len(b.y), device=b.y.device), 0)  # the place of each row of y
        x = x._replace(ref_column=x.ordered(at[b.ref_offset : b.ref_offset + len(b.x)]))
    return x, y


class Tile(NamedTuple):
    r: slice
    c: slice
    s: Tensor  # scores [BM, BN]
    pos: Any  # [BM, BN] bool; None where every pair is negative, which only sorted sides show
    neg: Any
    diagonal: bool  # it holds the pairs (i, i) of a self batch, which are neither
    mirrored: bool  # a self batch walks each pair of blocks once; off the diagonal it stands for both orders


def row_tiles(x: Side, y: Side, metric: str, r: slice, first: int = 0) -> Iterator[Tile]:
    """The tiles of a block of rows, columns from `first` on."""
    for j in range(first, len(y.rows), BLOCK):
        c = slice(j, j + BLOCK)
        s = score(x.rows[r], y.rows[c], x.squares[r], y.squares[c], metric)
        diagonal, near = x is y and r == c, True  # near: the labels of the blocks say that a pair may be positive
        pos = neg = None
        if x.bounds is not None and y.bounds is not None:
            (first_x, last_x), (first_y, last_y) = x.bounds[r.start // BLOCK], y.bounds[j // BLOCK]
            near = first_x <= last_y and first_y <= last_x
        if near:
            pos = x.labels[r, None] == y.labels[c]
            neg = ~pos
            if diagonal:
                pos.fill_diagonal_(False)
            elif x.ref_column is not None:
                pos &= x.ref_column[r, None] != torch.arange(j, j + pos.shape[1], device=pos.device)
        yield Tile(r, c, s, pos, neg, diagonal, x is y and not diagonal)


def row_blocks(x: Side) -> Iterator[slice]:
    for i in range(0, len(x.rows), BLOCK):
        yield slice(i, i + BLOCK)


def tiles(x: Side, y: Side, metric: str) -> Iterator[Tile]:
    """Every tile; of a self batch only those on and above the diagonal."""
    for r in row_blocks(x):
        yield from row_tiles(x, y, metric, r, first=r.start if x is y else 0)


class Gradient:
    """What the tiles add up to on one side, if it is wanted."""

    def __init__(self, side: Side, wanted: bool) -> None:
        self.side, self.wanted = side, wanted
        self.rows = torch.zeros_like(side.rows) if wanted else side.rows
        self.own = torch.zeros_like(side.squares)  # how much of each row itself
        self.offsets = torch.zeros_like(side.squares)

    def add(self, part: slice, w: Tensor, others: Tensor, f: float) -> None:
        """The share of a tile: sum_j w_ij (y_j - f x_i)."""
        self.rows[part].addmm_(w, others)
        if f:
            self.own[part] -= w.sum(1)

    def finish(self, like: Tensor) -> Tensor:
        if not self.wanted:
            return like.new_empty(0)
        d = self.rows.addcmul_(self.own[:, None], self.side.rows)
        if self.side.scale is not None:
            d = unit_grad(d, self.side.rows, self.side.scale)
        return self.side.restore(d, 0).to(like.dtype)


def gradients(x: Side, y: Side, want_x: bool, want_y: bool) -> tuple[Gradient, Gradient]:
    """Of both sides, the same one in a self batch."""
    of_x = Gradient(x, want_x)
    return of_x, of_x if x is y else Gradient(y, want_y)


def add_tile(
    of_x: Gradient, of_y: Gradient, r: slice, c: slice, g: Tensor, s: Tensor, metric: str, columns: bool = True
) -> None:
    """Add a tile's share to its rows and, if `columns`, to its columns: from scores s and g = dL/ds, overwritten."""
    x, y = of_x.side.rows[r], of_y.side.rows[c]
    columns = columns and of_y.wanted
    if metric == "manhattan":
        if of_x.wanted:
            of_x.rows[r] += manhattan_grad(g, x, y)
        if columns:
            of_y.rows[c] += manhattan_grad(g.T, y, x)
        return
    pulls, f = pull(g, s, metric)
    if of_x.wanted:
        of_x.add(r, pulls, y, f)
    if columns:
        of_y.add(c, pulls.T, x, f)


def all_zero(g: Tensor) -> bool:
    """Whether there is nothing to add; False where reading it would be a sync."""
    if g.device.type != "cpu":
        return False
    low, high = g.aminmax()
    return bool(low == 0) and bool(high == 0)
