"""Ranks of an anchor's positives among its other rows, without a triple in memory.

The rank of a positive is 1 + the sum of logistic(z) over the anchor's other rows, z = scale (s - t) of their scores s
and the positive's own score t. As in `triplets.py`, rows are sorted by label and the scores of K positives of an anchor
are thresholds in registers. A loss is not a sum over the other rows: a piece (`losses.py`) makes terms of the whole
rank of a positive. So a program streams all columns against its positives, and programs share out the positives.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .gradients import zeros
from .tiles import load, load_chunks, load_norms, score_tile
from .triplet_grads import along, load_left
from .triplets import load_ranges
from .walks import count, negative_mask


class Terms(NamedTuple):
    """What `rank` writes: the piece's terms of each anchor's positives, summed over a share of the positives."""

    states: Any  # [shares, TERMS, N]


class Weights(NamedTuple):
    """What `rank` writes for the backward: weights of positives number `first` to `last`, as `Ranked` takes them."""

    dstates: Any  # input: dL by the sums of the terms [TERMS, N]
    weights: Any  # [4, last - first, N]


class Ranked(NamedTuple):
    """The anchors of one side in the backward, and their positives number `first` to `first + width`."""

    start: Any  # as in `triplets.Ranges` [n]
    stop: Any
    ref_column: Any
    weights: Any  # for each positive: its score, dL by the z of other positives and of negatives, without the slope
    # there, and dL by its own score [4, width, n]


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
def share_labels(xl, yl):
    """Whether the label ranges of two blocks overlap; if not, no pair of the tile is positive."""
    return (tl.min(xl) <= tl.max(yl)) & (tl.min(yl) <= tl.max(xl))


@triton.jit(do_not_specialize=["N", "M", "first", "last"])
def rank(
    x, y, ranges, outs, scale, numbers, N, M, D, first, last,  # numbers: the piece's
    SCORE: tl.constexpr, PIECE: tl.constexpr, TERMS: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The ranks of a share of each anchor's positives number `first` to `last`. Grid: (row blocks, shares).

    outs: `Terms`, or `Weights` for the backward.
    """
    WEIGHTS: tl.constexpr = len(outs) > 1
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    begin, stop, ref_column = load_ranges(ranges, r, N)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS)
    totals = ()
    if not WEIGHTS:
        for _ in tl.static_range(TERMS):
            totals = totals + (tl.zeros([BM], outs.states.dtype.element_ty),)

    columns = count(y, M)
    share = first + tl.program_id(1) * K
    for k0 in range(share, tl.minimum(tl.max(stop - begin), last), tl.num_programs(1) * K):
        t = load_thresholds(
            x, y, xs, own, r0, begin + k0, stop, ref_column, N, M, D, SCORE, K, PRECISION, BM, BN, BD, CHUNKS
        )  # fmt: skip
        others, negatives, others_slope, negatives_slope = zeros(K, BM), zeros(K, BM), zeros(K, BM), zeros(K, BM)
        for c0 in range(0, columns, BN):
            c = c0 + tl.arange(0, BN)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS)
            yl = load(y.labels, c, M)
            neg = negative_mask(xl, yl, c, columns)
            negatives, negatives_slope = add_ranks(negatives, negatives_slope, s, t, scale, neg, c, None, WEIGHTS)
            if share_labels(xl, yl):
                pos = is_positive(c[None, :], begin[:, None], stop[:, None], ref_column[:, None])
                others, others_slope = add_ranks(others, others_slope, s, t, scale, pos, c, begin + k0, WEIGHTS)

        for k in tl.static_range(K):
            present = is_positive(begin + k0 + k, begin, stop, ref_column)
            terms = PIECE(1.0 + others[k], negatives[k], numbers)
            if WEIGHTS:
                by_others, by_negatives = zeros(2, BM)
                for i in tl.static_range(TERMS):
                    dstate = load(outs.dstates + i * N.to(tl.int64), r, N)
                    by_others += dstate * terms[i][1]
                    by_negatives += dstate * terms[i][2]
                pull = -scale * (by_others * others_slope[k] + by_negatives * negatives_slope[k])
                at = outs.weights + (k0 + k - first) * N.to(tl.int64) + r
                step = (last - first) * N.to(tl.int64)
                kept = (r < N) & (k0 + k < last)
                tl.store(at, t[k], mask=kept)
                tl.store(at + step, tl.where(present, scale * by_others, 0.0), mask=kept)
                tl.store(at + 2 * step, tl.where(present, scale * by_negatives, 0.0), mask=kept)
                tl.store(at + 3 * step, tl.where(present, pull, 0.0), mask=kept)
            else:
                grown = ()
                for i in tl.static_range(TERMS):
                    grown = grown + (totals[i] + tl.where(present, terms[i][0], 0.0).to(totals[i].dtype),)
                totals = grown

    if not WEIGHTS:
        for i in tl.static_range(TERMS):
            at = (tl.program_id(1) * TERMS + i) * N.to(tl.int64) + r
            tl.store(outs.states + at, totals[i], mask=r < N)


@triton.jit
def above(s, t, scale):
    """logistic(scale (s - t)), and its slope there; arguments below -83 count as -83."""
    z = (s - t) * (scale * -1.4426950408889634)  # the exponent of a power of 2, which takes one instruction
    v = tl.exp2(tl.minimum(z, 120.0, propagate_nan=tl.PropagateNan.ALL))
    h = 1.0 / (1.0 + v)
    return h, v * h * h


@triton.jit
def add_ranks(sums, slopes, s, t, scale, mask, c, at, WEIGHTS: tl.constexpr):
    """For each of K thresholds t, the sum of logistic(scale (s - t)) over the pairs of a tile in the mask and, if
    WEIGHTS, of its slopes. The pair of threshold k itself, in column at + k, is left out, unless `at` is None. K of
    [BM] each"""
    grown, grown_slopes = (), ()
    for k in tl.static_range(len(t)):
        h, slope = above(s, t[k][:, None], scale)
        among = mask
        if at is not None:
            among = mask & (c[None, :] != (at + k)[:, None])
        grown = grown + (sums[k] + tl.sum(tl.where(among, h, 0.0), 1),)
        if WEIGHTS:
            grown_slopes = grown_slopes + (slopes[k] + tl.sum(tl.where(among, slope, 0.0), 1),)
        else:
            grown_slopes = grown_slopes + (slopes[k],)
    return grown, grown_slopes


@triton.jit
def pushed(s, t, weight, scale, AXIS: tl.constexpr):
    """dL/ds of a tile through the rank of one positive of each anchor, whose score is t."""
    _h, slope = above(s, along(t, AXIS), scale)
    return along(weight, AXIS) * slope


@triton.jit
def push_ranks(
    g, s, anchors, a, others, scale, n, first, width,
    AXIS: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The same as `triplet_grads.push_triplets`, for the ranks of the anchors' positives."""
    left, step = load_left(anchors, a, n, first, width), width * n.to(tl.int64)
    for k in range(0, tl.max(left)):
        at = anchors.weights + k * n.to(tl.int64) + a
        t = tl.load(at, mask=k < left, other=0.0)
        g += pushed(s, t, tl.load(at + 2 * step, mask=k < left, other=0.0), scale, AXIS)
    return g, tl.max(left) > 0


@triton.jit
def pull_ranks(s, anchors, a, others, scale, n, first, width, parts, AXIS: tl.constexpr):
    """The same as `triplet_grads.pull_triplets`. A positive is pulled, and pushes the other positives."""
    left, step = load_left(anchors, a, n, first, width), width * n.to(tl.int64)
    start, stop = along(load(anchors.start, a, n), AXIS), along(load(anchors.stop, a, n), AXIS)
    ref_column = along(tl.load(anchors.ref_column + a, mask=a < n, other=-1), AXIS)
    column = along(others, 1 - AXIS)
    g = tl.zeros(s.shape, tl.float32)
    for k in range(0, tl.max(left)):
        at = anchors.weights + k * n.to(tl.int64) + a
        t = tl.load(at, mask=k < left, other=0.0)
        push = pushed(s, t, tl.load(at + step, mask=k < left, other=0.0), scale, AXIS)
        pull = along(tl.load(at + 3 * step, mask=k < left, other=0.0), AXIS)
        g += tl.where(column == start + first + k, pull, push)
    return tl.where(is_positive(column, start, stop, ref_column), g, 0.0)
