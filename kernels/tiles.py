"""A tile of the score matrix: its rows, what it accumulates over D, and the gradient of that accumulation.

A tile walks D in chunks. Up to some D the chunks of x are loaded once, and those of y once per tile, for the scores and
the gradient alike; above it both are loaded where they are used.
"""

import os
from typing import Any, NamedTuple

import triton
import triton.language as tl

# The interpreter's `tl.dot` on bf16 operands is wrong (Triton 3.7.1), so operands are widened when interpreting.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


class Rows(NamedTuple):
    """One side of the score matrix. What it lacks is an empty tuple, since not every Triton takes None in a tuple."""

    rows: Any  # [n, D], or [D, n] for manhattan, as `prepare` rounded them
    norms: Any  # from `prepare` [2, padded n]
    labels: Any  # [n]
    offsets: tuple = ()  # ([n],) if its scores have offsets
    weights: tuple = ()  # ([n],) if its rows have weights in sums over negatives
    group: tuple = ()  # rows are in groups of 2^length neighbours, of which only the highest score counts
    # Only for rows sorted by label:
    order: tuple = ()  # ([n],) their places in the inputs, if these differ
    near: tuple = ()  # ([n], [n]) first column of the other side that has the row's label, and the one after the last
    counted: tuple = ()  # (scalar,) how many rows come before the ignored ones, if some may be ignored


class Numbers(NamedTuple):
    """Numbers of a loss: given by value, or as pointers to fp32 scalars on the device."""

    given: tuple
    pointers: tuple


@triton.jit
def load_rows(
    ptr, first, dims, n, D, BLOCK: tl.constexpr, WHOLE: tl.constexpr = False, EVEN: tl.constexpr = False
):  # fmt: skip
    """Rows `first` to `first + BLOCK` of ptr [n, D], 0 outside. [BLOCK, BD]

    WHOLE: no row is past n. EVEN: no dimension is past D. The address of the first row is int64; all others are
    relative to it.
    """
    rows = tl.arange(0, BLOCK)
    at = ptr + tl.cast(first, tl.int64) * D + (rows[:, None] * D + dims[None, :])
    if WHOLE and EVEN:
        return tl.load(at)
    elif WHOLE:
        return tl.load(at, mask=(dims < D)[None, :], other=0.0)
    elif EVEN:
        return tl.load(at, mask=(rows < n - first)[:, None], other=0.0)
    else:
        return tl.load(at, mask=(rows < n - first)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def gather_rows(ptr, rows, dims, n, D):
    """ptr[rows, dims], 0 outside [n, D]. [BLOCK, BD]; addresses are int64."""
    mask = (rows < n)[:, None] & (dims < D)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * D + dims[None, :], mask=mask, other=0.0)


@triton.jit
def load_column(ptr, rows, d, n):
    """Dimension d of the rows, from an array stored as [D, n]. [BLOCK]"""
    return tl.load(ptr + n.to(tl.int64) * d + rows, mask=rows < n, other=0.0).to(tl.float32)


@triton.jit
def padded(n):
    """The stride between rows of a kernel's own array, aligned so that vectors can be loaded."""
    return tl.cdiv(n, 16).to(tl.int64) * 16


@triton.jit
def load(ptr, i, n, WHOLE: tl.constexpr = False):
    """ptr[i], 0 from n on."""
    if WHOLE:
        return tl.load(ptr + i)
    else:
        return tl.load(ptr + i, mask=i < n, other=0)


@triton.jit
def load_norms(ptr, i, n, AXIS: tl.constexpr, WHOLE: tl.constexpr = False):
    """What scores need of rows i: the factor that scales them, and the squared length that they then have."""
    squares = ptr + padded(n)
    return tl.expand_dims(load(ptr, i, n, WHOLE), AXIS), tl.expand_dims(load(squares, i, n, WHOLE), AXIS)


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
    """The weights [BM, BN] rounded for the gradient product, and the previous sums in the same scale.

    Weights of any size fit fp16 when scaled by a power of two: the largest weight of a row so far, below 2^top, is
    brought below 2^15. Sums with a lower `top` are scaled down to the new one; `unscaled` undoes the scale.
    """
    if PRECISION == "manhattan":
        return w, acc, row_share, top
    elif PRECISION == "tf32":
        return round_tf32(w), acc, row_share, top
    elif DTYPE == tl.float16:
        higher = tl.maximum(top, exponent(tl.max(tl.abs(w), 1)))
        if tl.max((higher > top).to(tl.int32)) > 0:  # after some tiles there is no larger weight
            lower = power(top - higher)
            lowered = ()
            for k in tl.static_range(len(acc)):
                lowered = lowered + (acc[k] * lower[:, None],)
            acc, row_share = lowered, row_share * lower
        return (w * power(15 - higher)[:, None]).to(DTYPE), acc, row_share, higher
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
def load_chunks(
    ptr, first, n, D, BLOCK: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr, WHOLE: tl.constexpr = False,
    EVEN: tl.constexpr = False,
):  # fmt: skip
    """The rows from `first` on in CHUNKS chunks of D. A tuple of [BLOCK, BD]"""
    chunks = ()
    for k in tl.static_range(CHUNKS):
        chunks = chunks + (load_rows(ptr, first, k * BD + tl.arange(0, BD), n, D, BLOCK, WHOLE, EVEN),)
    return chunks


@triton.jit
def accumulate(
    x_ptr, y_ptr, xs, ys, r0, c0, N, M, D, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr, WHOLE: tl.constexpr = False, EVEN: tl.constexpr = False,
):  # fmt: skip
    """<x, y> of the tile at (r0, c0) from its loaded chunks, or by a run-time loop over D if there are none. [BM, BN]

    For manhattan it is sum|x - y|, a dimension at a time, since that is no matrix product.
    """
    e = tl.zeros([BM, BN], tl.float32)
    if PRECISION == "manhattan":
        r, c = r0 + tl.arange(0, BM), c0 + tl.arange(0, BN)
        for d in range(0, D):
            e += tl.abs(load_column(x_ptr, r, d, N)[:, None] - load_column(y_ptr, c, d, M)[None, :])
    elif len(xs) == 0:
        for first in range(0, D, BD):
            dims = first + tl.arange(0, BD)
            y = load_rows(y_ptr, c0, dims, M, D, BN, WHOLE, EVEN)
            e = matmul(load_rows(x_ptr, r0, dims, N, D, BM, False, EVEN), tl.trans(y), e, PRECISION)
    else:
        for k in tl.static_range(len(xs)):
            e = matmul(xs[k], tl.trans(ys[k]), e, PRECISION)
    return e


@triton.jit
def score_tile(
    x, y, xs, own, r0, c0, N, M, D, SCORE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, CHUNKS: tl.constexpr, WHOLE: tl.constexpr = False, EVEN: tl.constexpr = False,
):  # fmt: skip
    """The scores of the tile at (r0, c0), whose rows x are loaded and have the norms `own`. [BM, BN]"""
    ys = load_chunks(y.rows, c0, M, D, BN, BD, CHUNKS, WHOLE, EVEN)
    e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, BN, BD, PRECISION, WHOLE, EVEN)
    s, _d_e, _t, _f = SCORE(e, own, load_norms(y.norms, c0 + tl.arange(0, BN), M, 0, WHOLE))
    return s


@triton.jit
def manhattan_grad(acc, w, x_ptr, y_ptr, r0, c0, first, N, M, D):
    """acc plus sum_j w_ij sign(x_i - y_j) of the chunk of D from `first`. [BM, BD]"""
    r, c = r0 + tl.arange(0, w.shape[0]), c0 + tl.arange(0, w.shape[1])
    dims = first + tl.arange(0, acc.shape[1])
    for d in range(first, tl.minimum(first + acc.shape[1], D)):
        apart = load_column(x_ptr, r, d, N)[:, None] - load_column(y_ptr, c, d, M)[None, :]
        pull = tl.sum(tl.where(apart > 0.0, w, tl.where(apart < 0.0, -w, 0.0)), 1)
        acc += tl.where(dims[None, :] == d, pull[:, None], 0.0)
    return acc


@triton.jit
def accumulate_grad(
    acc, w, x_ptr, y_ptr, ys, r0, c0, first, N, M, D, BD: tl.constexpr, PRECISION: tl.constexpr,
    WHOLE: tl.constexpr = False, EVEN: tl.constexpr = False,
):  # fmt: skip
    """acc, a tuple of chunks of dx from dimension `first` on, plus the tile's w y with w = dL/de. Each [BM, BD]"""
    grown = ()
    for k in tl.static_range(len(acc)):
        if PRECISION == "manhattan":
            grown = grown + (manhattan_grad(acc[k], w, x_ptr, y_ptr, r0, c0, first + k * BD, N, M, D),)
        else:
            if len(ys) == 0:
                y = load_rows(y_ptr, c0, first + k * BD + tl.arange(0, BD), M, D, w.shape[1], WHOLE, EVEN)
            else:
                y = ys[k]
            grown = grown + (matmul(w, y, acc[k], PRECISION),)
    return grown


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


class Given(NamedTuple):
    """The rows of one side as they are given, and where `prepare` writes them."""

    rows: Any  # [n, D]
    order: tuple  # ([n],) of the rows that are wanted, or () for all rows in their order
    counted: tuple  # (scalar,) how many are not ignored, or () for all; the ignored ones, which come last, become 0
    rounded: Any  # [n, D] in the compute format
    norms: Any  # [2, padded n]


@triton.jit
def prepare_side(given, box, n, D, ROUND: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    source = tl.where(r < n, load(given.order[0], r, n), n) if len(given.order) > 0 else r
    squares = tl.zeros([BM], tl.float32)
    for first in range(0, D, BD):
        dims = first + tl.arange(0, BD)
        x = gather_rows(given.rows, source, dims, n, D)
        if len(box) > 0:
            x = moved(x, box, dims, D)
        if len(given.counted) > 0:  # whatever they are: library products multiply them by 0
            x = tl.where((r < tl.load(given.counted[0]))[:, None], x, 0.0).to(x.dtype)
        if ROUND != "":
            if ROUND == "tf32":
                x = round_tf32(x.to(tl.float32))
            x = x.to(given.rounded.dtype.element_ty)
            at = given.rounded + r.to(tl.int64)[:, None] * D + dims[None, :]
            tl.store(at, x, mask=(r < n)[:, None] & (dims < D)[None, :])
        x = x.to(tl.float32)
        squares += tl.sum(x * x, 1)
    scale = tl.full([BM], 1.0, tl.float32)
    if UNIT:
        scale = 1.0 / tl.sqrt(tl.where(squares < 1e-16, 1e-16, squares))  # NaN stays NaN
        squares = tl.where(squares < 1e-16, (squares * scale) * scale, 1.0)
    live = r < n
    tl.store(given.norms + r, scale, mask=live)
    tl.store(given.norms + padded(n) + r, squares, mask=live)


@triton.jit(do_not_specialize=["N", "M"])
def prepare(
    x, y, box, N, M, D, ROUND: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """One pass over the rows before the engine: it writes them in the compute format, and their fp32 norms.

    Grid: (row blocks, sides). y is () if there is one side.

    norms[:, i]: the factor by which scores scale row i (1 / max(|x_i|, 1e-8) if UNIT, otherwise 1), and the squared
    length that the row then has.
    box: the (minimum, maximum) of every dimension [D], if all rows may be moved, or ().
    ROUND: "" does not write rows; "tf32" and "bf16" write them rounded, "exact" in their own format.
    """
    if len(y) == 0:
        prepare_side(x, box, N, D, ROUND, UNIT, BM, BD)
    elif tl.program_id(1) == 0:
        prepare_side(x, box, N, D, ROUND, UNIT, BM, BD)
    else:
        prepare_side(y, box, M, D, ROUND, UNIT, BM, BD)
