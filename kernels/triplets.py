"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory.

Rows are sorted by label, so the positives of an anchor are a run of columns. The scores of K of them are thresholds in
registers, against which all negatives are streamed; classes of any size are walked K positives at a time. A threshold
of -inf stands for no positive, and a score of inf for no negative: d(a, p) - d(a, n) is then -inf, which costs nothing.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .engine import store_gradient, zeros
from .losses import log1p
from .mining import keep_best
from .tiles import (
    LOWEST,
    accumulate,
    accumulate_grad,
    load,
    load_chunks,
    load_norms,
    load_numbers,
    round_weights,
    score_tile,
)
from .walks import count, negative_mask, split_columns


class Ranges(NamedTuple):
    """The columns that have the label of every anchor; an ignored anchor has none. [N] each"""

    start: Any
    stop: Any
    ref_column: Any  # the column that is the anchor itself, or -1


class Triplets(NamedTuple):
    """The anchors of one side in the backward, and their positives number `first` to `first + width`."""

    start: Any  # as in `Ranges` [n]
    stop: Any
    du: Any  # dL by each anchor's sum [n]
    thresholds: Any  # scores of the positives [width, n]; for "nearest" the columns of their negatives, -1 for none
    slopes: Any  # slopes summed over each positive's triplets [parts, width, n]; not used for "nearest"


class Sums(NamedTuple):
    """What `fold_triplets` writes: the sum of the terms, how many are chosen, how many cost something and, if `SLOPED`,
    the sum of the slopes."""

    states: Any  # [splits, 3 or 4, N]


class Slopes(NamedTuple):
    """What `fold_triplets` writes for the backward: positives number `first` to `last`, as `Triplets` takes them."""

    thresholds: Any  # [last - first, N]
    slopes: Any  # [splits, last - first, N]


class Semihard(NamedTuple):
    """What `mine_semihard` writes: the sum of the terms, how many cost something, and the columns of the negatives."""

    states: Any  # [2, N]
    columns: Any  # those of the first `width` positives' negatives, -1 where the term is 0 [width, N]


@triton.jit
def triplet(gap, margin, KIND: tl.constexpr, SOFT: tl.constexpr):
    """From gap = d(a, p) - d(a, n): the term, its slope, and (except for "all") 1 if the triplet is of the kind."""
    h = gap + margin
    if SOFT:
        v = tl.exp(-tl.abs(h))
        term = tl.where(h <= 0.0, 0.0, h) + log1p(v)
        slope = tl.where(h < 0.0, v, 1.0) / (1.0 + v)
    else:
        term = tl.where(h <= 0.0, 0.0, h)
        slope = tl.where(h <= 0.0, 0.0, 1.0)
    if KIND == "all":
        return term, slope, 0.0 * slope
    if KIND == "hard":
        chosen = gap >= 0.0
    elif KIND == "semihard":
        chosen = (gap < 0.0) & (gap >= -margin)
    else:
        chosen = (gap < -margin) & (gap > float("-inf"))
    return tl.where(chosen, term, 0.0), tl.where(chosen, slope, 0.0), chosen.to(tl.float32)


@triton.jit
def load_ranges(ranges, rows, n):
    live = rows < n
    return (
        load(ranges.start, rows, n),
        load(ranges.stop, rows, n),
        tl.load(ranges.ref_column + rows, mask=live, other=-1),
    )


@triton.jit
def is_positive(columns, start, stop, ref_column):
    """Whether columns of y are positives of an anchor: they have its label, and are not the anchor itself."""
    return (columns >= start) & (columns < stop) & (columns != ref_column)


@triton.jit
def load_thresholds(
    x, y, xs, own, r0, at, stop, ref_column, N, M, D,
    SCORE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """The scores of each anchor with the K positives from column `at` on; -inf where there is none. A tuple of [BM]"""
    found = zeros(K, BM)
    for c0 in range(tl.min(tl.where(at < stop, at, M)), tl.max(tl.minimum(stop, at + K)), BN):
        c = c0 + tl.arange(0, BN)
        s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS)
        grown = ()
        for k in tl.static_range(K):
            here = c[None, :] == (at + k)[:, None]
            grown = grown + (found[k] + tl.sum(tl.where(here, s, 0.0), 1),)
        found = grown
    thresholds = ()
    for k in tl.static_range(K):
        present = (at + k < stop) & (at + k != ref_column)
        thresholds = thresholds + (tl.where(present, found[k], float("-inf")),)
    return thresholds


@triton.jit
def farther(s, xl, yl, c, columns):
    """The scores of the negatives; inf for all other pairs. [BM, BN]"""
    return tl.where(negative_mask(xl, yl, c, columns), s, float("inf"))


@triton.jit
def share_labels(xl, yl):
    """Whether the label ranges of two blocks overlap; if not, no pair of the tile is positive."""
    return (tl.min(xl) <= tl.max(yl)) & (tl.min(yl) <= tl.max(xl))


@triton.jit(do_not_specialize=["N", "M", "first", "last"])
def fold_triplets(
    x, y, ranges, outs, margin, N, M, D, first, last,  # margin: `tiles.Numbers`, one
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, SLOPED: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The triplets of each anchor's positives number `first` to `last` with the columns of a split.

    Grid: (row blocks, splits). outs: `Sums`, or `Slopes` for the backward.
    """
    SLOPES: tl.constexpr = len(outs) > 1
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    begin, stop, ref_column = load_ranges(ranges, r, N)
    if SLOPES:
        if tl.max(stop - begin) <= first:
            return
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS)
    (margin,) = load_numbers(margin)
    state: tl.constexpr = tl.float32 if SLOPES else outs.states.dtype.element_ty
    total, chosen, active = tl.zeros([BM], state), tl.zeros([BM], state), tl.zeros([BM], state)
    sloped = tl.zeros([BM], state)

    columns = count(y, M)
    start, end = split_columns(columns, BN)
    for k0 in range(first, tl.minimum(tl.max(stop - begin), last), K):
        t = load_thresholds(
            x, y, xs, own, r0, begin + k0, stop, ref_column, N, M, D, SCORE, K, PRECISION, BM, BN, BD, CHUNKS
        )  # fmt: skip
        slopes = zeros(K, BM)
        for c0 in range(start, end, BN):
            c = c0 + tl.arange(0, BN)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS)
            s = farther(s, xl, load(y.labels, c, M), c, columns)
            terms, kinds, costly, steep = zeros(4, BM)  # sums of the tile
            grown = ()
            for k in tl.static_range(K):
                term, slope, of_kind = triplet(t[k][:, None] - s, margin, KIND, SOFT)
                if SLOPES:
                    grown = grown + (slopes[k] + tl.sum(slope, 1),)
                else:
                    terms += tl.sum(term, 1)
                    kinds += tl.sum(of_kind, 1)
                    costly += tl.sum((term > 0.0).to(tl.float32), 1)
                    if SLOPED:
                        steep += tl.sum(slope, 1)
            if SLOPES:
                slopes = grown
            else:
                total += terms.to(state)
                chosen += kinds.to(state)
                active += costly.to(state)
                if SLOPED:
                    sloped += steep.to(state)
        if SLOPES:
            for k in tl.static_range(K):
                at = (k0 + k - first) * N.to(tl.int64) + r
                part = tl.program_id(1) * (last - first) * N.to(tl.int64)
                kept = (r < N) & (k0 + k < last)
                tl.store(outs.thresholds + at, t[k], mask=kept)
                tl.store(outs.slopes + part + at, slopes[k], mask=kept)

    if not SLOPES:
        step = N.to(tl.int64)
        at = outs.states + tl.program_id(1) * (3 + SLOPED) * step + r
        tl.store(at, total, mask=r < N)
        tl.store(at + step, chosen, mask=r < N)
        tl.store(at + 2 * step, active, mask=r < N)
        if SLOPED:
            tl.store(at + 3 * step, sloped, mask=r < N)


@triton.jit(do_not_specialize=["N", "M", "first", "last", "width"])
def mine_semihard(
    x, y, ranges, outs, margin, N, M, D, first, last, width,  # margin: `tiles.Numbers`, one
    SCORE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The negative of each positive number `first` to `last`: the nearest that is farther, else the farthest one.

    Grid: (row blocks,). outs: `Semihard`; if first > 0 only its columns are written.
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    begin, stop, ref_column = load_ranges(ranges, r, N)
    if (first > 0) & (tl.max(stop - begin) <= first):
        return
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS)
    (margin,) = load_numbers(margin)
    state: tl.constexpr = outs.states.dtype.element_ty
    total, active = tl.zeros([BM], state), tl.zeros([BM], state)
    columns = count(y, M)

    for k0 in range(first, tl.minimum(tl.max(stop - begin), last), K):
        t = load_thresholds(
            x, y, xs, own, r0, begin + k0, stop, ref_column, N, M, D, SCORE, K, PRECISION, BM, BN, BD, CHUNKS
        )  # fmt: skip
        far = tl.full([BM], float("-inf"), tl.float32)
        far_index = tl.full([BM], -1, tl.int32)
        best = ()
        index = ()
        for _ in tl.static_range(K):
            best = best + (far,)
            index = index + (far_index,)
        for c0 in range(0, columns, BN):
            c = c0 + tl.arange(0, BN)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS)
            neg = negative_mask(xl, load(y.labels, c, M), c, columns)
            far, far_index = keep_best(far, far_index, s, neg, c[None, :])
            grown = ()
            grown_index = ()
            for k in tl.static_range(K):
                b, i = keep_best(best[k], index[k], -s, neg & ~(s <= t[k][:, None]), c[None, :])
                grown = grown + (b,)
                grown_index = grown_index + (i,)
            best = grown
            index = grown_index
        for k in tl.static_range(K):
            negative = tl.where(index[k] < 0, far_index, index[k])
            h = t[k] - tl.where(index[k] < 0, far, -best[k]) + margin
            term = tl.where((t[k] == float("-inf")) | (negative < 0), 0.0, tl.where(h <= 0.0, 0.0, h))
            total += term.to(state)
            active += (term > 0.0).to(state)
            at = outs.columns + (k0 + k - first) * N.to(tl.int64) + r
            tl.store(at, tl.where(term > 0.0, negative, -1), mask=(r < N) & (k0 + k - first < width))

    tl.store(outs.states + r, total, mask=r < N)
    tl.store(outs.states + N.to(tl.int64) + r, active, mask=r < N)


@triton.jit
def along(v, AXIS: tl.constexpr):
    """Values of the rows (AXIS 0) or of the columns (1) of a tile, to be broadcast over it."""
    return v[:, None] if AXIS == 0 else v[None, :]


@triton.jit
def anchor_grad(
    s, anchors, a, others, margin, n, first, width, parts, neg, near,
    AXIS: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    """dL/ds of a tile through the anchors `a` along one axis, whose pairs are with `others` along the other axis.
    [BM, BN]"""
    s = tl.where(neg, s, float("inf"))
    begin = load(anchors.start, a, n)
    left = tl.minimum(load(anchors.stop, a, n) - begin - first, width)
    reached = tl.zeros(neg.shape, tl.float32)
    for k in range(0, tl.max(left)):
        at = anchors.thresholds + k * n.to(tl.int64) + a
        if KIND == "nearest":
            negative = tl.load(at, mask=k < left, other=-1)
            reached += (along(negative, AXIS) == along(others, 1 - AXIS)).to(tl.float32)
        else:
            t = tl.load(at, mask=k < left, other=float("-inf"))
            _term, slope, _chosen = triplet(along(t, AXIS) - s, margin, KIND, SOFT)
            reached += slope
    g = tl.where(neg, -reached, 0.0)
    if near:
        for k in range(0, tl.max(left)):
            at = k * n.to(tl.int64) + a
            if KIND == "nearest":
                slope = (tl.load(anchors.thresholds + at, mask=k < left, other=-1) >= 0).to(tl.float32)
            else:
                slope = tl.load(anchors.slopes + at, mask=k < left, other=0.0)
                for part in range(1, parts):
                    slope += tl.load(anchors.slopes + part * width * n.to(tl.int64) + at, mask=k < left, other=0.0)
            positive = along(begin + first + k, AXIS) == along(others, 1 - AXIS)
            g += tl.where(positive, along(slope, AXIS), 0.0)
    return g * along(load(anchors.du, a, n), AXIS)


@triton.jit(do_not_specialize=["N", "M", "first", "width", "parts"])
def triplets_grad(
    x, y, x_anchors, y_anchors, out_ptr, number, longest_ptr, N, M, D, first, width, parts,  # out [splits, N, D]
    SCORE: tl.constexpr, ANCHORS: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
    SLAB: tl.constexpr,
):  # fmt: skip
    """dx of the rows that this program owns, as in `grad`, through each anchor's positives number `first` to
    `first + width`. Grid: (row blocks, splits, slabs).

    ANCHORS: the function for dL/ds through the anchors of one side, `anchor_grad` or `ranking.rank_grad`; it takes one
    number of the loss (`tiles.Numbers`).
    x_anchors, y_anchors: `Triplets` or `ranking.Ranked` of the own rows and of the other side, or () if they are not
    anchors. For "nearest" only tiles with one of their pairs are computed.
    ADD: add to what earlier programs wrote. If no anchor has more than `first` positives, nothing is done.
    """
    if tl.load(longest_ptr) <= first:
        return
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS)
    (number,) = load_numbers(number)
    slab = tl.program_id(2) * SLAB * BD
    acc = ()
    for _ in tl.static_range(SLAB):
        acc = acc + (tl.zeros([BM, BD], tl.float32),)
    row_share = tl.zeros([BM], tl.float32)
    top = tl.full([BM], LOWEST, tl.int32)

    rows, columns = count(x, N), count(y, M)
    start, end = split_columns(columns, BN)
    for c0 in range(start, end, BN):
        c = c0 + tl.arange(0, BN)
        yl = load(y.labels, c, M)
        neg = negative_mask(xl, yl, c, columns) & (r < rows)[:, None]
        near = share_labels(xl, yl)
        g = tl.zeros([BM, BN], tl.float32)
        if KIND == "nearest":
            if len(x_anchors) > 0:
                g += ANCHORS(g, x_anchors, r, c, number, N, first, width, parts, neg, near, 0, KIND, SOFT)
            if len(y_anchors) > 0:
                g += ANCHORS(g, y_anchors, c, r, number, M, first, width, parts, neg, near, 1, KIND, SOFT)
        if KIND != "nearest" or tl.max((g != 0.0).to(tl.int32)) > 0:
            ys = load_chunks(y.rows, c0, M, D, BN, BD, CHUNKS)
            e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, BN, BD, PRECISION)
            s, d_e, t, _f = SCORE(e, own, load_norms(y.norms, c, M, 0))
            if KIND != "nearest":
                if len(x_anchors) > 0:
                    g += ANCHORS(s, x_anchors, r, c, number, N, first, width, parts, neg, near, 0, KIND, SOFT)
                if len(y_anchors) > 0:
                    g += ANCHORS(s, y_anchors, c, r, number, M, first, width, parts, neg, near, 1, KIND, SOFT)
            if KIND == "nearest" or tl.max((g != 0.0).to(tl.int32)) > 0:
                w, acc, row_share, top = round_weights(g * d_e, acc, row_share, top, x.rows.dtype.element_ty, PRECISION)
                if PRECISION != "manhattan":
                    row_share += tl.sum(w.to(tl.float32) * t, 1)
                acc = accumulate_grad(acc, w, x.rows, y.rows, ys, r0, c0, slab, N, M, D, BD, PRECISION)

    own = load_norms(x.norms, r, N, 1)  # loaded again rather than held in registers through the loop
    _s, _d, _t, f = SCORE(own[0], own, own)
    store_gradient(
        out_ptr, acc, row_share, top, f, 1.0, x, r0, rows, slab, N, D, PRECISION, PRECISION != "manhattan", ADD, BD
    )
