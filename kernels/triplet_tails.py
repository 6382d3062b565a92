"""The end of the gradient of all triplets: its parts are added up, and what comes through positives that are not kept.

Only classes of more than `first` rows have such positives. Their thresholds and slopes would not fit in memory, so each
program computes them again for its tiles: that takes far less than to compare them with all negatives.
"""

import triton
import triton.language as tl

from .gradients import store_gradient, zeros
from .tiles import LOWEST, accumulate, accumulate_grad, load, load_norms, load_numbers, round_weights, score_tile
from .triplets import farther, lifted, triplet
from .walks import count, place


@triton.jit
def nth(tile, k):
    """Column k of a tile. [BM]"""
    return tl.sum(tl.where(tl.arange(0, tile.shape[1])[None, :] == k, tile, 0.0), 1)


@triton.jit
def push_tail(
    s, x, y, ranges, a0, first, margin, N, M, D,
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, PRECISION: tl.constexpr, BA: tl.constexpr,
    BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The slopes of the triplets of anchors a0 to a0 + BA of x, summed over their positives in y from number `first`
    on, for pairs with the scores s [BA, .], inf where they are not negative."""
    a = a0 + tl.arange(0, BA)
    own = load_norms(x.norms, a, N, 1)
    start, stop = load(ranges.start, a, N) + first, load(ranges.stop, a, N)
    ref_column = tl.load(ranges.ref_column + a, mask=a < N, other=-1)
    pushed = tl.zeros(s.shape, tl.float32)
    for p0 in range(tl.min(tl.where(start < stop, start, M)), tl.max(tl.where(start < stop, stop, 0)), BP):
        scores = score_tile(x, y, (), own, a0, p0, N, M, D, SCORE, PRECISION, BA, BP, BD, 0)
        for k in range(0, BP):
            p = p0 + k
            t = tl.where((p >= start) & (p < stop) & (p != ref_column), nth(scores, k), float("-inf"))
            _term, slope, _of_kind = triplet(lifted(t, margin, KIND)[:, None], s, margin, KIND, SOFT)
            pushed += slope
    return pushed


@triton.jit
def pull_tail(
    s, x, y, ranges, a0, p0, first, columns, margin, N, M, D,
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, PRECISION: tl.constexpr, BA: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The slopes of the triplets of anchors of x and positives p0 and on of y, whose scores are s [BA, BP], summed over
    the negatives; 0 for pairs that are not positive or whose number is less than `first`."""
    BP: tl.constexpr = s.shape[1]
    a, p = a0 + tl.arange(0, BA), (p0 + tl.arange(0, BP))[None, :]
    own, labels = load_norms(x.norms, a, N, 1), load(x.labels, a, N)
    start, stop = load(ranges.start, a, N)[:, None] + first, load(ranges.stop, a, N)[:, None]
    ref_column = tl.load(ranges.ref_column + a, mask=a < N, other=-1)[:, None]
    positive = (p >= start) & (p < stop) & (p != ref_column)
    pulled = tl.zeros(s.shape, tl.float32)
    if tl.max(positive.to(tl.int32)) > 0:
        t = lifted(tl.where(positive, s, float("-inf")), margin, KIND)
        for n0 in range(0, columns, BN):
            n = n0 + tl.arange(0, BN)
            scores = score_tile(x, y, (), own, a0, n0, N, M, D, SCORE, PRECISION, BA, BN, BD, 0)
            scores = farther(scores, labels, load(y.labels, n, M), n, columns)
            for k in range(0, BP):
                _term, slope, _of_kind = triplet(nth(t, k)[:, None], scores, margin, KIND, SOFT)
                pulled += tl.where(p == p0 + k, tl.sum(slope, 1)[:, None], 0.0)
    return tl.where(positive, pulled, 0.0)


@triton.jit
def tail_grad(
    s, x, y, ranges, du, a0, b0, first, columns, margin, N, M, D,
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, PRECISION: tl.constexpr, BA: tl.constexpr,
    BB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dL/ds of a tile through its rows, which are anchors of x, and some of which have more than `first` positives."""
    a, b = a0 + tl.arange(0, BA), b0 + tl.arange(0, BB)
    negatives = farther(s, load(x.labels, a, N), load(y.labels, b, M), b, columns)
    pushed = push_tail(
        negatives, x, y, ranges, a0, first, margin, N, M, D, SCORE, KIND, SOFT, PRECISION, BA, 16, BD
    )  # fmt: skip
    pushed = tl.where(negatives == float("inf"), 0.0, pushed)
    pulled = pull_tail(
        s, x, y, ranges, a0, b0, first, columns, margin, N, M, D, SCORE, KIND, SOFT, PRECISION, BA, BB, BD
    )  # fmt: skip
    return (pulled - pushed) * load(du, a, N)[:, None]


@triton.jit
def longest(ranges, a, n):
    """The most columns with the label of one of the anchors."""
    return tl.max(load(ranges.stop, a, n) - load(ranges.start, a, n))


@triton.jit
def add_tail(
    x, y, x_anchors, y_anchors, parts_ptr, margin, r0, slab, N, M, D, first,
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    r = r0 + tl.arange(0, BM)
    own = load_norms(x.norms, r, N, 1)
    acc = zeros(SLAB, BM, BD)
    row_share = tl.zeros([BM], tl.float32)
    top = tl.full([BM], LOWEST, tl.int32)
    rows, columns = count(x, N), count(y, M)
    for c0 in range(0, columns, BN):
        e = accumulate(x.rows, y.rows, (), (), r0, c0, N, M, D, BM, BN, BD, PRECISION)
        s, d_e, t, _f = SCORE(e, own, load_norms(y.norms, c0 + tl.arange(0, BN), M, 0))
        g = tl.zeros([BM, BN], tl.float32)
        if len(x_anchors) > 0:
            if longest(x_anchors[0], r, N) > first:
                g += tail_grad(
                    s, x, y, x_anchors[0], x_anchors[1], r0, c0, first, columns, margin, N, M, D,
                    SCORE, KIND, SOFT, PRECISION, BM, BN, BD,
                )  # fmt: skip
        if len(y_anchors) > 0:
            if longest(y_anchors[0], c0 + tl.arange(0, BN), M) > first:
                h = tail_grad(
                    tl.trans(s), y, x, y_anchors[0], y_anchors[1], c0, r0, first, rows, margin, M, N, D,
                    SCORE, KIND, SOFT, PRECISION, BN, BM, BD,
                )  # fmt: skip
                g += tl.trans(h)
        w, acc, row_share, top = round_weights(g * d_e, acc, row_share, top, x.rows.dtype.element_ty, PRECISION)
        if PRECISION != "manhattan":
            row_share += tl.sum(w.to(tl.float32) * t, 1)
        acc = accumulate_grad(acc, w, x.rows, y.rows, (), r0, c0, slab, N, M, D, BD, PRECISION)
    _s, _d, _t, f = SCORE(own[0], own, own)
    store_gradient(
        parts_ptr, acc, row_share, top, f, 1.0, x, r0, rows, slab, N, D, PRECISION, PRECISION != "manhattan", True, BD
    )
    tl.debug_barrier()  # other threads read it


@triton.jit(do_not_specialize=["N", "M", "first", "splits"])
def triplets_tail(
    x, y, x_anchors, y_anchors, parts_ptr, out_ptr, number, longest_ptr, N, M, D, first, splits,  # parts [splits, N, D]
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """dx [N, D] of the rows that this program owns: the sum of its parts and of what comes through the positives from
    number `first` on, if an anchor has so many. Grid: (row blocks, 1, slabs).

    x_anchors, y_anchors: (`triplets.Ranges`, dL by each anchor's sum) of the own rows and of the other side, or () if
    they are not anchors.
    """
    r0 = tl.program_id(0) * BM
    slab = tl.program_id(2) * SLAB * BD
    if tl.load(longest_ptr) > first:
        (margin,) = load_numbers(number)
        add_tail(
            x, y, x_anchors, y_anchors, parts_ptr, margin, r0, slab, N, M, D, first,
            SCORE, KIND, SOFT, PRECISION, BM, BN, BD, SLAB,
        )  # fmt: skip
    r = r0 + tl.arange(0, BM)
    at = place(x, r, N).to(tl.int64)[:, None] * D
    for k in tl.static_range(SLAB):
        dims = (slab + k * BD + tl.arange(0, BD))[None, :]
        inside = (r < N)[:, None] & (dims < D)
        dx = tl.load(parts_ptr + at + dims, mask=inside, other=0.0)
        for split in range(1, splits):
            dx += tl.load(parts_ptr + split * N.to(tl.int64) * D + at + dims, mask=inside, other=0.0)
        tl.store(out_ptr + at + dims, dx.to(out_ptr.dtype.element_ty), mask=inside)
