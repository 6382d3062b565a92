"""Mining: for each anchor the extreme positive and the extreme negative, as scores and indices."""

import triton
import triton.language as tl

from .engine import split_columns
from .tiles import load, load_chunks, load_norms, pair_masks, score_tile


@triton.jit
def keep_best(best, index, s, eligible, c, SIGN: tl.constexpr):
    """Running maximum of SIGN * s over the eligible pairs; ties go to the lowest index, NaN wins, so it shows. [BM]"""
    t = SIGN * s
    t = tl.where(t != t, float("inf"), tl.where(t < -3.4e38, -3.4e38, t))
    value, at = tl.max(tl.where(eligible, t, float("-inf")), axis=1, return_indices=True)
    better = value > best
    return tl.where(better, value, best), tl.where(better, tl.min(c, 0) + at, index)


@triton.jit(do_not_specialize=["N", "M"])
def mine(
    x, y, floor_ptr, best_ptr, index_ptr, ref_offset, N, M, D,  # floor [N]; best, index [splits, 2, N]
    SCORE: tl.constexpr, POSITIVE: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Best positive and negative of this program's split; -1 where there is none. Grid: (row blocks, splits).

    POSITIVE, NEGATIVE: 1 for the farthest, -1 for the nearest, 0 for none wanted; NEGATIVE = -2 for the nearest that is
    farther than floor[i]. ref_offset as in engine.py.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r, N, D, BD, CHUNKS)
    pos_best = tl.full([BM], float("-inf"), tl.float32)
    neg_best = tl.full([BM], float("-inf"), tl.float32)
    pos_index = tl.full([BM], -1, tl.int32)
    neg_index = tl.full([BM], -1, tl.int32)
    if NEGATIVE == -2:
        floor = load(floor_ptr, r, N)

    start, end = split_columns(M, BN)
    for c0 in range(start, end, BN):
        c = c0 + tl.arange(0, BN)
        s = score_tile(x, y, xs, own, r, c, N, M, D, SCORE, PRECISION, BD, CHUNKS)
        pos, neg = pair_masks(xl, load(y.labels, c, M), r, c, M, ref_offset, x.ignored)
        if POSITIVE != 0:
            pos_best, pos_index = keep_best(pos_best, pos_index, s, pos, c, POSITIVE)
        if NEGATIVE == -2:
            neg_best, neg_index = keep_best(neg_best, neg_index, s, neg & ~(s <= floor[:, None]), c, -1)
        elif NEGATIVE != 0:
            neg_best, neg_index = keep_best(neg_best, neg_index, s, neg, c, NEGATIVE)

    out = tl.program_id(1).to(tl.int64) * 2 * N + r
    tl.store(best_ptr + out, pos_best, mask=r < N)
    tl.store(best_ptr + out + N, neg_best, mask=r < N)
    tl.store(index_ptr + out, pos_index, mask=r < N)
    tl.store(index_ptr + out + N, neg_index, mask=r < N)
