"""A tile of the score matrix: what it accumulates over D, and the gradient of that accumulation.

A tile walks D in chunks. Loads are written where they are used: Triton hoists the loads of x, which do not change from
tile to tile, out of the tile loop, and merges the two loads of y in one tile of the backward.
"""

import os

import triton
import triton.language as tl

# The interpreter's `tl.dot` on bf16 operands is wrong (Triton 3.7.1), so operands are widened when interpreting.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


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
def load_states(ptr, rows, n, COUNT: tl.constexpr):
    """ptr[:, rows] of [COUNT, n] row states, as a tuple of [BLOCK]."""
    state = ()
    for k in tl.static_range(COUNT):
        state = state + (tl.load(ptr + k * n.to(tl.int64) + rows, mask=rows < n, other=0.0),)
    return state


@triton.jit
def load_params(params, FROM_MEMORY: tl.constexpr):
    """The loss's numbers: given by value, or as pointers to fp32 scalars on the device."""
    if FROM_MEMORY:
        numbers = ()
        for k in tl.static_range(len(params)):
            numbers = numbers + (tl.load(params[k]),)
        return numbers
    else:
        return params


@triton.jit
def round_tf32(v):
    """Nearest tf32 value, ties to even: the tensor core itself would truncate."""
    bits = v.to(tl.int32, bitcast=True)
    bits = (bits + 0x0FFF + ((bits >> 13) & 1)) & -8192
    return tl.where(tl.abs(v) < float("inf"), bits.to(tl.float32, bitcast=True), v)


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in fp32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def accumulate(e, x_ptr, y_ptr, r, c, first, N, M, D, BD: tl.constexpr, PRECISION: tl.constexpr):
    """e plus the chunk of D from `first`: <x, y>, or sum|x - y| a dimension at a time (no matrix product). [BM, BN]"""
    if PRECISION == "manhattan":
        for d in range(first, tl.minimum(first + BD, D)):
            e += tl.abs(load_column(x_ptr, r, d, N)[:, None] - load_column(y_ptr, c, d, M)[None, :])
        return e
    else:
        dims = first + tl.arange(0, BD)
        return matmul(load_rows(x_ptr, r, dims, N, D), tl.trans(load_rows(y_ptr, c, dims, M, D)), e, PRECISION)


@triton.jit
def accumulate_grad(acc, w, x_ptr, y_ptr, r, c, first, N, M, D, BD: tl.constexpr, PRECISION: tl.constexpr):
    """acc plus the tile's share of one chunk of dx, w = dL/de: w y, or sum_j w_ij sign(x_i - y_j). [BM, BD]"""
    dims = first + tl.arange(0, BD)
    if PRECISION == "manhattan":
        for d in range(first, tl.minimum(first + BD, D)):
            apart = load_column(x_ptr, r, d, N)[:, None] - load_column(y_ptr, c, d, M)[None, :]
            pull = tl.sum(tl.where(apart > 0.0, w, tl.where(apart < 0.0, -w, 0.0)), 1)
            acc += tl.where(dims[None, :] == d, pull[:, None], 0.0)
        return acc
    else:
        if PRECISION == "tf32":
            w = round_tf32(w)
        y = load_rows(y_ptr, c, dims, M, D)
        return matmul(w.to(y.dtype), y, acc, PRECISION)


@triton.jit
def pair_masks(xl, yl, r, c, M, SELF: tl.constexpr):
    """Which pairs of a tile are positive and which negative; padding, and (i, i) of a self batch, are neither. [BM, BN]"""
    same = xl[:, None] == yl[None, :]
    valid = (c < M)[None, :]
    if SELF:
        valid = valid & (r[:, None] != c[None, :])
    return same & valid, ~same & valid
