"""The gradient of losses that compare every positive of an anchor with the anchor's other rows.

A program owns rows of one side. Their pairs are in the triplets of anchors among the own rows, and in those of anchors
on the other side; either may push them apart (they are negative) or pull them together (they are positive). What the
forward found of each anchor's positives is read from memory, so nothing is folded again.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .folds import larger
from .gradients import store_gradient, zeros
from .tiles import (
    LOWEST,
    accumulate,
    accumulate_grad,
    load,
    load_chunks,
    load_norms,
    load_numbers,
    round_weights,
)
from .triplets import lanes, load_threshold, reach, smaller, triplet
from .walks import column, count, negative_mask, walks


class Anchors(NamedTuple):
    """The anchors of one side, and what was kept of their positives number `first` to `first + width`."""

    start: Any  # as in `triplets.Ranges` [n]
    stop: Any
    du: Any  # dL by each anchor's sum [n]
    thresholds: Any  # as in `triplets.Kept`
    ranks: Any
    slopes: Any


class Mined(NamedTuple):
    """The same where each positive has one negative."""

    start: Any
    stop: Any
    du: Any
    negatives: Any  # their columns, -1 where the triplet costs nothing [width, n]


@triton.jit
def along(v, AXIS: tl.constexpr):
    """Values of the rows (AXIS 0) or of the columns (1) of a tile, to be broadcast over it."""
    return v[:, None] if AXIS == 0 else v[None, :]


@triton.jit
def load_left(anchors, a, n, first, width):
    """How many of the kept positives each anchor has."""
    return tl.minimum(load(anchors.stop, a, n) - load(anchors.start, a, n) - first, width)


@triton.jit
def push_triplets(
    g, s, anchors, a, others, margin, n, first, width,
    AXIS: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """g, dL/ds of a tile whose pairs are negative (others have a score of inf), after what comes through the anchors
    `a` along one axis; and whether that may be other than 0. [BM, BN]"""
    t = load_threshold(anchors.thresholds, 0, a, n)
    if AXIS == 0:
        least = tl.reduce(s, 1, smaller)
        go = reach(t - least, margin, KIND, SOFT)
    else:  # the least of each column would cost more than all gaps
        go = reach(tl.reduce(t[None, :] - s, 1, larger), margin, KIND, SOFT)
    some = go
    if go:
        most = tl.max(load_left(anchors, a, n, first, width))
        least = tl.reduce(s, 1 - AXIS, smaller)
        du = along(load(anchors.du, a, n), AXIS)
        k = 0
        while go:
            for j in tl.static_range(K):
                t = load_threshold(anchors.thresholds, k + j, a, n)
                _term, slope, _of_kind = triplet(along(t, AXIS), s, margin, KIND, SOFT)
                g -= slope * du
            k += K
            t = load_threshold(anchors.thresholds, tl.maximum(tl.minimum(k, most - 1), 0), a, n)
            go = (k < most) & reach(t - least, margin, KIND, SOFT)
    return g, some


@triton.jit
def pull_triplets(s, anchors, a, others, margin, n, first, width, parts, AXIS: tl.constexpr):
    """dL/ds of a tile through the anchors along one axis, for the pairs that are positive. [BM, BN]"""
    number = along(others, 1 - AXIS) - along(load(anchors.start, a, n) + first, AXIS)
    kept = (number >= 0) & (number < along(load_left(anchors, a, n, first, width), AXIS))
    step, a_tile = lanes(n).to(tl.int32), along(a, AXIS)  # there is a constant number of bytes, below 2^31
    rank = tl.load(anchors.ranks + (number * step + a_tile), mask=kept, other=0).to(tl.int32)
    at = rank * step + a_tile
    slope = tl.load(anchors.slopes + at, mask=kept, other=0.0)
    for part in range(1, parts):
        slope += tl.load(anchors.slopes + part * width * step + at, mask=kept, other=0.0)
    return slope * along(load(anchors.du, a, n), AXIS)


@triton.jit
def push_mined(
    g, s, anchors, a, others, margin, n, first, width,
    AXIS: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The same as `push_triplets` for `Mined`; the scores do not matter."""
    left = load_left(anchors, a, n, first, width)
    found = tl.zeros(g.shape, tl.float32)
    for k in range(0, tl.max(left)):
        negative = tl.load(anchors.negatives + k * n.to(tl.int64) + a, mask=k < left, other=-1)
        found += (along(negative, AXIS) == along(others, 1 - AXIS)).to(tl.float32)
    return g - found * along(load(anchors.du, a, n), AXIS), tl.max(tl.max(found, 1)) > 0.0


@triton.jit
def pull_mined(s, anchors, a, others, margin, n, first, width, parts, AXIS: tl.constexpr):
    number = along(others, 1 - AXIS) - along(load(anchors.start, a, n) + first, AXIS)
    kept = (number >= 0) & (number < along(load_left(anchors, a, n, first, width), AXIS))
    negative = tl.load(anchors.negatives + (number * n + along(a, AXIS)), mask=kept, other=-1)
    return tl.where(negative >= 0, along(load(anchors.du, a, n), AXIS), 0.0)


@triton.jit
def push_both(
    g, s, x_anchors, y_anchors, r, c, number, N, M, first, width,
    PUSH: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The same through the anchors of both sides."""
    if len(x_anchors) == 0:
        return PUSH(g, s, y_anchors, c, r, number, M, first, width, 1, KIND, SOFT, K)
    elif len(y_anchors) == 0:
        return PUSH(g, s, x_anchors, r, c, number, N, first, width, 0, KIND, SOFT, K)
    else:
        g, some = PUSH(g, s, x_anchors, r, c, number, N, first, width, 0, KIND, SOFT, K)
        g, more = PUSH(g, s, y_anchors, c, r, number, M, first, width, 1, KIND, SOFT, K)
        return g, some | more


@triton.jit
def pull_both(s, x_anchors, y_anchors, r, c, number, N, M, first, width, parts, PULL: tl.constexpr):
    """dL/ds of the positives of a tile through the anchors of both sides, 0 for all other pairs."""
    if len(x_anchors) == 0:
        return PULL(s, y_anchors, c, r, number, M, first, width, parts, 1)
    elif len(y_anchors) == 0:
        return PULL(s, x_anchors, r, c, number, N, first, width, parts, 0)
    else:
        return PULL(s, x_anchors, r, c, number, N, first, width, parts, 0) + PULL(
            s, y_anchors, c, r, number, M, first, width, parts, 1
        )


@triton.jit
def add_tile_gradient(
    acc, row_share, top, sides, held, anchors, number, at, sizes, positives,
    SCORE: tl.constexpr, PUSH: tl.constexpr, PULL: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr,
    K: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The gradient after a tile, of which all pairs are negative if it is FAR. Where no pair has a part in the loss,
    its products are left out; which pairs are mined does not depend on their scores.

    held: of the own rows the chunks, the norms and the labels. at: the first row, column and dimension.
    sizes: N, M, D and how many columns count. positives: `first`, `width` and `parts` of `triplets_grad`.
    """
    x, y = sides
    xs, own, xl = held
    x_anchors, y_anchors = anchors
    r0, c0, slab = at
    N, M, D, columns = sizes
    first, width, parts = positives
    MINED: tl.constexpr = KIND == "nearest"
    r, c = r0 + tl.arange(0, BM), c0 + tl.arange(0, BN)
    g = tl.zeros([BM, BN], tl.float32)
    some = True
    if MINED:
        g, some = push_both(g, g, x_anchors, y_anchors, r, c, number, N, M, first, width, PUSH, KIND, SOFT, K)
    if FAR == 0:
        some = True
    if some:
        ys = load_chunks(y.rows, c0, M, D, BN, BD, CHUNKS, FAR, EVEN)
        e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, BN, BD, PRECISION, FAR, EVEN)
        other = load_norms(y.norms, c, M, 0, FAR)
        s, _d, _t, _f = SCORE(e, own, other)
        if not MINED:
            if FAR:
                g, some = push_both(g, s, x_anchors, y_anchors, r, c, number, N, M, first, width, PUSH, KIND, SOFT, K)
            else:
                negative = negative_mask(xl, load(y.labels, c, M), c, columns)
                apart = tl.where(negative, s, float("inf"))
                g, some = push_both(
                    g, apart, x_anchors, y_anchors, r, c, number, N, M, first, width, PUSH, KIND, SOFT, K
                )  # fmt: skip
                g = tl.where(negative, g, 0.0)
        if not FAR:
            g += pull_both(s, x_anchors, y_anchors, r, c, number, N, M, first, width, parts, PULL)
            some = True
        if some:
            _s, d_e, t, _f = SCORE(e, own, other)  # what only the gradient needs is computed here
            w, acc, row_share, top = round_weights(g * d_e, acc, row_share, top, x.rows.dtype.element_ty, PRECISION)
            if PRECISION != "manhattan":
                row_share += tl.sum(w.to(tl.float32) * t, 1)
            acc = accumulate_grad(acc, w, x.rows, y.rows, ys, r0, c0, slab, N, M, D, BD, PRECISION, FAR, EVEN)
    return acc, row_share, top


@triton.jit(do_not_specialize=["N", "M", "first", "width", "parts"])
def triplets_grad(
    x, y, anchors, outs, number, N, M, D, first, width, parts,
    SCORE: tl.constexpr, PUSH: tl.constexpr, PULL: tl.constexpr, KIND: tl.constexpr, SOFT: tl.constexpr,
    K: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """dx of the rows that this program owns, as in `grad`, through each anchor's positives number `first` to
    `first + width`. Grid: (row blocks, splits, slabs).

    PUSH, PULL: the functions for dL/ds of negative and of positive pairs through the anchors of one side:
    `push_triplets` and `pull_triplets`, `push_mined` and `pull_mined` (KIND "nearest"), or those of `ranking.py`; they
    take one number of the loss (`tiles.Numbers`).
    anchors: `Anchors`, `Mined` or `ranking.Ranked` of the own rows and of the other side, or () if they are not
    anchors. parts: of the slopes.
    outs: dx [splits, N, D], and how many rows have the label of most.
    ADD: add to what earlier programs wrote. Then nothing is done if no anchor has more than `first` positives.
    """
    if ADD:
        if tl.load(outs[1]) <= first:
            return
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    (number,) = load_numbers(number)
    slab = tl.program_id(2) * SLAB * BD
    acc = zeros(SLAB, BM, BD)
    row_share = tl.zeros([BM], tl.float32)
    top = tl.full([BM], LOWEST, tl.int32)
    rows, columns = count(x, N), count(y, M)
    far, near = walks(x, rows, columns, BM, BN, False)

    for at in range(far[0], far[1], BN):
        acc, row_share, top = add_tile_gradient(
            acc, row_share, top, (x, y), (xs, own, xl), anchors, number, (r0, column(at, far, BN), slab),
            (N, M, D, columns), (first, width, parts), SCORE, PUSH, PULL, KIND, SOFT, K, True, PRECISION, EVEN, BM,
            BN, BD, CHUNKS,
        )  # fmt: skip
    for at in tl.range(near[0], near[1], NEAR, num_stages=1):
        acc, row_share, top = add_tile_gradient(
            acc, row_share, top, (x, y), (xs, own, xl), anchors, number, (r0, column(at, near, NEAR), slab),
            (N, M, D, columns), (first, width, parts), SCORE, PUSH, PULL, KIND, SOFT, K, False, PRECISION, EVEN, BM,
            NEAR, BD, CHUNKS,
        )  # fmt: skip

    own = load_norms(x.norms, r, N, 1)  # loaded again rather than held in registers through the loops
    _s, _d, _t, f = SCORE(own[0], own, own)
    store_gradient(
        outs[0], acc, row_share, top, f, 1.0, x, r0, rows, slab, N, D, PRECISION, PRECISION != "manhattan", ADD, BD
    )
