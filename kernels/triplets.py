"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory.

Rows are sorted by label, so the positives of an anchor are a run of columns. Their scores are the anchor's thresholds:
a program sorts those of its rows, highest first, and keeps them in memory. Then it computes each tile of scores once
and compares it with K thresholds at a time. As soon as no pair of the tile is near enough for the next threshold, none
is for those behind it, and the program goes on to the next tile.

Threshold k is the kth highest score of an anchor's positives. -inf stands for no positive, and a score of inf for no
negative: d(a, p) - d(a, n) is then -inf, which costs nothing.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .losses import log1p, relu
from .tiles import load, load_chunks, load_norms, load_numbers, score_tile
from .walks import column, count, negative_mask, place, walks


class Ranges(NamedTuple):
    """The columns that have the label of every anchor; an ignored anchor has none. [N] each"""

    start: Any
    stop: Any
    ref_column: Any  # the column that is the anchor itself, or -1


class Kept(NamedTuple):
    """Of `width` positives of each anchor, what the backward needs. In the end, all splits have the same thresholds.
    [splits, width, lanes] each"""

    thresholds: Any  # `lifted`; -inf for no positive
    ranks: Any  # of each positive by its number, the place of its threshold
    slopes: Any  # of the triplets of each threshold, summed


LANES: tl.constexpr = tl.constexpr(256)


@triton.jit
def lanes(n):
    """The stride between thresholds: no program reads anchors beyond it, so that loads need no mask."""
    return tl.cdiv(n, LANES).to(tl.int64) * LANES


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def triplet(t, s, margin, KIND: tl.constexpr, SOFT: tl.constexpr):
    """From a threshold, as `lifted` returns it, and a score: the term, its slope, and 1 for a triplet of the kind."""
    if KIND == "all":
        h = t - s
    else:
        h = (t - s) + margin
    if SOFT:
        v = tl.exp(-tl.abs(h))
        term = relu(h) + log1p(v)
        slope = tl.where(h < 0.0, v, 1.0) / (1.0 + v)
    elif KIND == "all":  # the slope does not need h, for which a gradient has no other use
        term = relu(h)
        slope = tl.where(t <= s, 0.0, 1.0)
    else:
        term = relu(h)
        slope = tl.where(h <= 0.0, 0.0, 1.0)
    if KIND == "all":
        return term, slope, 1.0
    else:
        gap = t - s
        if KIND == "hard":
            chosen = ~(gap < 0.0)
        elif KIND == "semihard":
            chosen = ~(gap >= 0.0) & ~(gap < -margin)
        else:
            chosen = ~(gap >= -margin) & (gap != float("-inf"))
        return tl.where(chosen, term, 0.0), tl.where(chosen, slope, 0.0), tl.where(chosen, 1.0, 0.0)


@triton.jit
def lifted(t, margin, KIND: tl.constexpr):
    """A threshold with the margin, if that says all of a triplet."""
    return t + margin if KIND == "all" else t


@triton.jit
def reach(gap, margin, KIND: tl.constexpr, SOFT: tl.constexpr):
    """Whether triplets with gaps t - s up to one of these may cost something or be of the kind; thresholds are as
    `lifted` returns them. NaN always may."""
    if KIND == "hard":
        may = ~(gap < 0.0)
    elif KIND == "semihard":
        may = ~(gap < -margin)
    elif KIND == "easy" or SOFT:
        may = gap != float("-inf")
    else:
        may = ~(gap <= 0.0)
    return tl.max(may.to(tl.int32)) > 0


@triton.jit
def load_ranges(ranges, rows, n):
    live = rows < n
    return (
        load(ranges.start, rows, n),
        load(ranges.stop, rows, n),
        tl.load(ranges.ref_column + rows, mask=live, other=-1),
    )


@triton.jit
def farther(s, xl, yl, c, columns):
    """The scores of the negatives; inf for all other pairs. [BM, BN]"""
    return tl.where(negative_mask(xl, yl, c, columns), s, float("inf"))


@triton.jit
def keep_scores(
    scores_ptr, x, y, xs, own, r0, begin, stop, ref_column, left, N, M, D,
    SCORE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Write the scores of each anchor with its positives in the `left` columns from `begin` on, -inf for the anchor
    itself, to scores [width, lanes]."""
    r = r0 + tl.arange(0, BM)
    some = left > 0
    for c0 in tl.range(tl.min(tl.where(some, begin, M)), tl.max(tl.where(some, begin + left, 0)), BN, num_stages=1):
        c = c0 + tl.arange(0, BN)
        s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS, False, EVEN)
        s = tl.where(c[None, :] == ref_column[:, None], float("-inf"), s)
        number = c[None, :] - begin[:, None]
        inside = (number >= 0) & (number < left[:, None])
        tl.store(scores_ptr + number * lanes(N) + r[:, None], s, mask=inside)
    tl.debug_barrier()  # other threads read them


@triton.jit
def rank_scores(
    scores_ptr, thresholds_ptr, ranks_ptr, r, left, filled, margin, N, KIND: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """Sort the `left` scores of each row, the highest first and NaN before it; of equal ones the first comes first.
    Thresholds are `lifted`, and -inf for no positive up to number `filled`."""
    most = tl.max(left)
    for k in range(tl.maximum(tl.min(left), 0), filled):
        tl.store(thresholds_ptr + k * lanes(N) + r, tl.full(r.shape, float("-inf"), tl.float32), mask=k >= left)
    for p in range(0, most):
        t = tl.load(scores_ptr + p * lanes(N) + r, mask=p < left, other=float("-inf"))
        key = tl.where(t == t, t, float("inf"))
        rank = tl.zeros(r.shape, tl.int32)
        for first in range(0, most, STEP):
            q = first + tl.arange(0, STEP)[None, :]
            at = scores_ptr + q * lanes(N) + r[:, None]
            other = tl.load(at, mask=q < left[:, None], other=float("-inf"))
            other = tl.where(other == other, other, float("inf"))
            before = (other > key[:, None]) | ((other == key[:, None]) & (q < p))
            rank += tl.sum(before.to(tl.int32), 1)
        tl.store(thresholds_ptr + rank * lanes(N) + r, lifted(t, margin, KIND), mask=p < left)
        tl.store(ranks_ptr + p * lanes(N) + r, rank.to(ranks_ptr.dtype.element_ty), mask=p < left)
    tl.debug_barrier()


@triton.jit
def load_threshold(thresholds_ptr, k, r, n):
    return tl.load(thresholds_ptr + k * lanes(n) + r)


@triton.jit
def add_tile(
    total, counted, s, first, thresholds_ptr, slopes_ptr, r, left, N, margin,
    KIND: tl.constexpr, SOFT: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The sums of the terms and of what is counted, after a tile of scores. first: the highest thresholds."""
    least = tl.reduce(s, 1, smaller)
    go = reach(first - least, margin, KIND, SOFT)
    if go:
        most = tl.max(left)
        costs, counts = tl.zeros(r.shape, tl.float32), tl.zeros(r.shape, tl.float32)
        k = 0
        while go:
            for j in tl.static_range(K):
                t = load_threshold(thresholds_ptr, k + j, r, N)
                term, slope, of_kind = triplet(t[:, None], s, margin, KIND, SOFT)
                if COUNT == "chosen":
                    one = of_kind
                elif COUNT == "active":
                    one = tl.where(term > 0.0, 1.0, 0.0)
                else:
                    one = term
                if j == 0:
                    terms, ones = term, one
                else:
                    terms += term
                    ones += one
                at = slopes_ptr + (k + j) * lanes(N) + r
                here = k + j < left
                sloped = tl.where(t == float("-inf"), 0.0, tl.sum(slope, 1))  # also if the score is NaN
                tl.store(at, tl.load(at, mask=here, other=0.0) + sloped, mask=here)
            costs += tl.sum(terms, 1)
            if COUNT != "none":
                counts += tl.sum(ones, 1)
            k += K
            t = load_threshold(thresholds_ptr, tl.minimum(k, most - 1), r, N)
            go = (k < most) & reach(t - least, margin, KIND, SOFT)
        total += costs.to(total.dtype)
        counted += counts.to(total.dtype)
        tl.debug_barrier()  # the next tile adds to the same slopes, by other threads perhaps
    return total, counted


@triton.jit(do_not_specialize=["N", "M", "width"])
def fold_triplets(
    x, y, ranges, kept, states_ptr, margin, N, M, D, width,  # states [splits, 3, N]
    SCORE: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The triplets of each anchor with the columns of a split. Grid: (row blocks, splits).

    kept: `Kept`, in the end of each anchor's first `width` positives; the others come before them, as many at a time.
    margin: `tiles.Numbers`, one. States: the sum of the terms; how many triplets are of the kind or, if COUNT is
    "active", cost something, or 0 if it is "none"; and the sum of the slopes.
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    begin, stop, ref_column = load_ranges(ranges, r, N)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    (margin,) = load_numbers(margin)
    state: tl.constexpr = states_ptr.dtype.element_ty
    # What only the tiles know: the number of all triplets follows from labels, and a hinge's slopes count its terms.
    KNOWN: tl.constexpr = (COUNT == "chosen" and KIND == "all") or (COUNT == "active" and not SOFT)
    TALLY: tl.constexpr = "none" if KNOWN else COUNT
    total, counted, sloped = tl.zeros([BM], state), tl.zeros([BM], state), tl.zeros([BM], state)
    split = tl.program_id(1) * width * lanes(N)
    thresholds_ptr, ranks_ptr, slopes_ptr = kept.thresholds + split, kept.ranks + split, kept.slopes + split
    rows, columns = count(x, N), count(y, M)
    far, near = walks(x, rows, columns, BM, BN, False)

    turns = tl.cdiv(tl.max(stop - begin), width)
    if turns == 0:  # no anchor here has a positive, which the backward sees by the thresholds
        for k in range(0, width):
            tl.store(thresholds_ptr + k * lanes(N) + r, tl.full([BM], float("-inf"), tl.float32))
    for turn in range(0, turns):
        at = begin + (turns - 1 - turn) * width
        left = tl.minimum(stop - at, width)
        keep_scores(
            slopes_ptr, x, y, xs, own, r0, at, stop, ref_column, left, N, M, D, SCORE, PRECISION, EVEN, BM, NEAR, BD,
            CHUNKS,
        )  # fmt: skip
        rank_scores(slopes_ptr, thresholds_ptr, ranks_ptr, r, left, width, margin, N, KIND, NEAR)
        for k in range(0, tl.max(left)):
            tl.store(slopes_ptr + k * lanes(N) + r, tl.zeros([BM], tl.float32), mask=k < left)
        tl.debug_barrier()
        highest = load_threshold(thresholds_ptr, 0, r, N)

        for step in range(far[0], far[1], BN):
            c0 = column(step, far, BN)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS, True, EVEN)
            total, counted = add_tile(
                total, counted, s, highest, thresholds_ptr, slopes_ptr, r, left, N, margin, KIND, SOFT, TALLY, K
            )  # fmt: skip
        for step in tl.range(near[0], near[1], NEAR, num_stages=1):
            c0 = column(step, near, NEAR)
            c = c0 + tl.arange(0, NEAR)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, NEAR, BD, CHUNKS, False, EVEN)
            s = farther(s, xl, load(y.labels, c, M), c, columns)
            total, counted = add_tile(
                total, counted, s, highest, thresholds_ptr, slopes_ptr, r, left, N, margin, KIND, SOFT, TALLY, K
            )  # fmt: skip
        for k in range(0, tl.max(left)):
            sloped += tl.load(slopes_ptr + k * lanes(N) + r, mask=k < left, other=0.0).to(state)
        tl.debug_barrier()  # before the memory is used again

    positives = stop - begin - (ref_column >= 0).to(tl.int32)
    if COUNT == "chosen" and KIND == "all":
        negatives = tl.where(tl.program_id(1) == 0, columns - (stop - begin), 0)
        counted = positives.to(state) * negatives.to(state)
    if COUNT == "active" and not SOFT:
        counted = sloped
    out = states_ptr + tl.program_id(1).to(tl.int64) * 3 * N + place(x, r, N)
    some = (positives > 0) & (r < rows)  # an anchor without positives is not even in triplets of NaN
    tl.store(out, tl.where(some, total, 0.0), mask=r < N)
    tl.store(out + N.to(tl.int64), tl.where(some, counted, 0.0), mask=r < N)
    tl.store(out + 2 * N.to(tl.int64), tl.where(some, sloped, 0.0), mask=r < N)
