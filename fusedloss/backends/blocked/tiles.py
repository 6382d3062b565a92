"""The score matrix, tile by tile, and the gradients by the rows of both sides, added up from dL/ds of every tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...checks import Batch
from ..moving import box as box_of
from .parallel import spread
from .scores import SCALED, SQUARED, manhattan_grad, pull, score, unit, unit_grad

ALIGNED = 64  # bytes; the last bits of a matrix product depend on how its factors lie in memory
BLOCK = 384  # rows and columns of a tile: 0.6 MiB in float32; memory of larger ones is freed and allocated each time


class Side(NamedTuple):
    """One side of the score matrix in the order it is walked."""

    rows: Tensor
    squares: Tensor | None  # their squared lengths, if the metric takes them
    scale: Tensor | None  # the factor by which the rows were scaled [N, 1]
    labels: Tensor
    order: Tensor | None  # None: the order of the inputs
    blocks: list[slice]
    bounds: list[tuple[int, int]] | None  # first and last label of each block, if sorted and readable without a sync
    sorted: bool = False
    moved: Tensor | None = None  # the vector that was subtracted from the rows [D]
    ref_column: Tensor | None = None  # the column of y that is the row itself, if there is one (`Batch.ref_offset`) [N]
    ignored: int | None = None  # rows with this label are in no pair

    def ordered(self, t: Tensor) -> Tensor:
        """t [..., N] in the walking order."""
        return t if self.order is None else t[..., self.order]

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """t, which is in the walking order, in the order of the inputs."""
        return t if self.order is None else t.new_empty(t.shape).index_copy_(dim, self.order, t)

    def cut(self, size: int) -> Side:
        """The side in blocks of another size."""
        blocks = slices(self.rows.shape[0], size)
        return self._replace(blocks=blocks, bounds=self.bounds and first_and_last(self.labels, blocks))


def widen(x: Tensor) -> Tensor:
    return x if x.element_size() == 8 else x.float()


def inverse_norm(x: Tensor) -> Tensor:
    """1 / max(|x|, 1e-8). [N, 1]"""
    return x.square().sum(1, keepdim=True).clamp_(min=1e-16).rsqrt_()


def slices(n: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def block_sizes(b: Batch) -> tuple[int, int]:
    """The rows and columns of a tile, from the shape alone, so that results do not depend on the number of threads.

    At N = 512 and 1,024, tiles of 256 are faster than larger ones, which leave a thread without work, and than smaller
    ones, whose operators are so short that threads wait for the interpreter (2 cores, 2026-11-27).
    """
    N, M = b.x.shape[0], b.y_labels.shape[0]
    if N * M <= BLOCK * BLOCK // 2:
        return max(N, 1), max(M, 1)
    small = -(-BLOCK // 24) * 16  # two thirds
    if b.y is None:
        size = small if N < 8 * BLOCK else BLOCK
        return size, size
    quarter = -(-N // 64) * 16
    size = min(small, max(BLOCK // 6, quarter))
    return size, BLOCK * BLOCK // size


def within(rows: int, width: int) -> int:
    """How many of some rows with so many columns each fit in the memory of a tile; at least one."""
    fitting = BLOCK * BLOCK // max(width, 1)
    return min(rows, fitting // 16 * 16 or max(fitting, 1))


def several(b: Batch) -> bool:
    """Whether there is more than one tile; if so, sorting the rows leaves most tiles without a positive pair."""
    rows, columns = block_sizes(b)
    return b.x.shape[0] > rows or b.y_labels.shape[0] > columns


def ascending(labels: Tensor) -> Tensor | None:
    """The order that sorts labels; None if they are sorted."""
    if labels.device.type == "cpu" and bool((labels[1:] >= labels[:-1]).all()):
        return None
    return labels.argsort(stable=True)


def corner(extremes: tuple[Tensor, ...]) -> Tensor | None:
    """The vector that is subtracted from all rows: the corner of their box that is nearest to the origin, in the
    dimensions where this is exact (in any format it is, if all rows are between some c and 2 c), else 0. None: no
    dimension is moved. [D]"""
    if not extremes:
        return None
    low, high = map(widen, extremes)
    if low.device.type == "cpu" and not bool((low * high > 0).any()):
        return None
    nearest = torch.where((low > 0) & (high <= 2 * low), low, 0.0)
    return torch.where((high < 0) & (low >= 2 * high), high, nearest)


def side(x: Tensor, labels: Tensor, metric: str, sort: bool, size: int, corner: Tensor | None = None) -> Side:
    order = ascending(labels) if sort else None
    blocks, bounds = slices(x.shape[0], size), None
    if x.device.type == "cpu" and x.data_ptr() % ALIGNED:
        x = x.clone()
    labels = labels if order is None else labels[order]
    if sort and x.device.type == "cpu":
        bounds = first_and_last(labels, blocks)
    if len(blocks) <= 1:
        x = widen(x if order is None else x[order])
        x = x if corner is None else x - corner
        rows, scale = unit(x) if metric in SCALED else (x, None)
        return Side(rows, squared(rows, metric), scale, labels, order, blocks, bounds, sort, corner)

    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    same = order is None and x.dtype == wide and metric not in SCALED and corner is None
    rows = x if same else torch.empty_like(x, dtype=wide)
    scale = rows.new_empty(len(x), 1) if metric in SCALED else None
    squares = rows.new_empty(len(x)) if metric in SQUARED else None

    def prepare(i: int) -> None:
        r = blocks[i]
        if not same:
            part = widen(x[r] if order is None else x[order[r]])
            if corner is not None:
                part = part - corner
            if scale is not None:
                part, scale[r] = unit(part)
            rows[r] = part
        if squares is not None:
            squares[r] = rows[r].square().sum(1)

    if not same or squares is not None:
        spread(len(blocks), prepare)
    return Side(rows, squares, scale, labels, order, blocks, bounds, sort, corner)


def first_and_last(labels: Tensor, blocks: list[slice]) -> list[tuple[int, int]]:
    """The first and the last label of each block of sorted labels."""
    ends = [at for block in blocks for at in (block.start, block.stop - 1)]
    values = iter(labels[ends].tolist())
    return list(zip(values, values, strict=True))


def squared(rows: Tensor, metric: str) -> Tensor | None:
    return rows.square().sum(1) if metric in SQUARED else None


def sides(
    b: Batch, metric: str, *, sort: bool, group: int = 1, box: tuple[Tensor, ...] = ()
) -> tuple[Side, Side]:  # fmt: skip
    """Both sides (one and the same if there is no y), cut so that no tile parts a group of columns. All rows are moved
    by the corner of their box, or of a given box around more rows."""
    rows, columns = block_sizes(b)
    columns = -(-columns // group) * group
    moved = corner(box or box_of(b, metric))
    x = side(b.x, b.x_labels, metric, sort, rows, moved)._replace(ignored=b.ignored)
    if b.y is None:
        return x, x
    y = side(b.y, b.y_labels, metric, sort, columns, moved)._replace(ignored=b.ignored)
    if b.ref_offset is not None:
        at = y.restore(torch.arange(len(b.y), device=b.y.device), 0)  # the place of each row of y
        x = x._replace(ref_column=x.ordered(at[b.ref_offset : b.ref_offset + len(b.x)]))
    return x, y


def other_side(x: Side, y: Tensor, labels: Tensor, metric: str) -> tuple[Side, Side]:
    """The side of rows x, prepared to meet the rows y of another process, and the side of y."""
    width = x.blocks[0].stop if x.blocks else 1
    found = side(y, labels, metric, x.sorted, within(y.shape[0], width), x.moved)
    return x._replace(ref_column=None), found._replace(ignored=x.ignored)


class Tile(NamedTuple):
    i: int  # this and the next: the number of the block of rows, and of the block of columns
    j: int
    r: slice
    c: slice
    s: Tensor  # scores [BM, BN]
    pos: Any  # [BM, BN] bool; None where no pair is positive, which only sorted sides show
    neg: Any  # [BM, BN] bool; None where every pair is negative
    diagonal: bool  # it has the pairs (i, i) of a batch with itself, which are neither positive nor negative
    mirrored: bool  # it stands for its transpose too: a batch with itself has each pair of blocks once
    whole: bool  # every pair is positive or negative, except on the diagonal


def tile(x: Side, y: Side, metric: str, i: int, j: int) -> Tile:
    r, c = x.blocks[i], y.blocks[j]
    s = scores(x, y, metric, r, c)
    diagonal, mirrored = x is y and i == j, x is y and i != j
    if all_negative(x, y, i, j):
        return Tile(i, j, r, c, s, None, None, diagonal, mirrored, True)
    pos = x.labels[r, None] == y.labels[c]
    neg = ~pos
    if diagonal:
        pos.fill_diagonal_(False)
    elif x.ref_column is not None:
        pos &= x.ref_column[r, None] != torch.arange(c.start, c.stop, device=pos.device)
    if x.ignored is not None:
        counted = (x.labels[r, None] != x.ignored) & (y.labels[c] != x.ignored)
        pos &= counted
        neg &= counted
    return Tile(i, j, r, c, s, pos, neg, diagonal, mirrored, x.ref_column is None and x.ignored is None)


def all_negative(x: Side, y: Side, i: int, j: int) -> bool:
    """Whether the labels of two blocks show that all their pairs are negative, which only sorted sides can show."""
    if x.bounds is None or y.bounds is None:
        return False
    (first_x, last_x), (first_y, last_y) = x.bounds[i], y.bounds[j]
    if x.ignored is not None and (first_x <= x.ignored <= last_x or first_y <= x.ignored <= last_y):
        return False
    return first_x > last_y or first_y > last_x


def scores(x: Side, y: Side, metric: str, r: slice, c: slice) -> Tensor:
    own = None if x.squares is None else x.squares[r]
    other = None if y.squares is None else y.squares[c]
    s = score(x.rows[r], y.rows[c], own, other, metric)
    # The product of a block with itself may differ in the last bits of s_ij and s_ji; in the backward both roles of a
    # row take the same one, and a state was made from one of them.
    return s.add(s.T).mul_(0.5) if x is y and r == c else s


def row_tiles(x: Side, y: Side, metric: str, i: int) -> Iterator[Tile]:
    """The tiles of a block of rows."""
    return (tile(x, y, metric, i, j) for j in range(len(y.blocks)))


def leaders(t: Tile, s: Tensor, group: int) -> Tile:
    """The tile with only the pair of the highest score (the first of equal ones) in each group of neighbouring
    columns."""
    if group == 1:
        return t
    first = s.unflatten(1, (-1, group)).argmax(2, keepdim=True)
    leads = torch.zeros_like(s, dtype=torch.bool).unflatten(1, (-1, group)).scatter_(2, first, True).flatten(1)
    pos, neg = (leads if mask is None else mask & leads for mask in (t.pos, t.neg))
    return t._replace(pos=None if t.pos is None else pos, neg=neg, whole=False)


class Gradient:
    """The gradient by the rows of one side, if it is wanted, added up from the tiles."""

    def __init__(self, side: Side, wanted: bool) -> None:
        self.side, self.wanted = side, wanted
        self.rows = torch.zeros_like(side.rows) if wanted else side.rows
        self.own = torch.zeros_like(side.squares) if wanted and side.squares is not None else None  # by each row itself
        self.offsets: Tensor | None = None

    def add(self, part: slice, w: Tensor, others: Tensor, a: float) -> None:
        """Add the contribution of a tile: a sum_j w_ij (y_j - x_i), without x_i for products."""
        self.rows[part].addmm_(w, others, alpha=a)
        if self.own is not None:
            self.own[part].sub_(w.sum(1), alpha=a)

    def join(self, other: Gradient) -> None:
        """Add another gradient of the same side."""
        if self.wanted:
            spread(len(self.side.blocks), lambda i: self.take(other, self.side.blocks[i]))

    def take(self, other: Gradient, r: slice) -> None:
        self.rows[r].add_(other.rows[r])
        if self.own is not None and other.own is not None:
            self.own[r].add_(other.own[r])

    def finish(self, like: Tensor) -> Tensor:
        if not self.wanted:
            return like.new_empty(0)
        side = self.side
        if len(side.blocks) <= 1:
            return side.restore(self.of(slice(None)), 0).to(like.dtype)
        found = torch.empty_like(like)

        def restore(i: int) -> None:
            r = side.blocks[i]
            if side.order is None:
                found[r] = self.of(r)
            else:
                found.index_copy_(0, side.order[r], self.of(r).to(like.dtype))

        spread(len(side.blocks), restore)
        return found

    def of(self, r: slice) -> Tensor:
        """The gradient by the given rows r, in the walking order. The sums are overwritten."""
        d, x = self.rows[r], self.side.rows[r]
        if self.own is not None:
            d.addcmul_(self.own[r, None], x)
        return d if self.side.scale is None else unit_grad(d, x, self.side.scale[r])


def gradients(x: Side, y: Side, want_x: bool, want_y: bool) -> tuple[Gradient, Gradient]:
    """The gradients of both sides; one and the same if there is only one side."""
    of_x = Gradient(x, want_x)
    return of_x, of_x if x is y else Gradient(y, want_y)


def add_tile(
    of_x: Gradient, of_y: Gradient, r: slice, c: slice, g: Tensor, s: Tensor, metric: str, columns: bool = True
) -> None:
    """Add a tile's contribution to its rows and, if `columns`, to its columns, from the scores s and from g = dL/ds,
    which is overwritten."""
    x, y = of_x.side.rows[r], of_y.side.rows[c]
    columns = columns and of_y.wanted
    if metric == "manhattan":
        if of_x.wanted:
            of_x.rows[r] += manhattan_grad(g, x, y)
        if columns:
            of_y.rows[c] += manhattan_grad(g.T, y, x)
        return
    pulls, a = pull(g, s, metric)
    if of_x.wanted:
        of_x.add(r, pulls, y, a)
    if columns:
        of_y.add(c, pulls.T, x, a)


def masked(t: Tile, pos: Tensor | None, neg: Tensor | None) -> Tensor | None:
    """A tile with `pos` at positive pairs, `neg` at negative ones and 0 elsewhere; None stands for 0."""
    if t.neg is None:
        return neg if neg is None or neg.shape == t.s.shape else neg.expand(t.s.shape).contiguous()
    if pos is None or neg is None:
        if pos is None:
            return None if neg is None else torch.where(t.neg, neg, 0.0)
        return torch.where(t.pos, pos, 0.0)
    both = torch.where(t.neg, neg, pos)
    if not t.whole:
        both.masked_fill_((t.pos | t.neg).logical_not_(), 0.0)
    elif t.diagonal:
        both.fill_diagonal_(0.0)
    return both


def all_zero(g: Tensor) -> bool:
    """Whether g is 0 everywhere; False where reading it would be a sync."""
    if g.device.type != "cpu":
        return False
    low, high = g.aminmax()
    return bool(low == 0) and bool(high == 0)
