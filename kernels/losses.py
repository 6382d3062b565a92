"""Losses on a tile: `step` folds scores into row states, `grad` is its derivative.

    step(state, s, pos, neg, params) -> state      state: a tuple of [BM], one number per row
    grad(state, dstate, s, pos, neg, params) -> dL/ds  [BM, BN]
`state` and `dstate` of `grad` are broadcastable ([BM, 1] or [1, BN]): the same function serves an anchor that owns
the rows of the tile and one that owns its columns.
"""

import triton
import triton.language as tl


@triton.jit
def pair_hinge(s, pos, neg, params):
    """How far a positive is beyond params[0] and a negative short of params[1], at least 0. [BM, BN]"""
    h = tl.where(pos, s - params[0], params[1] - s)
    return tl.where((pos | neg) & ~(h <= 0.0), h, 0.0)  # NaN stays NaN


@triton.jit
def fold_hinges(state, term, slope, pos):
    """One state: the sum of all terms. Six: sums, active counts and sums of slopes, each of positives and negatives."""
    if len(state) == 1:
        return (state[0] + tl.sum(term, 1),)
    else:
        active = tl.where(slope == 0.0, 0.0, 1.0)
        return (
            state[0] + tl.sum(tl.where(pos, term, 0.0), 1),
            state[1] + tl.sum(tl.where(pos, 0.0, term), 1),
            state[2] + tl.sum(tl.where(pos, active, 0.0), 1),
            state[3] + tl.sum(tl.where(pos, 0.0, active), 1),
            state[4] + tl.sum(tl.where(pos, slope, 0.0), 1),
            state[5] + tl.sum(tl.where(pos, 0.0, slope), 1),
        )


@triton.jit
def signed_slope(dstate, slope, pos):
    """dL/ds of a hinge: a positive pulls the score down, a negative pushes it up. [BM, BN]"""
    if len(dstate) == 1:
        return tl.where(pos, slope, -slope) * dstate[0]  # the signed slope is shared by both roles of a self batch
    else:
        return slope * tl.where(pos, dstate[0], -dstate[1])


@triton.jit
def contrastive_step(state, s, pos, neg, params):
    """Hinge to the power 2: h^2 / 2, slope h."""
    h = pair_hinge(s, pos, neg, params)
    return fold_hinges(state, 0.5 * h * h, h, pos)


@triton.jit
def contrastive_grad(state, dstate, s, pos, neg, params):
    return signed_slope(dstate, pair_hinge(s, pos, neg, params), pos)


@triton.jit
def linear_contrastive_step(state, s, pos, neg, params):
    """Hinge to the power 1: h, slope 1 where it is active."""
    h = pair_hinge(s, pos, neg, params)
    return fold_hinges(state, h, tl.where(h == 0.0, 0.0, 1.0), pos)


@triton.jit
def linear_contrastive_grad(state, dstate, s, pos, neg, params):
    h = pair_hinge(s, pos, neg, params)
    return signed_slope(dstate, tl.where(h == 0.0, 0.0, 1.0), pos)
