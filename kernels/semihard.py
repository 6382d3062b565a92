"""Semi-hard triplets: each positive with the nearest negative that is farther, else with the farthest one.

As in `triplets.py`, the thresholds of an anchor are sorted and compared with a tile of scores K at a time. Of negatives
beyond a lower threshold the nearest is never farther. So as soon as no pair of a tile is nearer than what is known for
one threshold, none is for those behind it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .mining import NO_PLACE, keep_best
from .tiles import load, load_chunks, load_norms, load_numbers, score_tile
from .triplets import keep_scores, lanes, load_ranges, rank_scores, smaller
from .walks import column, count, negative_mask, place, walks


class Known(NamedTuple):
    """What is known of the thresholds of `room` positives of each anchor while negatives are walked."""

    thresholds: Any  # [splits, room, lanes]
    ranks: Any  # of each positive by its number, the place of its threshold [splits, room, lanes]
    nearest: Any  # the score of the nearest negative beyond each threshold, inf for none [splits, room, lanes]
    columns: Any  # and its column [splits, room, lanes]
    far: Any  # the score of the farthest negative, -inf for none [splits, lanes]
    far_columns: Any  # [splits, lanes]


class Outcome(NamedTuple):
    """What is written of every anchor."""

    states: Any  # the sum of the terms, what is counted, and how many cost something [3, N]
    negatives: Any  # of positives number `first` to `first + width`, -1 where the term is 0 [width, N]


@triton.jit
def improve(known, s, c, t, at, here):
    """Keep the nearest negative beyond the thresholds t [BM]: of a tile of scores, or what is in memory at `at`; of
    equally near ones the first. NaN is nearer than all, so that it shows."""
    before = tl.load(known.nearest + at, mask=here, other=float("-inf"))
    beyond = tl.where(s <= t[:, None], float("inf"), s)
    found = tl.reduce(beyond, 1, smaller)
    found = tl.where(found == found, found, float("-inf"))
    if tl.max((here & (found <= before) & (found < float("inf"))).to(tl.int32)) > 0:
        first = tl.min(tl.where((beyond == found[:, None]) | (s != s), c[None, :], NO_PLACE), 1)
        better = (found < before) | ((found == before) & (first < tl.load(known.columns + at, mask=here, other=-1)))
        better = better & here & (found < float("inf"))
        tl.store(known.nearest + at, found, mask=better)
        tl.store(known.columns + at, first, mask=better)


@triton.jit
def may_improve(nearest_ptr, least, k, r, left, N):
    """Whether a tile whose least scores are given may have something for threshold k, or one behind it."""
    known = tl.load(nearest_ptr + k * lanes(N) + r, mask=k < left, other=float("-inf"))
    return tl.max(((k < left) & ~(least > known)).to(tl.int32)) > 0


@triton.jit
def mine_tile(known, s, c, r, left, N, K: tl.constexpr):
    """Keep the nearest negatives of a tile, in which pairs that are not negative have a score of inf."""
    least = tl.reduce(s, 1, smaller)
    most = tl.max(left)
    k = 0
    go = may_improve(known.nearest, least, k, r, left, N)
    if go:
        while go:
            for j in tl.static_range(K):
                at = (k + j) * lanes(N) + r
                t = tl.load(known.thresholds + at, mask=k + j < left, other=float("inf"))
                t = tl.where(t == t, t, float("inf"))  # nothing is beyond NaN
                improve(known, s, c, t, at, k + j < left)
            k += K
            go = (k < most) & may_improve(known.nearest, least, k, r, left, N)
        tl.debug_barrier()  # the next tile reads them, by other threads perhaps


@triton.jit
def settle(total, active, known, outs, r, left, first, kept, parts, room, N, margin):
    """The sums of the terms and of those above 0, after the `left` positives of each row from number `first` on, of
    which all is known; the negatives of those before number `kept` are stored."""
    step = lanes(N)
    far = tl.load(known.far + r, mask=left > 0, other=float("-inf"))
    far_column = tl.load(known.far_columns + r, mask=left > 0, other=-1)
    for part in range(1, parts):
        other = tl.load(known.far + part * step + r, mask=left > 0, other=float("-inf"))
        at = tl.load(known.far_columns + part * step + r, mask=left > 0, other=-1)
        better = (at >= 0) & ((far_column < 0) | (other > far) | ((other == far) & (at < far_column)))
        far, far_column = tl.where(better, other, far), tl.where(better, at, far_column)
    for p in range(0, tl.max(left)):
        here = p < left
        at = tl.load(known.ranks + p * step + r, mask=here, other=0) * step + r
        t = tl.load(known.thresholds + at, mask=here, other=float("-inf"))
        near = tl.load(known.nearest + at, mask=here, other=float("inf"))
        negative = tl.load(known.columns + at, mask=here, other=-1)
        for part in range(1, parts):
            there = at + part * room * step
            other = tl.load(known.nearest + there, mask=here, other=float("inf"))
            candidate = tl.load(known.columns + there, mask=here, other=-1)
            better = (candidate >= 0) & ((other < near) | ((other == near) & (candidate < negative)))
            near, negative = tl.where(better, other, near), tl.where(better, candidate, negative)
        near = tl.where(negative < 0, far, near)
        negative = tl.where(negative < 0, far_column, negative)
        h = t - near + margin
        term = tl.where((t == float("-inf")) | (negative < 0), 0.0, tl.where(h <= 0.0, 0.0, h))
        term = tl.where((near == float("-inf")) & (term > 0.0), float("nan"), term)
        costs = ~(term == 0.0)
        total += term.to(total.dtype)
        active += costs.to(total.dtype)
        at = outs.negatives + (first + p) * N.to(tl.int64) + r
        tl.store(at, tl.where(costs, negative, -1), mask=here & (first + p < kept))
    return total, active


@triton.jit
def nothing_known(known, r, left, N):
    for k in range(0, tl.max(left)):
        at = k * lanes(N) + r
        tl.store(known.nearest + at, tl.full(r.shape, float("inf"), tl.float32), mask=k < left)
        tl.store(known.columns + at, tl.full(r.shape, -1, tl.int32), mask=k < left)
    tl.debug_barrier()


@triton.jit
def of_split(known, split, room, N):
    """What a split knows."""
    at, some = split * lanes(N), split * room * lanes(N)
    return Known(
        known.thresholds + some, known.ranks + some, known.nearest + some, known.columns + some, known.far + at,
        known.far_columns + at,
    )  # fmt: skip


@triton.jit
def store_states(ptr, total, counted, active, at, r, N):
    tl.store(ptr + at, total, mask=r < N)
    tl.store(ptr + N.to(tl.int64) + at, counted, mask=r < N)
    tl.store(ptr + 2 * N.to(tl.int64) + at, active, mask=r < N)


@triton.jit(do_not_specialize=["N", "M", "first", "last", "kept", "room"])
def mine_semihard(
    x, y, ranges, known, outs, margin, N, M, D, first, last, kept, room,  # margin: `tiles.Numbers`, one
    SCORE: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The negative of each positive number `first` to `last`, and the sums of the terms. Grid: (row blocks, splits).

    known: `Known`, for as many positives at a time as it has room for. Splits share the columns for the first of them,
    and leave what they know to `settle_semihard`; all others, which are only in large classes, are up to split 0.
    outs: `Outcome`, with room for the negatives of the first `kept` positives.
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    begin, stop, ref_column = load_ranges(ranges, r, N)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    (margin,) = load_numbers(margin)
    state: tl.constexpr = outs.states.dtype.element_ty
    total, active = tl.zeros([BM], state), tl.zeros([BM], state)
    rows, columns = count(x, N), count(y, M)
    split, splits = tl.program_id(1), tl.num_programs(1)
    known = of_split(known, split, room, N)
    far, near = walks(x, rows, columns, BM, BN, False)

    turns = tl.cdiv(tl.maximum(tl.minimum(tl.max(stop - begin), last) - first, 0), room)
    for turn in range(tl.where(split == 0, 0, tl.maximum(turns - 1, 0)), turns):
        number = first + (turns - 1 - turn) * room
        shared = (number == first) | (splits == 1)
        left = tl.minimum(stop - begin - number, room)
        keep_scores(
            known.nearest, x, y, xs, own, r0, begin + number, stop, ref_column, left, N, M, D, SCORE, PRECISION, EVEN,
            BM, NEAR, BD, CHUNKS,
        )  # fmt: skip
        rank_scores(known.nearest, known.thresholds, known.ranks, r, left, 0, margin, N, "nearest", NEAR)
        nothing_known(known, r, left, N)
        far_best, far_column = tl.full([BM], float("-inf"), tl.float32), tl.full([BM], -1, tl.int32)
        for step in range(far[0], tl.where(shared, far[1], far[0]), BN):
            c0 = column(step, far, BN)
            c = c0 + tl.arange(0, BN)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS, True, EVEN)
            far_best, far_column = keep_best(far_best, far_column, s, None, c[None, :])
            mine_tile(known, s, c, r, left, N, K)
        for step in tl.range(
            tl.where(shared, near[0], 0), tl.where(shared, near[1], columns), NEAR, num_stages=1
        ):  # fmt: skip
            c0 = tl.where(shared, column(step, near, NEAR), step)
            c = c0 + tl.arange(0, NEAR)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, NEAR, BD, CHUNKS, False, EVEN)
            negative = negative_mask(xl, load(y.labels, c, M), c, columns)
            far_best, far_column = keep_best(far_best, far_column, s, negative, c[None, :])
            mine_tile(known, tl.where(negative, s, float("inf")), c, r, left, N, K)
        tl.store(known.far + r, far_best)
        tl.store(known.far_columns + r, far_column)
        tl.debug_barrier()
        if (splits == 1) | (number > first):
            total, active = settle(total, active, known, outs, r, left, number - first, kept, 1, room, N, margin)
            tl.debug_barrier()  # before the memory is used again

    if split == 0:
        positives = stop - begin - (ref_column >= 0).to(tl.int32)
        counted = active
        if COUNT == "chosen":
            counted = (positives * tl.minimum(columns - (stop - begin), 1)).to(state)
        store_states(outs.states, total, counted, active, place(x, r, N), r, N)


@triton.jit(do_not_specialize=["N", "kept", "room", "splits"])
def settle_semihard(
    x, ranges, known, outs, margin, N, kept, room, splits, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Settle the first positives of all anchors, of which the splits have mined the negatives. Grid: (row blocks,)."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin, stop, _ref_column = load_ranges(ranges, r, N)
    (margin,) = load_numbers(margin)
    at = place(x, r, N)
    total = tl.load(outs.states + at, mask=r < N, other=0.0)
    counted = tl.load(outs.states + N.to(tl.int64) + at, mask=r < N, other=0.0)
    active = tl.load(outs.states + 2 * N.to(tl.int64) + at, mask=r < N, other=0.0)
    left = tl.minimum(stop - begin, room)
    total, active = settle(total, active, known, outs, r, left, 0, kept, splits, room, N, margin)
    if COUNT == "active":
        counted = active
    store_states(outs.states, total, counted, active, at, r, N)
