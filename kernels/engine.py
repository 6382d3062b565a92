"""The two kernels that run every loss made of row folds.

`fold` turns each anchor's row of scores into a few numbers, its row states; `grad` recomputes the tiles and turns the
derivatives of those numbers into dx and dy. Where these derivatives are known beforehand, as of a plain sum, `grad`
also sums the terms, and no fold is needed. Each program owns its output rows, so there are no atomics and results are
the same bit for bit from run to run. Both kernels take:

    x, y        the two sides: `tiles.Rows`
    pos, neg    what is folded over the positives and over the negatives: `Terms`
    ref_offset  () or (offset,): row i of x is row offset + i of y, and that pair is left out
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .folds import empty_folds, fold_tile, load_anchors, store_folds
from .gradients import add_gradient, idle, load_upstream, store_gradient, tile_grad, zeros
from .tiles import (
    LOWEST,
    accumulate,
    load,
    load_chunks,
    load_norms,
    load_numbers,
    score_tile,
)
from .walks import both, column, count, counting, pair_masks, place, walks


class Terms(NamedTuple):
    """The folds over one kind of pairs, as `folds.KINDS` names them, and the loss's numbers for this kind."""

    kinds: tuple  # one per fold
    numbers: tuple  # `tiles.Numbers`


class Gradients(NamedTuple):
    """What `grad` writes for one side; all but dx only if it is wanted. The sums are for each row."""

    rows: Any  # dx [splits, N, D]
    numbers: tuple = ()  # dL by the loss's numbers, those for positives first ([splits, 2 numbers, N],)
    offsets: tuple = ()  # dL by the row's offset ([splits, N],)
    states: tuple = ()  # the row states, as `fold` writes them ([splits, folds, N],)


class Scales(NamedTuple):
    """What multiplies the derivatives."""

    sums: Any  # those by rows and offsets, and those by the loss's numbers: two `tiles.Numbers`
    states: tuple = ()  # (by each state [folds], all of them): pointers, if dL/dstates lack these factors
    common: tuple = ()  # the same, if all states have the same factor: it then multiplies the sums instead of the pairs


def _composed(spec):
    """The name that a profiler shows, for example fold_contrastive_euclidean."""
    kernel = "grad" if "ROW_SHARE" in spec.constants else "fold"
    return "_".join([kernel, spec.constants["LOSS"].__name__, spec.constants["SCORE"].__name__])


@triton.jit
def shift(s, x, y, r, c, N, M, WHOLE: tl.constexpr):
    """The scores plus the offsets of the side that has them (the bias of a class, the boundary of an anchor), or plus
    log(exp(v_i) + exp(v_j)) if both sides have offsets v; and the derivatives by v_i and by v_j. [BM, BN] each"""
    if len(x.offsets) > 0:
        v = load(x.offsets[0], r, N)[:, None]
    if len(y.offsets) > 0:
        w = load(y.offsets[0], c, M, WHOLE)[None, :]
    if len(x.offsets) > 0 and len(y.offsets) > 0:
        high = tl.where(v < w, w, v)
        apart = tl.exp(tl.where(v == w, 0.0, tl.where(v < w, v - w, w - v)))  # -inf - -inf is NaN
        shares = (tl.where(v < w, apart, 1.0) / (1.0 + apart), tl.where(v < w, 1.0, apart) / (1.0 + apart))
        return s + (high + tl.log(1.0 + apart)), shares
    elif len(x.offsets) > 0:
        return s + v, (1.0, 1.0)
    elif len(y.offsets) > 0:
        return s + w, (1.0, 1.0)
    else:
        return s, (1.0, 1.0)


@triton.jit
def times(terms, kinds, w):
    """The terms with those that are summed, and their derivatives, multiplied by w."""
    found = ()
    for k in tl.static_range(len(kinds)):
        term = terms[k]
        if len(kinds[k]) == 0:
            product = ()
            for p in tl.static_range(len(term)):
                product = product + (term[p] * w,)
            found = found + (product,)
        else:
            found = found + (term,)
    return found


@triton.jit
def weighed(terms, kinds, x, y, r, c, N, M, WHOLE: tl.constexpr):
    """The terms of negatives; those that are summed are multiplied by the weights of the side that has weights."""
    if len(x.weights) > 0:
        return times(terms, kinds, load(x.weights[0], r, N)[:, None])
    elif len(y.weights) > 0:
        return times(terms, kinds, load(y.weights[0], c, M, WHOLE)[None, :])
    else:
        return terms


@triton.jit
def store_columns(
    ptr, s, y, r, c, rows, columns, M, pos, neg, up, down, positive, negative, LOSS: tl.constexpr, BN: tl.constexpr
):
    """Store the states of a tile's columns over its rows in columns [row blocks, folds, M]. There is no mask: all pairs
    are negative."""
    at = ptr + tl.program_id(0).to(tl.int64) * (len(pos.kinds) + len(neg.kinds)) * M
    if len(pos.kinds) > 0:
        of_tile = empty_folds(pos.kinds, True, BN)
        if positive is not None:
            of_tile = fold_tile(of_tile, LOSS(s, up, True), positive & (r < rows)[:, None], True, 0)
        store_folds(at, of_tile, 0, place(y, c, M), c < M, c < columns, M)
    if len(neg.kinds) > 0:
        if negative is not None:
            negative = negative & (r < rows)[:, None]
        of_tile = fold_tile(empty_folds(neg.kinds, False, BN), LOSS(s, down, False), negative, False, 0)
        store_folds(at, of_tile, len(pos.kinds), place(y, c, M), c < M, c < columns, M)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def fold(
    x, y, pos, neg, states_ptr, columns_ptr, ref_offset, N, M, D,  # states [splits, folds, N]; columns, see below
    SCORE: tl.constexpr, LOSS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Row states of x over the columns of this program's split. Grid: (row blocks, splits).

    COLUMNS: every row of y is an anchor too, whose states over the rows of this program are written to columns
    [row blocks, folds, M].
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    up, down = load_numbers(pos.numbers), load_numbers(neg.numbers)
    pos_folds = empty_folds(pos.kinds, True, BM) if len(pos.kinds) > 0 else ()  # Triton 3.3 cannot call it for no folds
    neg_folds = empty_folds(neg.kinds, False, BM) if len(neg.kinds) > 0 else ()
    rows, columns = count(x, N), count(y, M)
    far, near = walks(x, rows, columns, BM, BN, COLUMNS)

    for at in range(far[0], far[1], BN):
        c0 = column(at, far, BN)
        c = c0 + tl.arange(0, BN)
        s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS, True, EVEN)
        s, _shares = shift(s, x, y, r, c, N, M, True)
        if len(neg.kinds) > 0:
            terms = weighed(LOSS(s, down, False), neg.kinds, x, y, r, c, N, M, True)
            neg_folds = fold_tile(neg_folds, terms, counting(s, x, y), False, 1)
        if COLUMNS:
            store_columns(columns_ptr, s, y, r, c, rows, columns, M, pos, neg, up, down, None, None, LOSS, BN)

    for at in tl.range(near[0], near[1], NEAR, num_stages=1):
        c0 = column(at, near, NEAR)
        c = c0 + tl.arange(0, NEAR)
        s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, NEAR, BD, CHUNKS, False, EVEN)
        s, _shares = shift(s, x, y, r, c, N, M, False)
        yl = load(y.labels, c, M)
        positive, negative = pair_masks(xl, yl, c, columns, place(x, r, N), place(y, c, M), ref_offset)
        counts = counting(s, x, y)
        if len(neg.kinds) > 0:
            terms = weighed(LOSS(s, down, False), neg.kinds, x, y, r, c, N, M, False)
            neg_folds = fold_tile(neg_folds, terms, both(negative, counts), False, 1)
        if len(pos.kinds) > 0:
            pos_folds = fold_tile(pos_folds, LOSS(s, up, True), both(positive, counts), True, 1)
        if COLUMNS:
            store_columns(
                columns_ptr, s, y, r, c, rows, columns, M, pos, neg, up, down, positive, negative, LOSS, NEAR
            )  # fmt: skip

    out = states_ptr + tl.program_id(1).to(tl.int64) * (len(pos.kinds) + len(neg.kinds)) * N
    if len(pos.kinds) > 0:
        store_folds(out, pos_folds, 0, place(x, r, N), r < N, r < rows, N)
    if len(neg.kinds) > 0:
        store_folds(out, neg_folds, len(pos.kinds), place(x, r, N), r < N, r < rows, N)


@triton.jit
def swapped(ref_offset):
    """The offset with the sides exchanged."""
    if len(ref_offset) > 0:
        return (0 - ref_offset[0],)
    else:
        return ()


@triton.jit
def side_gradient(
    x, y, pos, neg, x_anchors, y_anchors, out, scales, ref_offset, N, M, D, parts,
    SCORE: tl.constexpr, LOSS: tl.constexpr, APART: tl.constexpr, ROW_SHARE: tl.constexpr,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """dx of the rows that this program owns. The arguments are those of `grad`; SIDE keeps
    the calls for either side apart, see `folds`."""
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    up, down = load_numbers(pos.numbers), load_numbers(neg.numbers)
    upstream = load_upstream(scales.states, len(pos.kinds) + len(neg.kinds))
    row_up = load_anchors(x_anchors, pos.kinds, 0, r, N, upstream, True, 1, False, SIDE)
    row_down = load_anchors(x_anchors, neg.kinds, len(pos.kinds), r, N, upstream, False, 1, False, SIDE)
    chunks = tl.cdiv(D, BD) if PRECISION == "manhattan" else 1
    first = tl.program_id(2) % chunks * BD
    acc = zeros(1 if PRECISION == "manhattan" else CHUNKS, BM, BD)
    row_share = tl.zeros([BM], tl.float32)  # sum_j w_ij t_ij
    top = tl.full([BM], LOWEST, tl.int32)
    BY: tl.constexpr = len(up) if len(out.numbers) > 0 else 0
    by_up = zeros(BY, BM) if BY > 0 else ()
    by_down, by_offset = by_up, zeros(1, BM) if len(out.offsets) > 0 else ()
    EMITS: tl.constexpr = len(out.states) > 0
    pos_folds = empty_folds(pos.kinds, True, BM) if EMITS and len(pos.kinds) > 0 else ()
    neg_folds = empty_folds(neg.kinds, False, BM) if EMITS and len(neg.kinds) > 0 else ()
    rows, columns = count(x, N), count(y, M)
    far, near = walks(x, rows, columns, BM, BN, False, parts)

    if len(neg.kinds) > 0:
        for at in range(far[0], far[1], BN):
            c0 = column(at, far, BN)
            c = c0 + tl.arange(0, BN)
            ys = load_chunks(y.rows, c0, M, D, BN, BD, CHUNKS, True, EVEN)
            e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, BN, BD, PRECISION, True, EVEN)
            other = load_norms(y.norms, c, M, 0, True)
            if APART is None or len(y.offsets) > 0:
                skipped = False
            else:
                skipped = idle(e, x, own, other, r, N, down[0], APART)
            if not skipped:
                s, d_e, t, _f = SCORE(e, own, other)
                s, shares = shift(s, x, y, r, c, N, M, True)
                column_down = load_anchors(y_anchors, neg.kinds, len(pos.kinds), c, M, upstream, False, 0, True, SIDE)
                terms = weighed(LOSS(s, down, False), neg.kinds, x, y, r, c, N, M, True)
                counts = counting(s, x, y)
                if EMITS:
                    neg_folds = fold_tile(neg_folds, terms, counts, False, 1)
                g, by_down = tile_grad(terms, counts, row_down, column_down, by_down, False, SIDE)
                acc, row_share, top, by_offset = add_gradient(
                    acc, row_share, top, by_offset, g, d_e, t, shares, x, y, ys, r0, c0, first, N, M, D,
                    ROW_SHARE, PRECISION, BD, True, EVEN,
                )  # fmt: skip

    for at in tl.range(near[0], near[1], NEAR, num_stages=1):
        c0 = column(at, near, NEAR)
        c = c0 + tl.arange(0, NEAR)
        ys = load_chunks(y.rows, c0, M, D, NEAR, BD, CHUNKS, False, EVEN)
        e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, NEAR, BD, PRECISION, False, EVEN)
        s, d_e, t, _f = SCORE(e, own, load_norms(y.norms, c, M, 0))
        s, shares = shift(s, x, y, r, c, N, M, False)
        yl = load(y.labels, c, M)
        positive, negative = pair_masks(xl, yl, c, columns, place(x, r, N), place(y, c, M), ref_offset)
        counts = counting(s, x, y)
        g = tl.zeros([BM, NEAR], tl.float32)
        if len(neg.kinds) > 0:
            column_down = load_anchors(y_anchors, neg.kinds, len(pos.kinds), c, M, upstream, False, 0, False, SIDE)
            terms = weighed(LOSS(s, down, False), neg.kinds, x, y, r, c, N, M, False)
            if EMITS:
                neg_folds = fold_tile(neg_folds, terms, both(negative, counts), False, 1)
            g, by_down = tile_grad(terms, both(negative, counts), row_down, column_down, by_down, False, SIDE)
        if len(pos.kinds) > 0:
            column_up = load_anchors(y_anchors, pos.kinds, 0, c, M, upstream, True, 0, False, SIDE)
            terms = LOSS(s, up, True)
            if EMITS:
                pos_folds = fold_tile(pos_folds, terms, both(positive, counts), True, 1)
            pull, by_up = tile_grad(terms, both(positive, counts), row_up, column_up, by_up, True, SIDE)
            g += pull
        acc, row_share, top, by_offset = add_gradient(
            acc, row_share, top, by_offset, g, d_e, t, shares, x, y, ys, r0, c0, first, N, M, D,
            ROW_SHARE, PRECISION, BD, False, EVEN,
        )  # fmt: skip

    own = load_norms(x.norms, r, N, 1)  # loaded again rather than held in registers through the loops
    _s, _d, _t, f = SCORE(own[0], own, own)
    scale, of_numbers = load_numbers(scales.sums)
    if len(scales.common) > 0:
        (factor,) = load_upstream(scales.common, 1)
        scale, of_numbers = scale * factor, of_numbers * factor
    store_gradient(out.rows, acc, row_share, top, f, scale, x, r0, rows, first, N, D, PRECISION, ROW_SHARE, False, BD)
    if first == 0:
        places, live = place(x, r, N), r < rows
        part = tl.program_id(1).to(tl.int64)
        for p in tl.static_range(BY):
            sums = out.numbers[0] + (part * 2 * BY + p) * N + places
            tl.store(sums, tl.where(live, by_up[p] * of_numbers, 0.0), mask=r < N)
            tl.store(sums + BY * N.to(tl.int64), tl.where(live, by_down[p] * of_numbers, 0.0), mask=r < N)
        if len(by_offset) > 0:
            tl.store(out.offsets[0] + part * N + places, tl.where(live, by_offset[0] * scale, 0.0), mask=r < N)
        if EMITS:
            states = out.states[0] + part * (len(pos.kinds) + len(neg.kinds)) * N
            if len(pos.kinds) > 0:
                store_folds(states, pos_folds, 0, places, r < N, live, N)
            if len(neg.kinds) > 0:
                store_folds(states, neg_folds, len(pos.kinds), places, r < N, live, N)


@triton.jit(do_not_specialize=["N", "M", "x_parts", "y_parts"], repr=_composed)
def grad(
    x, y, pos, neg, anchors, outs, scales, ref_offset, N, M, D, x_parts, y_parts,
    SCORE: tl.constexpr, LOSS: tl.constexpr, APART: tl.constexpr, ROW_SHARE: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """dx and dy of rows that are on chip, by programs that own them; wider ones are of `panels.panel`.
    Grid: (row blocks, splits, sides), as many as the side with more of them needs; for manhattan, of which a program
    has BD dimensions, the last axis is as many times longer.

    anchors: for either side its `folds.Anchors`, or () if its rows are not anchors. One product serves both roles.
    outs: for either side `Gradients`, or () if it wants none. x_parts, y_parts: splits of either side.
    scales: `Scales`.
    APART: if it is given, tiles whose pairs are all apart by it are left out, see `scores.py`.
    ROW_SHARE: the gradient of a score includes a share of the row itself.
    """
    if len(outs[0]) > 0 and len(outs[1]) > 0:
        if tl.program_id(2) < tl.num_programs(2) // 2:
            if (tl.program_id(0) * BM < N) & (tl.program_id(1) < x_parts):
                side_gradient(
                    x, y, pos, neg, anchors[0], anchors[1], outs[0], scales, ref_offset, N, M, D, x_parts, SCORE, LOSS,
                    APART, ROW_SHARE, PRECISION, EVEN, BM, BN, NEAR, BD, CHUNKS, 0,
                )  # fmt: skip
        elif (tl.program_id(0) * BM < M) & (tl.program_id(1) < y_parts):
            side_gradient(
                y, x, pos, neg, anchors[1], anchors[0], outs[1], scales, swapped(ref_offset), M, N, D, y_parts, SCORE,
                LOSS, APART, ROW_SHARE, PRECISION, EVEN, BM, BN, NEAR, BD, CHUNKS, 1,
            )  # fmt: skip
    elif len(outs[0]) > 0:
        side_gradient(
            x, y, pos, neg, anchors[0], anchors[1], outs[0], scales, ref_offset, N, M, D, x_parts, SCORE, LOSS, APART,
            ROW_SHARE, PRECISION, EVEN, BM, BN, NEAR, BD, CHUNKS, 0,
        )  # fmt: skip
    else:
        side_gradient(
            y, x, pos, neg, anchors[1], anchors[0], outs[1], scales, swapped(ref_offset), M, N, D, y_parts, SCORE,
            LOSS, APART, ROW_SHARE, PRECISION, EVEN, BM, BN, NEAR, BD, CHUNKS, 1,
        )  # fmt: skip
