"""The score matrix tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .scores import SCALED, score, unit

BLOCK = 512  # rows and columns of a tile: 1 MiB in float32 stays in a core's L2 cache


class Side(NamedTuple):
    """One side of the score matrix in the order it is walked."""

    rows: Tensor
    squares: Tensor  # their squared lengths
    scale: Tensor | None  # by which they were scaled [N, 1]
    labels: Tensor
    order: Tensor | None
    bounds: list[tuple[int, int]] | None  # first and last label of each block, where reading them costs no sync
    own: Tensor | None = None  # where each row itself is among the rows of the other side, if it is there [N]

    @staticmethod
    def of(x: Tensor, labels: Tensor, metric: str, sort: bool) -> Side:
        order = labels.argsort(stable=True) if sort else None
        if order is not None:
            x, labels = x[order], labels[order]
        rows, scale = unit(widen(x)) if metric in SCALED else (widen(x), None)
        bounds = None
        if sort and x.device.type == "cpu":
            bounds = [(int(b[0]), int(b[-1])) for b in (labels.split(BLOCK) if len(labels) else ())]
        return Side(rows, rows.square().sum(1), scale, labels, order, bounds)

    def ordered(self, t: Tensor) -> Tensor:
        """t [K, N] in the walking order."""
        return t if self.order is None else t[:, self.order]

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """t, in the walking order, in the order of the inputs."""
        return t if self.order is None else t.new_empty(t.shape).index_copy_(dim, self.order, t)


def widen(x: Tensor) -> Tensor:
    return x if x.element_size() == 8 else x.float()


def sides(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, metric: str, sort: bool, own: bool
) -> tuple[Side, Side]:
    """Both sides, the same one in a self batch; own: the first rows of y are those of x."""
    xs = Side.of(x, x_labels, metric, sort)
    if y is None:
        return xs, xs
    ys = Side.of(y, y_labels, metric, sort)
    if own:
        at = torch.arange(len(y), device=y.device)  # the place of each row of y
        at = at if ys.order is None else torch.empty_like(at).index_copy_(0, ys.order, at)
        xs = xs._replace(own=xs.ordered(at[None, : len(x)])[0])
    return xs, ys


class Tile(NamedTuple):
    r: slice
    c: slice
    s: Tensor  # scores [BM, BN]
    pos: Any  # [BM, BN] bool; None where every pair is negative, which only sorted sides show
    neg: Any
    itself: bool  # its diagonal holds the pairs (i, i) of a self batch, which are neither
    mirrored: bool  # a self batch walks each pair of blocks once; off the diagonal it stands for both orders


def row_tiles(x: Side, y: Side, metric: str, r: slice, first: int = 0) -> Iterator[Tile]:
    """The tiles of a block of rows, columns from `first` on."""
    for j in range(first, len(y.rows), BLOCK):
        c = slice(j, j + BLOCK)
        s = score(x.rows[r], y.rows[c], x.squares[r], y.squares[c], metric)
        itself = x is y and r == c
        pos = neg = None
        if not disjoint(x.bounds, y.bounds, r.start // BLOCK, j // BLOCK):
            pos = x.labels[r, None] == y.labels[c]
            neg = ~pos
            if itself:
                pos.fill_diagonal_(False)
            elif x.own is not None:
                pos &= x.own[r, None] != torch.arange(j, j + pos.shape[1], device=pos.device)
        yield Tile(r, c, s, pos, neg, itself, x is y and not itself)


def row_blocks(x: Side) -> Iterator[slice]:
    return (slice(i, i + BLOCK) for i in range(0, len(x.rows), BLOCK))


def tiles(x: Side, y: Side, metric: str) -> Iterator[Tile]:
    """Every tile; of a self batch only those on and above the diagonal."""
    for r in row_blocks(x):
        yield from row_tiles(x, y, metric, r, first=r.start if x is y else 0)


def disjoint(x_bounds: list[tuple[int, int]] | None, y_bounds: list[tuple[int, int]] | None, i: int, j: int) -> bool:
    """Whether two blocks of sorted rows share no label."""
    if x_bounds is None or y_bounds is None:
        return False
    return x_bounds[i][1] < y_bounds[j][0] or y_bounds[j][1] < x_bounds[i][0]
