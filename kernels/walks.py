"""Which columns a program walks, and which pairs of a tile count, by the labels, the order and the groups of the sides.

If rows are sorted by label, most tiles have no positive pair. A program walks these far tiles without labels and masks,
and only the near tiles with them.
"""

import triton
import triton.language as tl

from .tiles import load


@triton.jit
def count(side, n):
    """How many of the n rows of a side are in pairs; the others come last."""
    if len(side.counted) > 0:
        return tl.load(side.counted[0])
    else:
        return n


@triton.jit
def place(side, i, n):
    """The places of a side's rows i in the inputs."""
    if len(side.order) > 0:
        return load(side.order[0], i, n)
    else:
        return i


@triton.jit
def split_columns(M, BN: tl.constexpr, parts=None):
    """The columns of this program's split, which starts at a multiple of BN. Grid axis 1 counts the splits; those from
    number `parts` on have no columns."""
    if parts is None:
        parts = tl.num_programs(1)
    width = tl.cdiv(tl.cdiv(M, BN), parts) * BN
    start = tl.program_id(1) * width
    return start, tl.minimum(start + width, M)


@triton.jit
def walks(x, rows, M, BM: tl.constexpr, BN: tl.constexpr, ALL: tl.constexpr, parts=None):
    """The columns of this program's split as two walks, see `walks_between`."""
    start, end = split_columns(M, BN, parts)
    return walks_between(x, tl.program_id(0) * BM, rows, start, end, BM, BN, ALL)


@triton.jit
def walks_between(x, first, rows, start, end, BM: tl.constexpr, BN: tl.constexpr, ALL: tl.constexpr):
    """The columns from `start`, a multiple of BN, to `end` as two walks for the BM rows from `first` on, far and near:
    (start, stop, gap, skip), see `column`.

    Every pair of a far tile is negative, and the tile is whole. The near walk has the tiles of BN columns with labels
    of the program's rows, and the columns at the end that do not fill a tile. If rows are not sorted, all columns are
    near; if ALL, so they are for a program with less than BM rows.
    """
    end = tl.maximum(tl.where(first < rows, end, start), start)
    whole = start + (end - start) // BN * BN
    low, high = start, end
    if len(x.near) > 0:
        last = tl.minimum(first + BM, rows) - 1
        begin = tl.load(x.near[0] + first, mask=first < rows, other=0)
        stop = tl.load(x.near[1] + last, mask=first < rows, other=0)
        apart = (last - first == BM - 1) | (not ALL)
        low = tl.where(apart, tl.minimum(tl.maximum(begin // BN * BN, start), whole), start)
        high = tl.where(apart, tl.maximum(tl.minimum(tl.cdiv(stop, BN) * BN, end), low), end)
    skipped = tl.minimum(high, whole) - low
    ragged = end - tl.maximum(high, whole)
    return (start, whole - skipped, low, skipped), (low, high + tl.maximum(ragged, 0), high, whole - high)


@triton.jit
def column(at, walk, BN: tl.constexpr):
    """The first column of the tile at a place of a walk; columns are skipped from the gap on."""
    return tl.multiple_of(at + tl.where(at < walk[2], 0, walk[3]), BN)


@triton.jit
def negative_mask(xl, yl, c, M):
    """Which pairs with the first M columns are negative. [BM, BN]"""
    return (xl[:, None] != yl[None, :]) & (c < M)[None, :]


@triton.jit
def pair_masks(xl, yl, c, M, x_places, y_places, ref_offset):
    """Which pairs with the first M columns are positive and which negative; a row with itself is neither.
    [BM, BN] each"""
    same = xl[:, None] == yl[None, :]
    valid = (c < M)[None, :]
    if len(ref_offset) > 0:
        valid = valid & ((x_places + ref_offset[0])[:, None] != y_places[None, :])
    return same & valid, ~same & valid


@triton.jit
def leaders(s, SIZE: tl.constexpr, AXIS: tl.constexpr):
    """Which scores are the highest in their group of SIZE neighbours along an axis: the first of equal ones, and NaN
    before all others. [BM, BN]"""
    rank = tl.where(s == s, s, float("inf"))
    number = tl.arange(0, SIZE)
    if AXIS == 1:
        rank = tl.reshape(rank, [s.shape[0], s.shape[1] // SIZE, SIZE])
        number = number[None, None, :]
    else:
        rank = tl.reshape(rank, [s.shape[0] // SIZE, SIZE, s.shape[1]])
        number = number[None, :, None]
    WITHIN: tl.constexpr = 2 if AXIS == 1 else 1
    behind = tl.where(rank < tl.max(rank, WITHIN, keep_dims=True), SIZE, number)
    first = tl.min(behind, WITHIN, keep_dims=True)
    return tl.reshape(behind == first, s.shape)


@triton.jit
def counting(s, x, y):
    """Which pairs count if rows or columns are in groups; None for all."""
    if len(x.group) > 0:
        return leaders(s, 2 ** len(x.group), 0)
    elif len(y.group) > 0:
        return leaders(s, 2 ** len(y.group), 1)
    else:
        return None


@triton.jit
def both(a, b):
    """The pairs that are in both masks; the second may be None for all pairs."""
    if b is None:
        return a
    else:
        return a & b
