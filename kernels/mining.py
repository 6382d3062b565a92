"""Mining: each anchor's extreme positive and extreme negative, as scores and as places in the inputs."""

import triton
import triton.language as tl

from .folds import larger
from .tiles import load, load_chunks, load_norms, score_tile
from .walks import column, count, pair_masks, place, walks

NO_PLACE: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def finite(t):
    """Finite numbers to compare: NaN becomes the highest, so that it shows, and no pair is as low as -inf, which stands
    for no candidate."""
    return tl.where(t != t, float("inf"), larger(t, -3.4e38))


@triton.jit
def keep_best(best, index, t, eligible, places):
    """The running maximum of t [BM, BN] over the eligible pairs (all if None) and its place, the lowest among equal
    ones. [BM] each"""
    if eligible is not None:
        t = tl.where(eligible, finite(t), float("-inf"))
    value = tl.reduce(t, 1, larger)
    if eligible is None:
        value = finite(value)
    # Most tiles have nothing better for any row.
    if tl.max((~(value < best) & ((index >= 0) | ~(value == best))).to(tl.int32)) > 0:
        if eligible is None:
            t = finite(t)
        at = tl.min(tl.where(t == value[:, None], places, NO_PLACE), 1)
        better = (value > best) | ((value == best) & (at < index))
        best = tl.where(better, value, best)
        index = tl.where(better, at, index)
    return best, index


@triton.jit
def highest(best_ptr, r, inside, N, P, BM: tl.constexpr):
    """The highest of P parts of best [P, 2, N], of the positives. [BM]"""
    best = tl.full([BM], float("-inf"), tl.float32)
    for part in range(0, P):
        at = best_ptr + tl.cast(part, tl.int64) * 2 * N + r
        best = larger(best, tl.load(at, mask=inside, other=float("-inf")))
    return best


@triton.jit(do_not_specialize=["N", "M"])
def mine(
    x, y, best_ptr, index_ptr, ref_offset, N, M, D,  # best, index [splits, 2, N]
    SCORE: tl.constexpr, POSITIVE: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The best positive and negative of this program's split; -1 where there is none. Grid: (row blocks, splits).

    POSITIVE, NEGATIVE: 1 for the farthest, -1 for the nearest; NEGATIVE = 0 for none. NEGATIVE = -2 for the nearest
    that is farther than the positive, which an earlier launch has found and stored. ref_offset is as in engine.py.
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    SIGN: tl.constexpr = 1 if NEGATIVE == 1 else -1
    pos_best = tl.full([BM], float("-inf"), tl.float32)
    neg_best = tl.full([BM], float("-inf"), tl.float32)
    pos_index = tl.full([BM], -1, tl.int32)
    neg_index = tl.full([BM], -1, tl.int32)
    if NEGATIVE == -2:
        floor = POSITIVE * highest(best_ptr, place(x, r, N), r < N, N, tl.num_programs(1), BM)[:, None]
    rows, columns = count(x, N), count(y, M)
    far, near = walks(x, rows, columns, BM, BN, False)

    if NEGATIVE != 0:
        for at in range(far[0], far[1], BN):
            c0 = column(at, far, BN)
            c = c0 + tl.arange(0, BN)
            s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, BN, BD, CHUNKS, True, EVEN)
            eligible = ~(s <= floor) if NEGATIVE == -2 else None
            neg_best, neg_index = keep_best(neg_best, neg_index, SIGN * s, eligible, place(y, c, M)[None, :])

    for at in tl.range(near[0], near[1], NEAR, num_stages=1):
        c0 = column(at, near, NEAR)
        c = c0 + tl.arange(0, NEAR)
        s = score_tile(x, y, xs, own, r0, c0, N, M, D, SCORE, PRECISION, BM, NEAR, BD, CHUNKS, False, EVEN)
        places = place(y, c, M)
        pos, neg = pair_masks(xl, load(y.labels, c, M), c, columns, place(x, r, N), places, ref_offset)
        if NEGATIVE != -2:
            pos_best, pos_index = keep_best(pos_best, pos_index, POSITIVE * s, pos, places[None, :])
        if NEGATIVE != 0:
            if NEGATIVE == -2:
                neg = neg & ~(s <= floor)
            neg_best, neg_index = keep_best(neg_best, neg_index, SIGN * s, neg, places[None, :])

    out = tl.program_id(1).to(tl.int64) * 2 * N + place(x, r, N)
    counts = r < rows
    if NEGATIVE != -2:
        tl.store(best_ptr + out, pos_best, mask=r < N)
        tl.store(index_ptr + out, tl.where(counts, pos_index, -1), mask=r < N)
    if NEGATIVE != 0:
        tl.store(best_ptr + out + N, neg_best, mask=r < N)
        tl.store(index_ptr + out + N, tl.where(counts, neg_index, -1), mask=r < N)


@triton.jit
def best_place(best_ptr, index_ptr, r, N, P, BM: tl.constexpr, BP: tl.constexpr):
    """The place of the best of P parts, the lowest among equal ones; -1 where no part has one. [BM]"""
    best = tl.full([BM], float("-inf"), tl.float32)
    index = tl.full([BM], NO_PLACE, tl.int32)
    for first in range(0, P, BP):
        part = first + tl.arange(0, BP)
        at = part.to(tl.int64)[:, None] * 2 * N + r[None, :]
        inside = (part < P)[:, None] & (r < N)[None, :]
        places = tl.load(index_ptr + at, mask=inside, other=-1)
        t = tl.where(places >= 0, tl.load(best_ptr + at, mask=inside, other=float("-inf")), float("-inf"))
        value = tl.max(t, 0)
        lowest = tl.min(tl.where((places >= 0) & (t == value[None, :]), places, NO_PLACE), 0)
        better = (value > best) | ((value == best) & (lowest < index))
        best = tl.where(better, value, best)
        index = tl.where(better, lowest, index)
    return tl.where(index < NO_PLACE, index, -1)


@triton.jit
def mined(best_ptr, index_ptr, r, N, P, BEYOND: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr):
    """The places of the positives and of the negatives, from the parts of `mine`; if BEYOND, a row without a positive
    has no negative. [BM] each"""
    pos = best_place(best_ptr, index_ptr, r, N, P, BM, BP)
    neg = best_place(best_ptr + N, index_ptr + N, r, N, P, BM, BP)
    if BEYOND:
        neg = tl.where(pos >= 0, neg, -1)
    return pos, neg


@triton.jit(do_not_specialize=["N", "P"])
def merge_mined(best_ptr, index_ptr, out_ptr, N, P, BEYOND: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr):
    """out [2, N] from the parts of `mine` [P, 2, N]. Grid: (row blocks,)."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    pos, neg = mined(best_ptr, index_ptr, r, N, P, BEYOND, BM, BP)
    out = out_ptr + r
    tl.store(out, pos.to(out_ptr.dtype.element_ty), mask=r < N)
    tl.store(out + N, neg.to(out_ptr.dtype.element_ty), mask=r < N)
