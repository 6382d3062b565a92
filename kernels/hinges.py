"""Mined pairs and triplets up to the loss: exact distances, the closing formula with its derivative, and its mean.

A closing formula takes z [BM] and returns the terms and their derivatives by z. Where z is NaN the term is NaN and the
derivative is not 0, so that both the loss and the gradient show it.
"""

import triton
import triton.language as tl

from .losses import logistic, softplus
from .mining import mined
from .rows import locate, pair_distance, store_slopes, triplet_stats
from .tiles import load_numbers


@triton.jit
def hinge(z):
    """max(0, z)"""
    return tl.where(z <= 0.0, 0.0, z), tl.where(z <= 0.0, 0.0, 1.0)


@triton.jit
def soft_hinge(z):
    """log(1 + exp(z))"""
    return softplus(z), logistic(z)


@triton.jit
def half(z):
    """z / 2"""
    return 0.5 * z, tl.full(z.shape, 0.5, tl.float32)


@triton.jit
def apart(ab, ac, METRIC: tl.constexpr):
    """d(a, b) - d(a, c) from their sums over D; of cosines, since 1 - cos loses bits of small ones. [BM]"""
    if METRIC == "cosine":
        return pair_distance(ac, "similarity") - pair_distance(ab, "similarity")
    else:
        return pair_distance(ab, METRIC) - pair_distance(ac, METRIC)


@triton.jit
def store_sums(ptr, term, counts, slope):
    """The sum of the terms of this program's rows, how many count, and the sum of their slopes, in ptr [3, programs].

    Rows that do not count have terms and slopes of 0.
    """
    at, step = ptr + tl.program_id(0), tl.num_programs(0)
    dtype = ptr.dtype.element_ty
    tl.store(at, tl.sum(term.to(dtype), 0))
    tl.store(at + step, tl.sum(counts.to(dtype), 0))
    tl.store(at + 2 * step, tl.sum(slope.to(dtype), 0))


@triton.jit(do_not_specialize=["N", "P"])
def close_triplets(
    x_ptr, y_ptr, best_ptr, places_ptr, index_ptr, slopes_ptr, sums_ptr, margin, N, P, D,
    METRIC: tl.constexpr, CLOSE: tl.constexpr, BEYOND: tl.constexpr, ACTIVE: tl.constexpr, BM: tl.constexpr,
    BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The terms CLOSE(d(x_i, p) - d(x_i, n) + margin) of anchors with a positive p and a negative n.

    Grid: (row blocks,).

    It merges the parts of `mine` (best, places [P, 2, N]) and writes the index [2, N], what `gather_grad` needs of the
    derivatives of the sum of the terms (slopes [3, 2, N]), and sums [3, row blocks]. ACTIVE: only terms above 0 count.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < N
    step = N.to(tl.int64)
    p, n = mined(best_ptr, places_ptr, r, N, P, BEYOND, BM, BP)
    tl.store(index_ptr + r, p, mask=live)
    tl.store(index_ptr + step + r, n, mask=live)
    ab, ac, _bc = triplet_stats(x_ptr, y_ptr, y_ptr, r, p, n, live, p >= 0, n >= 0, D, 0.0, METRIC, 2, BM, BD)
    counts = (p >= 0) & (n >= 0)
    term, slope = CLOSE(tl.where(counts, apart(ab, ac, METRIC), 0.0) + load_numbers(margin)[0])
    term, slope = tl.where(counts, term, 0.0), tl.where(counts, slope, 0.0)
    store_slopes(slopes_ptr, ab, slope, 0, 2, r, live, step, METRIC)
    store_slopes(slopes_ptr, ac, -slope, 1, 2, r, live, step, METRIC)
    store_sums(sums_ptr, term, counts & (term > 0.0) if ACTIVE else counts, slope)


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["index_ptr"])
def close_pairs(
    x_ptr, y_ptr, index_ptr, slopes_ptr, sums_ptr, N, D, WRONG: tl.constexpr, METRIC: tl.constexpr,
    CLOSE: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The terms CLOSE(d(x_i, y at index[i])); rows whose index is negative do not count.

    Grid: (row blocks,).

    It writes slopes [3, 1, N] and sums as `close_triplets` does. The term of a row with the index WRONG is NaN.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < N
    at, counts = locate(index_ptr, r, N, True)
    ab, _ac, _bc = triplet_stats(x_ptr, y_ptr, y_ptr, r, at, at, live, counts, counts, D, 0.0, METRIC, 1, BM, BD)
    term, slope = CLOSE(pair_distance(ab, METRIC))
    term = tl.where(counts, term, tl.where(at == WRONG, float("nan"), 0.0))
    slope = tl.where(counts, slope, 0.0)
    store_slopes(slopes_ptr, ab, slope, 0, 1, r, live, N.to(tl.int64), METRIC)
    store_sums(sums_ptr, term, counts, slope)


@triton.jit(do_not_specialize=["P"])
def reduce_terms(sums_ptr, loss_ptr, factors_ptr, P, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The loss from the sums [3, P], and factors [2]: that of the terms in the loss, and the derivative by the margin.

    If MEAN, the sum is divided by how many count, if any do. Grid: (1,), so that the order of the sums is fixed.
    """
    dtype = sums_ptr.dtype.element_ty
    terms, counts, slopes = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    for first in range(0, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        terms += tl.load(sums_ptr + at, mask=at < P, other=0.0)
        counts += tl.load(sums_ptr + P + at, mask=at < P, other=0.0)
        slopes += tl.load(sums_ptr + 2 * P + at, mask=at < P, other=0.0)
    count = tl.sum(counts, 0)
    factor = 1.0 / tl.where((count == 0.0) | (not MEAN), 1.0, count)
    tl.store(loss_ptr, (tl.sum(terms, 0) * factor).to(loss_ptr.dtype.element_ty))
    tl.store(factors_ptr, factor.to(factors_ptr.dtype.element_ty))
    tl.store(factors_ptr + 1, (tl.sum(slopes, 0) * factor).to(factors_ptr.dtype.element_ty))
