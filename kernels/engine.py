"""The two kernels that run every loss made of row folds.

`fold` turns each anchor's row of scores into a few numbers; `grad` recomputes the tiles and turns the derivatives of
those numbers into dx. A side (`x`, `y`) is the tuple (rows [N, D], norms [N], labels [N]). Each program owns its
output rows, so there are no atomics and results are the same bit for bit from run to run.
"""

import triton
import triton.language as tl

from .tiles import accumulate, accumulate_grad, load_params, load_rows, load_states, pair_masks


def _composed(spec):
    """The name a profiler shows: kernel, loss piece and score."""
    pieces = [spec.constants[k] for k in ("STEP", "GRAD", "SCORE") if k in spec.constants]
    return "_".join([spec.name, *(getattr(p, "fn", p).__name__ for p in pieces)])


@triton.jit
def tile_scores(
    x, y, r, c, N, M, D, SCORE: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr
):
    """Scores of rows r of x with rows c of y, and their two partials. CHUNKS = 0: D is walked by a run-time loop. [BM, BN]"""
    e = tl.zeros([r.shape[0], c.shape[0]], tl.float32)
    if CHUNKS == 0:
        for first in range(0, D, BD):
            e = accumulate(e, x[0], y[0], r, c, first, N, M, D, BD, PRECISION)
    else:
        for k in tl.static_range(CHUNKS):
            e = accumulate(e, x[0], y[0], r, c, k * BD, N, M, D, BD, PRECISION)
    own = tl.load(x[1] + r, mask=r < N, other=0.0)
    other = tl.load(y[1] + c, mask=c < M, other=0.0)
    return SCORE(e, own[:, None], other[None, :])


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def fold(
    x, y, states_ptr, params, N, M, D,  # states [splits, STATES, N]
    SCORE: tl.constexpr, STEP: tl.constexpr, NEUTRAL: tl.constexpr, SELF: tl.constexpr, PARAMS_FROM_MEMORY: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Row states of x over the columns of this program's split. Grid: (row blocks, splits)."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    xl = tl.load(x[2] + r, mask=r < N, other=0)
    numbers = load_params(params, PARAMS_FROM_MEMORY)
    state = ()
    for k in tl.static_range(len(NEUTRAL)):
        state = state + (tl.full([BM], NEUTRAL[k], tl.float32),)

    width = tl.cdiv(tl.cdiv(M, BN), tl.num_programs(1)) * BN
    start = tl.program_id(1) * width
    for c0 in range(start, tl.minimum(start + width, M), BN):
        c = c0 + tl.arange(0, BN)
        s, _, _ = tile_scores(x, y, r, c, N, M, D, SCORE, PRECISION, BD, CHUNKS)
        pos, neg = pair_masks(xl, tl.load(y[2] + c, mask=c < M, other=0), r, c, M, SELF)
        state = STEP(state, s, pos, neg, numbers)

    out = states_ptr + tl.program_id(1).to(tl.int64) * len(NEUTRAL) * N + r
    for k in tl.static_range(len(NEUTRAL)):
        tl.store(out + k * N.to(tl.int64), state[k], mask=r < N)


@triton.jit
def score_grad(ptrs, rows, n, s, pos, neg, params, GRAD: tl.constexpr, STATES: tl.constexpr, AXIS: tl.constexpr):
    """dL/ds of a tile from the states and their derivatives of the anchors along one axis of it. [BM, BN]"""
    states = load_states(ptrs[0], rows, n, STATES)
    dstates = load_states(ptrs[1], rows, n, STATES)
    state = ()
    dstate = ()
    for k in tl.static_range(STATES):
        state = state + (tl.expand_dims(states[k], AXIS),)
        dstate = dstate + (tl.expand_dims(dstates[k], AXIS),)
    return GRAD(state, dstate, s, pos, neg, params)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def grad(
    x, y, states, out_ptr, params, N, M, D,  # states: (states, dstates), each [STATES, anchors]; out [splits, N, D]
    SCORE: tl.constexpr, GRAD: tl.constexpr, STATES: tl.constexpr, ANCHORS: tl.constexpr, SKIP: tl.constexpr,
    PARAMS_FROM_MEMORY: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    CHUNKS: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """dx of the rows this program owns, SLAB chunks of D of them. Grid: (row blocks, splits, slabs).

    ANCHORS says whose row states there are: "x" (the own rows), "y" (the other side's), or "both": a self batch, where
    every row is an anchor and a partner, and both roles are folded into one gradient product.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    xl = tl.load(x[2] + r, mask=r < N, other=0)
    numbers = load_params(params, PARAMS_FROM_MEMORY)
    slab = tl.program_id(2) * SLAB * BD
    acc = ()
    for k in tl.static_range(SLAB):
        acc = acc + (tl.zeros([BM, BD], tl.float32),)
    own = tl.zeros([BM], tl.float32)  # dL/d(|x|^2)

    width = tl.cdiv(tl.cdiv(M, BN), tl.num_programs(1)) * BN
    start = tl.program_id(1) * width
    for c0 in range(start, tl.minimum(start + width, M), BN):
        c = c0 + tl.arange(0, BN)
        s, d_e, d_own = tile_scores(x, y, r, c, N, M, D, SCORE, PRECISION, BD, CHUNKS)
        pos, neg = pair_masks(xl, tl.load(y[2] + c, mask=c < M, other=0), r, c, M, ANCHORS == "both")
        g = tl.zeros([BM, BN], tl.float32)
        if ANCHORS != "y":
            g += score_grad(states, r, N, s, pos, neg, numbers, GRAD, STATES, 1)
        if ANCHORS != "x":
            g += score_grad(states, c, M, s, pos, neg, numbers, GRAD, STATES, 0)
        if (not SKIP) or tl.max((g != 0.0).to(tl.int32)) > 0:
            own += tl.sum(g * d_own, 1)
            w = g * d_e
            grown = ()
            for k in tl.static_range(SLAB):
                chunk = accumulate_grad(acc[k], w, x[0], y[0], r, c, slab + k * BD, N, M, D, BD, PRECISION)
                grown = grown + (chunk,)
            acc = grown

    out_ptr += tl.program_id(1).to(tl.int64) * N * D + r.to(tl.int64)[:, None] * D
    for k in tl.static_range(SLAB):
        dims = slab + k * BD + tl.arange(0, BD)
        dx = acc[k]
        if PRECISION != "manhattan":
            dx += 2.0 * own[:, None] * load_rows(x[0], r, dims, N, D).to(tl.float32)
        tl.store(out_ptr + dims[None, :], dx.to(out_ptr.dtype.element_ty), mask=(r < N)[:, None] & (dims < D)[None, :])
