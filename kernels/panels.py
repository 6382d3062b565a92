"""Gradients of rows that are too wide for a program to hold: weights of many pairs at a time, for library products.

    dx = W y  and  dy = W^T x,   w_ij = dL/ds_ij ds_ij/de_ij

`panel` computes the scores of a part of W and writes its weights, in the format of the rows. Both sides are products of
the same weights. `finish_rows` takes from a sum of such products the share of the rows themselves.

fp16 has too narrow a range for weights. They are scaled by powers of two: those of a row, for dx, so that the row's
largest is below 2^15, and those of a column, for dy, likewise. The largest come from a first launch of `panel`.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .engine import shift, weighed
from .folds import larger, load_anchors
from .gradients import load_upstream, tile_grad, zeros
from .tiles import (
    LOWEST,
    accumulate,
    exponent,
    load,
    load_chunks,
    load_norms,
    load_numbers,
    load_rows,
    padded,
    power,
    round_tf32,
)
from .walks import both, column, count, counting, pair_masks, place, split_columns, walks_between


class Outputs(NamedTuple):
    """What `panel` writes for one side, () if it is not wanted. Parts are of the n rows that the panel has of the side;
    there is one for each program that has them."""

    weights: tuple = ()  # ([rows, padded columns],) of the panel
    maxima: tuple = ()  # ([parts, n],) the largest weight of every row; then nothing else is written
    sums: tuple = ()  # ([parts, n],) the sum of a row's weights
    offsets: tuple = ()  # ([parts, n],) dL by a row's offset
    numbers: tuple = ()  # ([parts, numbers, n],) dL by each of the loss's numbers
    largest: tuple = ()  # ([n of all panels],) fp16: the maxima over all panels, which are read


def _composed(spec):
    return "_".join(["panel", spec.constants["LOSS"].__name__, spec.constants["SCORE"].__name__])


@triton.jit
def top(largest, i, n):
    """The k of every row i for which all its weights are below 2^k."""
    return tl.maximum(exponent(load(largest[0], i, n)), LOWEST)


@triton.jit
def scaled(w, largest, i, n, AXIS: tl.constexpr):
    """The weights as they are stored for a side, whose rows i are the tile's rows (AXIS 1) or its columns (AXIS 0)."""
    if len(largest) > 0:
        return w * tl.expand_dims(power(15 - top(largest, i, n)), AXIS)
    else:
        return w


@triton.jit
def store_weights(out, w, r, c, first, low, high, N, WHOLE: tl.constexpr):
    """Store a tile of weights in the panel, whose rows begin at `first` and its columns at `low`, to end at `high`."""
    at = out[0] + (r - first).to(tl.int64)[:, None] * padded(high - low) + (c - low)[None, :]
    if WHOLE:
        tl.store(at, w)
    else:
        tl.store(at, w, mask=(r < N)[:, None] & (c < high)[None, :])


@triton.jit
def store_part(out, v, i, first, stop, PART: tl.constexpr):
    """Store v of the rows i of a side in this program's part of [parts, stop - first]; PART is the axis of the grid."""
    at = out[0] + tl.program_id(PART) * (stop - first).to(tl.int64) + i - first
    tl.store(at, v, mask=i < stop)


@triton.jit
def halve(e):
    """The left and the right half of the columns of a tile."""
    return tl.split(tl.permute(tl.reshape(e, [e.shape[0], 2, e.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def in_parts(e, WIDTH: tl.constexpr):
    """A tile in parts of WIDTH columns, from left to right: for a part a thread holds fewer numbers of columns."""
    parts = (e,)
    for _ in tl.static_range(5):
        if parts[0].shape[1] > WIDTH:
            halves = ()
            for k in tl.static_range(len(parts)):
                left, right = halve(parts[k])
                halves = halves + (left, right)
            parts = halves
    return parts


@triton.jit
def weigh(
    e, x, y, pos, neg, own, xl, row_anchors, y_anchors, upstream, numbers, by, r, c, rows, columns, ref_offset, N, M,
    SCORE: tl.constexpr, LOSS: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Of a tile: dL/ds, dL/de, the derivatives of scores by the offsets of either side, and `by`, to which dL by the
    loss's numbers, for positives and for negatives, has been added."""
    s, d_e, _t, _f = SCORE(e, own, load_norms(y.norms, c, M, 0, FAR))
    s, shares = shift(s, x, y, r, c, N, M, FAR)
    counts = counting(s, x, y)
    up, down = numbers
    by_up, by_down = by
    if FAR:
        column_down = load_anchors(y_anchors, neg.kinds, len(pos.kinds), c, M, upstream, False, 0, True)
        terms = weighed(LOSS(s, down, False), neg.kinds, x, y, r, c, N, M, True)
        g, by_down = tile_grad(terms, counts, row_anchors[1], column_down, by_down, False)
    else:
        yl = load(y.labels, c, M)
        positive, negative = pair_masks(xl, yl, c, columns, place(x, r, N), place(y, c, M), ref_offset)
        live = (r < rows)[:, None]
        g = tl.zeros(e.shape, tl.float32)
        if len(neg.kinds) > 0:
            column_down = load_anchors(y_anchors, neg.kinds, len(pos.kinds), c, M, upstream, False, 0)
            terms = weighed(LOSS(s, down, False), neg.kinds, x, y, r, c, N, M, False)
            mask = both(negative & live, counts)
            g, by_down = tile_grad(terms, mask, row_anchors[1], column_down, by_down, False)
        if len(pos.kinds) > 0:
            column_up = load_anchors(y_anchors, pos.kinds, 0, c, M, upstream, True, 0)
            mask = both(positive & live, counts)
            pull, by_up = tile_grad(LOSS(s, up, True), mask, row_anchors[0], column_up, by_up, True)
            g += pull
    return g, g * d_e, shares, (by_up, by_down)


@triton.jit
def add_tile(
    of_rows, of_x, of_y, g, w, shares, x, r, c, first, low, high, N, M, PRECISION: tl.constexpr, WHOLE: tl.constexpr
):
    """Write a tile with dL/ds g and weights w, and what is summed over its rows; of_rows are the sums over its columns
    (their weights or maxima, dL by the offset), to which it is added."""
    over_columns, by_offset = of_rows
    if PRECISION == "tf32":
        w = round_tf32(w)
    if len(of_x.maxima) > 0:
        over_columns = larger(over_columns, tl.max(tl.abs(w), 1))
    if len(of_y.maxima) > 0:
        store_part(of_y.maxima, tl.max(tl.abs(w), 0), c, low, high, 0)
    if len(of_x.weights) > 0:
        v = scaled(w, of_x.largest, r, N, 1).to(x.rows.dtype.element_ty)
        store_weights(of_x.weights, v, r, c, first, low, high, N, WHOLE)
        if len(of_x.sums) > 0:
            over_columns += tl.sum(v.to(tl.float32), 1)
    if len(of_y.weights) > 0:
        v = scaled(w, of_y.largest, c, M, 0).to(x.rows.dtype.element_ty)
        if len(of_y.largest) > 0 or len(of_x.weights) == 0:  # otherwise they are those of x
            store_weights(of_y.weights, v, r, c, first, low, high, N, WHOLE)
        if len(of_y.sums) > 0:
            store_part(of_y.sums, tl.sum(v.to(tl.float32), 0), c, low, high, 0)
    if len(of_x.offsets) > 0:
        by_offset += tl.sum(g * shares[0], 1)
    if len(of_y.offsets) > 0:
        store_part(of_y.offsets, tl.sum(g * shares[1], 0), c, low, high, 0)
    return over_columns, by_offset


@triton.jit(do_not_specialize=["first_row", "low", "high", "N", "M"], repr=_composed)
def panel(
    x, y, pos, neg, anchors, scales, of_x, of_y, ref_offset, first_row, low, high, N, M, D,  # of_x, of_y: `Outputs`
    SCORE: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The weights of rows from `first_row` on and columns from `low`, a multiple of BN, to `high`.
    Grid: (row blocks, splits of the columns).

    anchors: for either side its `folds.Anchors`, or () if its rows are not anchors. scales: `engine.Scales.states`.
    Weights of ignored rows and columns are not written: they are those of rows of zeros.
    """
    low = low // 16 * 16  # which it is: so that weights are stored in vectors
    r0 = first_row + tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own = load_norms(x.norms, r, N, 1)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    numbers = (load_numbers(pos.numbers), load_numbers(neg.numbers))
    upstream = load_upstream(scales, len(pos.kinds) + len(neg.kinds))
    row_down = load_anchors(anchors[0], neg.kinds, len(pos.kinds), r, N, upstream, False, 1)
    BY: tl.constexpr = len(numbers[0]) if len(of_x.numbers) > 0 else 0
    no_numbers = zeros(BY, BM) if BY > 0 else ()
    by = (no_numbers, no_numbers)
    of_rows = (tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32))
    rows, columns = count(x, N), count(y, M)
    start, end = split_columns(tl.maximum(tl.minimum(high, columns) - low, 0), BN)
    far, near = walks_between(x, r0, rows, low + start, low + end, BM, BN, True)

    for at in range(far[0], far[1], BN):
        c0 = column(at, far, BN)
        if len(neg.kinds) > 0:
            ys = load_chunks(y.rows, c0, M, D, BN, BD, CHUNKS, True, EVEN)
            e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, BN, BD, PRECISION, True, EVEN)
        else:  # no pair has a gradient
            e = tl.zeros([BM, BN], tl.float32)
        parts = in_parts(e, NEAR)
        for k in tl.static_range(len(parts)):
            c = c0 + k * NEAR + tl.arange(0, NEAR)
            if len(neg.kinds) > 0:
                g, w, shares, by = weigh(
                    parts[k], x, y, pos, neg, own, 0, ((), row_down), anchors[1], upstream, numbers, by, r, c, rows,
                    columns, ref_offset, N, M, SCORE, LOSS, True,
                )  # fmt: skip
            else:
                g, w, shares = parts[k], parts[k], (1.0, 1.0)
            of_rows = add_tile(of_rows, of_x, of_y, g, w, shares, x, r, c, first_row, low, high, N, M, PRECISION, True)

    # Not loaded before: they would be in registers through the first loop.
    xl, row_up = load(x.labels, r, N), load_anchors(anchors[0], pos.kinds, 0, r, N, upstream, True, 1)
    for at in tl.range(near[0], near[1], NEAR):
        c0 = column(at, near, NEAR)
        c = c0 + tl.arange(0, NEAR)
        ys = load_chunks(y.rows, c0, M, D, NEAR, BD, CHUNKS, False, EVEN)
        e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, NEAR, BD, PRECISION, False, EVEN)
        g, w, shares, by = weigh(
            e, x, y, pos, neg, own, xl, (row_up, row_down), anchors[1], upstream, numbers, by, r, c, rows, columns,
            ref_offset, N, M, SCORE, LOSS, False,
        )  # fmt: skip
        of_rows = add_tile(of_rows, of_x, of_y, g, w, shares, x, r, c, first_row, low, high, N, M, PRECISION, False)

    stop = tl.minimum(first_row + tl.num_programs(0) * BM, N)
    if len(of_x.maxima) > 0:
        store_part(of_x.maxima, of_rows[0], r, first_row, stop, 1)
    if len(of_x.sums) > 0:
        store_part(of_x.sums, of_rows[0], r, first_row, stop, 1)
    if len(of_x.offsets) > 0:
        store_part(of_x.offsets, of_rows[1], r, first_row, stop, 1)
    if BY > 0:
        n = (stop - first_row).to(tl.int64)
        at = of_x.numbers[0] + tl.program_id(1) * 2 * BY * n + r - first_row
        for p in tl.static_range(BY):
            tl.store(at + p * n, by[0][p], mask=r < stop)
            tl.store(at + (BY + p) * n, by[1][p], mask=r < stop)


@triton.jit(do_not_specialize=["N"])
def finish_rows(
    x, acc_ptr, sums, largest, out_ptr, N, D, SCORE: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """dx in the order of the inputs, from acc = sum_j w_ij y_j [N, D] in the order of the side. Grid: (row blocks,).

    The row's own share is f x_i times sum_j w_ij: `sums`, () if a score has no share. If scores are of rows scaled to
    length 1 (UNIT), it is f x_i times sum_j w_ij <x_i, y_j>, which is <x_i, acc_i>.
    largest: as `panel` reads it.
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    share = tl.zeros([BM], tl.float32)
    if UNIT:
        for first in range(0, D, BD):
            dims = first + tl.arange(0, BD)
            rows = load_rows(x.rows, r0, dims, N, D, BM).to(tl.float32)
            share += tl.sum(rows * load_rows(acc_ptr, r0, dims, N, D, BM), 1)
    elif len(sums) > 0:
        share = load(sums[0], r, N)
    own = load_norms(x.norms, r, N, 1)
    _s, _d, _t, f = SCORE(own[0], own, own)
    out = out_ptr + place(x, r, N).to(tl.int64)[:, None] * D
    for first in range(0, D, BD):
        dims = first + tl.arange(0, BD)
        dx = load_rows(acc_ptr, r0, dims, N, D, BM)
        if UNIT or len(sums) > 0:
            dx -= share[:, None] * f * load_rows(x.rows, r0, dims, N, D, BM).to(tl.float32)
        if len(largest) > 0:
            dx *= power(top(largest, r, N) - 15)[:, None]
        dx = tl.where((r < count(x, N))[:, None], dx, 0.0)
        inside = (r < N)[:, None] & (dims < D)[None, :]
        tl.store(out + dims[None, :], dx.to(out_ptr.dtype.element_ty), mask=inside)
