"""The two kernels that run every loss made of row folds.

`fold` turns each anchor's row of scores into a few numbers; `grad` recomputes the tiles and turns the derivatives of
those numbers into dx. A side (`x`, `y`) is the tuple (rows [N, D], norms [N], labels [N]). Each program owns its
output rows, so there are no atomics and results are the same bit for bit from run to run.
"""

import triton
import triton.language as tl

from .tiles import (
    accumulate,
    accumulate_grad,
    load_chunks,
    load_params,
    load_rows,
    load_states,
    pair_masks,
    round_weights,
)


def _composed(spec):
    """The name a profiler shows, contrastive_step_euclidean say: the loss's piece and the score."""
    return "_".join(spec.constants[k].__name__ for k in ("STEP", "GRAD", "SCORE") if k in spec.constants)


@triton.jit
def load_labels(side, rows, n):
    return tl.load(side[2] + rows, mask=rows < n, other=0)


@triton.jit
def load_norms(side, rows, n):
    return tl.load(side[1] + rows, mask=rows < n, other=0.0)


@triton.jit
def split_columns(M, BN: tl.constexpr):
    """The columns of this program's split, which starts at a multiple of BN. Grid axis 1 counts the splits."""
    width = tl.cdiv(tl.cdiv(M, BN), tl.num_programs(1)) * BN
    start = tl.program_id(1) * width
    return start, tl.minimum(start + width, M)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def fold(
    x, y, states_ptr, numbers, neutral, N, M, D,  # states [splits, len(neutral), N]
    SCORE: tl.constexpr, STEP: tl.constexpr, SELF: tl.constexpr,
    PARAMS_FROM_MEMORY: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Row states of x over the columns of this program's split. Grid: (row blocks, splits)."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    own, xl = load_norms(x, r, N)[:, None], load_labels(x, r, N)
    xs = load_chunks(x[0], r, N, D, BD, CHUNKS)
    params = load_params(numbers, PARAMS_FROM_MEMORY)
    state = ()
    for k in tl.static_range(len(neutral)):
        state = state + (tl.zeros([BM], tl.float32) + neutral[k],)

    start, end = split_columns(M, BN)
    for c0 in range(start, end, BN):
        c = c0 + tl.arange(0, BN)
        other, yl = load_norms(y, c, M)[None, :], load_labels(y, c, M)
        e = accumulate(x[0], y[0], xs, load_chunks(y[0], c, M, D, BD, CHUNKS), r, c, N, M, D, BD, PRECISION)
        s, _, _ = SCORE(e, own, other)
        pos, neg = pair_masks(xl, yl, r, c, M, SELF)
        state = STEP(state, s, pos, neg, params)

    out = states_ptr + tl.program_id(1).to(tl.int64) * len(neutral) * N + r
    for k in tl.static_range(len(neutral)):
        tl.store(out + k * N.to(tl.int64), state[k], mask=r < N)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def grad(
    x, y, states_ptr, dstates_ptr, out_ptr, numbers, N, M, D,  # states, dstates [STATES, anchors]; out [splits, N, D]
    SCORE: tl.constexpr, GRAD: tl.constexpr, STATES: tl.constexpr, ANCHORS: tl.constexpr, SKIP: tl.constexpr,
    PARAMS_FROM_MEMORY: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    CHUNKS: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """dx of the rows this program owns, SLAB chunks of D of them. Grid: (row blocks, splits, slabs).

    ANCHORS says whose row states there are: "x" (the own rows), "y" (the other side's), or "both": a self batch, where
    every row is an anchor and a partner, and both roles are folded into one gradient product.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    own, xl = load_norms(x, r, N)[:, None], load_labels(x, r, N)
    xs = load_chunks(x[0], r, N, D, BD, CHUNKS)
    params = load_params(numbers, PARAMS_FROM_MEMORY)
    if ANCHORS != "y":
        row_state = load_states(states_ptr, r, N, STATES, 1)
        row_dstate = load_states(dstates_ptr, r, N, STATES, 1)
    first = tl.program_id(2) * SLAB * BD
    acc = ()
    for _ in tl.static_range(SLAB):
        acc = acc + (tl.zeros([BM, BD], tl.float32),)
    own_share = tl.zeros([BM], tl.float32)  # sum_j w_ij t_ij

    start, end = split_columns(M, BN)
    for c0 in range(start, end, BN):
        c = c0 + tl.arange(0, BN)
        other, yl = load_norms(y, c, M)[None, :], load_labels(y, c, M)
        if ANCHORS != "x":
            column_state = load_states(states_ptr, c, M, STATES, 0)
            column_dstate = load_states(dstates_ptr, c, M, STATES, 0)
        ys = load_chunks(y[0], c, M, D, BD, CHUNKS)
        s, d_e, t = SCORE(accumulate(x[0], y[0], xs, ys, r, c, N, M, D, BD, PRECISION), own, other)
        pos, neg = pair_masks(xl, yl, r, c, M, ANCHORS == "both")
        g = tl.zeros([BM, BN], tl.float32)
        if ANCHORS != "y":
            g += GRAD(row_state, row_dstate, s, pos, neg, params)
        if ANCHORS != "x":
            g += GRAD(column_state, column_dstate, s, pos, neg, params)
        if (not SKIP) or tl.max((g != 0.0).to(tl.int32)) > 0:
            w = round_weights(g * d_e, x[0].dtype.element_ty, PRECISION)
            own_share += tl.sum(w.to(tl.float32) * t, 1)
            acc = accumulate_grad(acc, w, x[0], y[0], ys, r, c, first, N, M, D, BD, PRECISION)

    out_ptr += tl.program_id(1).to(tl.int64) * N * D + r.to(tl.int64)[:, None] * D
    for k in tl.static_range(SLAB):
        dims = first + k * BD + tl.arange(0, BD)
        dx = acc[k]
        if PRECISION != "manhattan":
            dx -= own_share[:, None] * load_rows(x[0], r, dims, N, D).to(tl.float32)
        tl.store(out_ptr + dims[None, :], dx.to(out_ptr.dtype.element_ty), mask=(r < N)[:, None] & (dims < D)[None, :])
