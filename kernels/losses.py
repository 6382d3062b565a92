"""Losses on a tile: the terms that are folded, and their derivatives.

    loss(s, params, POSITIVE) -> ((term, by s, by params[0], by params[1], ...), ...)

`s` are the scores [BM, BN] of pairs which are all positive, or all negative: one tuple for each fold a loss may want of
them. A term with no derivatives is a constant. What is not used costs nothing: the compiler drops it.
"""

import triton
import triton.language as tl


@triton.jit
def hinge(s, params, POSITIVE: tl.constexpr):
    """How far a positive is beyond params[0], or a negative short of params[1]; at least 0."""
    h = s - params[0] if POSITIVE else params[1] - s
    return tl.where(h <= 0.0, 0.0, h)  # NaN stays NaN


@triton.jit
def with_slope(term, slope, POSITIVE: tl.constexpr):
    """A term of a hinge with its derivatives: a positive pulls the score down, a negative pushes it up."""
    if POSITIVE:
        return (term, slope, -slope, 0.0)
    else:
        return (term, -slope, 0.0, slope)


@triton.jit
def contrastive(s, params, POSITIVE: tl.constexpr):
    """h^2 / 2 of the hinge h, whether it is active, and 1."""
    h = hinge(s, params, POSITIVE)
    return with_slope(0.5 * h * h, h, POSITIVE), (tl.where(h == 0.0, 0.0, 1.0),), (1.0,)


@triton.jit
def linear_contrastive(s, params, POSITIVE: tl.constexpr):
    """The hinge h, and whether it is active."""
    h = hinge(s, params, POSITIVE)
    active = tl.where(h == 0.0, 0.0, 1.0)
    return with_slope(h, active, POSITIVE), (active,)


@triton.jit
def logit(s, params, POSITIVE: tl.constexpr):
    """params[0] s + params[1] of a positive, params[2] s + params[3] of a negative."""
    return params[0] * s + params[1] if POSITIVE else params[2] * s + params[3]


@triton.jit
def by_logit(term, slope, s, params, POSITIVE: tl.constexpr):
    """A term of a logit with its derivatives."""
    if POSITIVE:
        return (term, slope * params[0], slope * s, slope, 0.0, 0.0)
    else:
        return (term, slope * params[2], 0.0, 0.0, slope * s, slope)


@triton.jit
def softmax(s, params, POSITIVE: tl.constexpr):
    """The logit, to be folded twice, and 1."""
    term = by_logit(logit(s, params, POSITIVE), 1.0, s, params, POSITIVE)
    return term, term, (1.0,)


@triton.jit
def log1p(v):
    """log(1 + v) for v in [0, 1], to the last bits also near 0: 2 artanh(v / (2 + v))."""
    r = v / (2.0 + v)
    q = r * r
    tail = 1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0))
    return 2.0 * r * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * tail)))))


@triton.jit
def sigmoid(s, params, POSITIVE: tl.constexpr):
    """log(1 + exp(z)) of the logit z."""
    z = logit(s, params, POSITIVE)
    v = tl.exp(-tl.abs(z))
    term = tl.where(z <= 0.0, 0.0, z) + log1p(v)
    return (by_logit(term, tl.where(z < 0.0, v, 1.0) / (1.0 + v), s, params, POSITIVE),)


@triton.jit
def circle(s, params, POSITIVE: tl.constexpr):
    """Circle loss of margin params[0] and scale params[1]: its weight is a constant to the derivative."""
    if POSITIVE:
        w = -params[1] * tl.where(s >= 1.0 + params[0], 0.0, 1.0 + params[0] - s)
        return ((w * (s - (1.0 - params[0])), w),)
    else:
        w = params[1] * tl.where(s <= -params[0], 0.0, s + params[0])
        return ((w * (s - params[0]), w),)
