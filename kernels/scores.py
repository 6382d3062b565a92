"""Scores: how similar or far apart two embeddings are, from what a tile accumulates.

`s, d_e, d_own = score(e, own, other)` where
    e      [BM, BN]  what the tile accumulated over D: <x, y>, or sum|x - y| for manhattan
    own    [BM, 1]   the norm of the row whose gradient is wanted, as `prepare` wrote it
    other  [1, BN]   the norm of the row on the other side
    s      the score,  d_e = ds/de,  d_own = ds/d(|x|^2) of the own row
Every score is symmetric in its two rows, so these two partials give both gradients:
    dL/dx_i = sum_j g_ij (d_e y_j + 2 d_own x_i),   g = dL/ds.
"""

import triton
import triton.language as tl


@triton.jit
def sqeuclidean(e, own, other):
    """|x - y|^2 from the norms of the rounded rows, so a row is at distance 0 from itself up to summation error."""
    s = own + other - 2.0 * e
    s = tl.where(s < 0.0, 0.0, s)  # NaN stays NaN
    return s, -2.0, 1.0


@triton.jit
def euclidean(e, own, other):
    """|x - y|; its gradient at 0 is 0."""
    s = own + other - 2.0 * e
    away = (s > 0.0) & (s < float("inf"))
    inv = tl.where(away, tl.rsqrt(tl.where(away, s, 1.0)), 0.0)
    return tl.where(s <= 0.0, 0.0, tl.where(away, s * inv, s)), -inv, 0.5 * inv


@triton.jit
def cosine(e, own, other):
    """1 - cos; the norms are 1 / max(|x|, 1e-8), and a clamped norm is a constant."""
    cos = e * (own * other)
    return 1.0 - cos, -(own * other), tl.where(own < 9.9e7, 0.5 * cos * (own * own), 0.0)


@triton.jit
def manhattan(e, own, other):
    """sum|x - y|, accumulated as it is."""
    return e, 1.0, 0.0
