"""Scores: how similar or how far apart two embeddings are, from the sums that a tile accumulates.

`s, d_e, t, f = score(e, own, other)` where
    e      [BM, BN]  what the tile accumulated over D: <x, y>, or sum|x - y| for manhattan
    own    [BM, 1]   for the row whose gradient is wanted, as `prepare` wrote them: the factor that scales the row, and
                     the squared length that it then has
    other  [1, BN]   the same for the row on the other side
    s      the score;  d_e = ds/de;  and t f, how much of x itself comes with each y in the gradient:
    dL/dx_i = sum_j w_ij y_j - f_i x_i sum_j w_ij t_ij,   w = dL/ds d_e
Every score is symmetric in its two rows, so this is the gradient for either side. Since the same rounded w multiplies
y_j and x_i, a close pair loses nothing by the rounding of w.
"""

import triton
import triton.language as tl

from .folds import larger
from .losses import minus


@triton.jit
def sqeuclidean(e, own, other):
    """|x - y|^2 from the lengths of the rounded rows, so a row is at distance 0 from itself up to summation error."""
    return larger(own[1] + other[1] - 2.0 * e, 0.0), -2.0, 1.0, 1.0


@triton.jit
def root(sq):
    """The root of a squared distance and its inverse, 0 at distance 0, where the gradient of a distance is 0."""
    # 1.2e-38 is the least number that the hardware does not flush to 0.
    return tl.sqrt(larger(sq, 0.0)), tl.where(sq >= 1.2e-38, tl.rsqrt(sq), 0.0)


@triton.jit
def euclidean(e, own, other):
    """|x - y|."""
    s, inv = root(own[1] + other[1] - 2.0 * e)
    return s, minus(inv), 1.0, 1.0


@triton.jit
def dot(e, own, other):
    """<x, y>."""
    return e, 1.0, 0.0, 0.0


@triton.jit
def similarity(e, own, other):
    """cos; rows are scaled by 1 / max(|x|, 1e-8), which counts as a constant for rows shorter than 1e-8."""
    both = own[0] * other[0]
    return e * both, both, e, tl.where(own[1] < 1.0, 0.0, own[0] * own[0])


@triton.jit
def cosine(e, own, other):
    """1 - cos."""
    s, d_e, t, f = similarity(e, own, other)
    return 1.0 - s, minus(d_e), t, f


@triton.jit
def chord(e, own, other):
    """The euclidean distance of the rows scaled to length 1; a row shorter than 1e-8 is scaled by 1e8."""
    cos, d_cos, t, f = similarity(e, own, other)
    s, inv = root(own[1] + other[1] - 2.0 * cos)
    return s, minus(d_cos * inv), t, f


@triton.jit
def manhattan(e, own, other):
    """sum|x - y|, which is accumulated directly; its gradient sums signs instead of rows."""
    return e, 1.0, 0.0, 0.0


# Whether all pairs of a tile are apart, for losses that cost nothing then:
#
#     nearness, limit = apart(e, own, other, margin)
#
# A pair whose nearness is at most the limit has a score of at least the margin. The nearness costs one instruction a
# pair, and the limit is one number for each row. It is so much lower that no rounding makes a pair seem apart that is
# not.


@triton.jit
def apart_squared(e, own, other, square):
    """|x - y|^2 >= square: <x, y> - |y|^2 / 2 is at most (|x|^2 - square) / 2."""
    return e - 0.5 * other[1], 0.5 * (own[1] - square) - 5e-7 * (own[1] + square)


@triton.jit
def sqeuclidean_apart(e, own, other, margin):
    return apart_squared(e, own, other, larger(margin, 0.0))


@triton.jit
def euclidean_apart(e, own, other, margin):
    margin = larger(margin, 0.0)
    return apart_squared(e, own, other, margin * margin)


@triton.jit
def cosine_apart(e, own, other, margin):
    limit = (1.0 - margin - 1e-6 * (1.0 + tl.abs(margin))) / own[0]
    return e * other[0], tl.where(own[0] > 0.0, limit, float("nan"))  # 0: the row is not finite


@triton.jit
def manhattan_apart(e, own, other, margin):
    return minus(e), -margin
