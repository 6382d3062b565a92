"""A tile of the score matrix: its rows, what it accumulates over D, and the gradient of that accumulation.

A tile walks D in chunks. Up to some D the chunks of x are loaded once, and those of y once a tile, for the scores and
the gradient alike; above it both are loaded where they are used.
"""

import os
from typing import Any, NamedTuple

import triton
import triton.language as tl

# The interpreter's `tl.dot` on bf16 operands is wrong (Triton 3.7.1), so operands are widened when interpreting.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


class Rows(NamedTuple):
    """One side of the score matrix. What a side has not is an empty tuple, since not every Triton takes None in one."""

    rows: Any  # [n, D], or [D, n] for manhattan, as `prepare` rounded them
    norms: Any  # from `prepare` [2, n]
    labels: Any  # [n]
    offsets: tuple = ()  # ([n],) if its scores have some
    ignored: tuple = ()  # (label,) if rows with it are in no pair


class Numbers(NamedTuple):
    """Numbers of a loss: given by value, or as pointers to fp32 scalars on the device."""

    given: tuple
    pointers: tuple


@triton.jit
def load_rows(ptr, rows, dims, n, D):
    """ptr[rows, dims], 0 outside [n, D]. [BLOCK, BD]; addresses are int64."""
    mask = (rows < n)[:, None] & (dims < D)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * D + dims[None, :], mask=mask, other=0.0)


@triton.jit
def load_column(ptr, rows, d, n):
    """Dimension d of the rows, from an array stored as [D, n]. [BLOCK]"""
    return tl.load(ptr + n.to(tl.int64) * d + rows, mask=rows < n, other=0.0).to(tl.float32)


@triton.jit
def load(ptr, i, n):
    """ptr[i], 0 from n on."""
    return tl.load(ptr + i, mask=i < n, other=0)


@triton.jit
def load_norms(ptr, i, n, AXIS: tl.constexpr):
    """What scores take of rows i: the factor that scales them, and the squared length they then have."""
    return tl.expand_dims(load(ptr, i, n), AXIS), tl.expand_dims(load(ptr + n.to(tl.int64), i, n), AXIS)


@triton.jit
def load_numbers(numbers):
    if len(numbers.pointers) > 0:
        loaded = ()
        for k in tl.static_range(len(numbers.pointers)):
            loaded = loaded + (tl.load(numbers.pointers[k]),)
        return loaded
    else:
        return numbers.given


@triton.jit
def round_tf32(v):
    """Nearest tf32 value, ties to even: the tensor core itself would truncate."""
    bits = v.to(tl.int32, bitcast=True)
    bits = (bits + 0x0FFF + ((bits >> 13) & 1)) & -8192
    return tl.where(tl.abs(v) < float("inf"), bits.to(tl.float32, bitcast=True), v)


@triton.jit
def power(k):
    """2^k for whole numbers k up to 127, 0 below -126."""
    return ((tl.minimum(tl.maximum(k, -127), 127) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent(v):
    """The k with 2^(k - 1) <= v < 2^k, for v above 1e-38."""
    return ((v.to(tl.int32, bitcast=True) >> 23) & 255) - 126


@triton.jit
def round_weights(w, acc, row_share, top, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """The weights of the gradient product as it will see them [BM, BN]; and what was added up before, to be added to.

    Weights of any size fit fp16 by the power of two that brings the largest of their row so far, below 2^top, below
    2^15. What was added up with a lower one is lowered to it; `unscaled` undoes it.
    """
    if PRECISION == "manhattan":
        return w, acc, row_share, top
    elif PRECISION == "tf32":
        return round_tf32(w), acc, row_share, top
    elif tl.float16 == DTYPE:
        higher = tl.maximum(top, exponent(tl.max(tl.abs(w), 1)))
        lower = power(top - higher)
        lowered = ()
        for k in tl.static_range(len(acc)):
            lowered = lowered + (acc[k] * lower[:, None],)
        return (w * power(15 - higher)[:, None]).to(DTYPE), lowered, row_share * lower, higher
    else:
        return w.to(DTYPE), acc, row_share, top


LOWEST: tl.constexpr = tl.constexpr(-110)  # the first `top`


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in fp32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def load_chunks(ptr, rows, n, D, BD: tl.constexpr, CHUNKS: tl.constexpr):
    """The rows in CHUNKS chunks of D. A tuple of [BLOCK, BD]"""
    chunks = ()
    for k in tl.static_range(CHUNKS):
        chunks = chunks + (load_rows(ptr, rows, k * BD + tl.arange(0, BD), n, D),)
    return chunks


@triton.jit
def accumulate(x_ptr, y_ptr, xs, ys, r, c, N, M, D, BD: tl.constexpr, PRECISION: tl.constexpr):
    """<x, y> of a tile from its loaded chunks, or by a run-time loop over D if there are none. [BM, BN]

    For manhattan it is sum|x - y|, a dimension at a time, since that is no matrix product.
    """
    e = tl.zeros([r.shape[0], c.shape[0]], tl.float32)
    if PRECISION == "manhattan":
        for d in range(0, D):
            e += tl.abs(load_column(x_ptr, r, d, N)[:, None] - load_column(y_ptr, c, d, M)[None, :])
    elif len(xs) == 0:
        for first in range(0, D, BD):
            dims = first + tl.arange(0, BD)
            e = matmul(load_rows(x_ptr, r, dims, N, D), tl.trans(load_rows(y_ptr, c, dims, M, D)), e, PRECISION)
    else:
        for k in tl.static_range(len(xs)):
            e = matmul(xs[k], tl.trans(ys[k]), e, PRECISION)
    return e


@triton.jit
def score_tile(
    x, y, xs, own, r, c, N, M, D, SCORE: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Scores of a tile whose rows x are loaded and have the norms `own`. [BM, BN]"""
    e = accumulate(x.rows, y.rows, xs, load_chunks(y.rows, c, M, D, BD, CHUNKS), r, c, N, M, D, BD, PRECISION)
    s, _d_e, _t, _f = SCORE(e, own, load_norms(y.norms, c, M, 0))
    return s


@triton.jit
def manhattan_grad(acc, w, x_ptr, y_ptr, r, c, first, N, M, D):
    """acc plus sum_j w_ij sign(x_i - y_j) of the chunk of D from `first`. [BM, BD]"""
    dims = first + tl.arange(0, acc.shape[1])
    for d in range(first, tl.minimum(first + acc.shape[1], D)):
        apart = load_column(x_ptr, r, d, N)[:, None] - load_column(y_ptr, c, d, M)[None, :]
        pull = tl.sum(tl.where(apart > 0.0, w, tl.where(apart < 0.0, -w, 0.0)), 1)
        acc += tl.where(dims[None, :] == d, pull[:, None], 0.0)
    return acc


@triton.jit
def accumulate_grad(acc, w, x_ptr, y_ptr, ys, r, c, first, N, M, D, BD: tl.constexpr, PRECISION: tl.constexpr):
    """acc, a tuple of chunks of dx from dimension `first` on, plus the tile's share w y, w = dL/de. Each [BM, BD]"""
    grown = ()
    for k in tl.static_range(len(acc)):
        if PRECISION == "manhattan":
            grown = grown + (manhattan_grad(acc[k], w, x_ptr, y_ptr, r, c, first + k * BD, N, M, D),)
        else:
            if len(ys) == 0:
                y = load_rows(y_ptr, c, first + k * BD + tl.arange(0, BD), M, D)
            else:
                y = ys[k]
            grown = grown + (matmul(w, y, acc[k], PRECISION),)
    return grown


@triton.jit
def valid_pairs(xl, yl, c, M, ignored):
    """Which pairs are no padding, and of no ignored row. To be broadcast to [BM, BN]"""
    valid = (c < M)[None, :]
    if len(ignored) > 0:
        valid = valid & (xl != ignored[0])[:, None] & (yl != ignored[0])[None, :]
    return valid


@triton.jit
def negative_mask(xl, yl, c, M, ignored):
    """Which pairs are negative. [BM, BN]"""
    return (xl[:, None] != yl[None, :]) & valid_pairs(xl, yl, c, M, ignored)


@triton.jit
def pair_masks(xl, yl, r, c, M, ref_offset, ignored):
    """Which pairs are positive and which negative; padding, a row with itself and one that is ignored are neither.
    [BM, BN] each"""
    same = xl[:, None] == yl[None, :]
    valid = valid_pairs(xl, yl, c, M, ignored)
    if len(ref_offset) > 0:
        valid = valid & ((r + ref_offset[0])[:, None] != c[None, :])
    return same & valid, ~same & valid


@triton.jit
def share_labels(xl, yl):
    """Whether the ranges of two blocks' labels meet: if they do not, no pair of the tile is positive."""
    return (tl.min(xl) <= tl.max(yl)) & (tl.min(yl) <= tl.max(xl))


@triton.jit
def moved(x, box, dims, D):
    """x less the corner of its box that is nearest to the origin, in the dimensions where that is exact.

    In a dimension in which all rows are between some c and 2 c, x - c has no rounding error in any format.
    """
    low = load(box[0], dims, D).to(tl.float32)
    high = load(box[1], dims, D).to(tl.float32)
    corner = tl.where((low > 0.0) & (high <= 2.0 * low), low, 0.0)
    corner = tl.where((high < 0.0) & (low >= 2.0 * high), high, corner)
    return (x.to(tl.float32) - corner[None, :]).to(x.dtype)


@triton.jit(do_not_specialize=["N"])
def prepare(
    x_ptr, box, rounded_ptr, norms_ptr, N, D, ROUND: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One pass over the rows before the engine: their values in the compute format, and the fp32 norms of these.

    norms[:, i]: the factor by which scores scale row i, 1 / max(|x_i|, 1e-8) if UNIT, otherwise 1, and the squared
    length it then has. Grid: (row blocks,).
    box: (least, most) of every dimension [D] where all rows may be moved, or ().
    ROUND: "" leaves the rows alone; the rest write them: "tf32" and "bf16" rounded, "exact" in their own format.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    squares = tl.zeros([BM], tl.float32)
    for first in range(0, D, BD):
        dims = first + tl.arange(0, BD)
        x = load_rows(x_ptr, r, dims, N, D)
        if len(box) > 0:
            x = moved(x, box, dims, D)
        if ROUND != "":
            if ROUND == "tf32":
                x = round_tf32(x.to(tl.float32))
            x = x.to(rounded_ptr.dtype.element_ty)
            at = rounded_ptr + r.to(tl.int64)[:, None] * D + dims[None, :]
            tl.store(at, x, mask=(r < N)[:, None] & (dims < D)[None, :])
        x = x.to(tl.float32)
        squares += tl.sum(x * x, 1)
    scale = tl.full([BM], 1.0, tl.float32)
    if UNIT:
        scale = 1.0 / tl.sqrt(tl.where(squares < 1e-16, 1e-16, squares))  # NaN stays NaN
        squares = tl.where(squares < 1e-16, (squares * scale) * scale, 1.0)
    live = r < N
    tl.store(norms_ptr + r, scale, mask=live)
    tl.store(norms_ptr + N.to(tl.int64) + r, squares, mask=live)
