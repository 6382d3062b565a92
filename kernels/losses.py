"""Losses on a tile: the terms that are folded, and their derivatives.

    loss(s, numbers, POSITIVE) -> ((term, by s, by numbers[0], by numbers[1], ...), ...)

`s` are the scores [BM, BN] of pairs which are all positive, or all negative, and `numbers` those of that kind: one
tuple for each fold a loss may want of its terms. A term with no derivatives is a constant. What is not used costs
nothing: the compiler drops it.
"""

import triton
import triton.language as tl


@triton.jit
def hinge(s, numbers, POSITIVE: tl.constexpr):
    """How far a positive is beyond the margin, or a negative short of it; at least 0."""
    h = s - numbers[0] if POSITIVE else numbers[0] - s
    return tl.where(h <= 0.0, 0.0, h)  # NaN stays NaN


@triton.jit
def with_slope(term, slope, POSITIVE: tl.constexpr):
    """A term of a hinge with its derivatives: a positive pulls the score down, a negative pushes it up."""
    if POSITIVE:
        return (term, slope, -slope)
    else:
        return (term, -slope, slope)


@triton.jit
def contrastive(s, numbers, POSITIVE: tl.constexpr):
    """h^2 / 2 of the hinge h, whether it is active, and 1."""
    h = hinge(s, numbers, POSITIVE)
    return with_slope(0.5 * h * h, h, POSITIVE), (tl.where(h == 0.0, 0.0, 1.0),), (1.0,)


@triton.jit
def linear_contrastive(s, numbers, POSITIVE: tl.constexpr):
    """The hinge h, and whether it is active."""
    h = hinge(s, numbers, POSITIVE)
    active = tl.where(h == 0.0, 0.0, 1.0)
    return with_slope(h, active, POSITIVE), (active,)


@triton.jit
def softmax(s, numbers, POSITIVE: tl.constexpr):
    """The logit numbers[0] s + numbers[1], to be folded twice, and 1."""
    term = (numbers[0] * s + numbers[1], numbers[0], s, 1.0)
    one = tl.minimum(tl.maximum(s, 1.0), 1.0)  # laid out as the scores are, so that the compiler counts where they lie
    return term, term, (one,)


@triton.jit
def log1p(v):
    """log(1 + v) for v in [0, 1], to the last bits also near 0: 2 artanh(v / (2 + v))."""
    r = v / (2.0 + v)
    q = r * r
    tail = 1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0))
    return 2.0 * r * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * tail)))))


@triton.jit
def sigmoid(s, numbers, POSITIVE: tl.constexpr):
    """log(1 + exp(z)) of the logit z = numbers[0] s + numbers[1]."""
    z = numbers[0] * s + numbers[1]
    v = tl.exp(-tl.abs(z))
    slope = tl.where(z < 0.0, v, 1.0) / (1.0 + v)
    return ((tl.where(z <= 0.0, 0.0, z) + log1p(v), numbers[0] * slope, slope * s, slope),)


@triton.jit
def circle(s, numbers, POSITIVE: tl.constexpr):
    """Circle loss of margin numbers[0] and scale numbers[1]: its weight is a constant to the derivative."""
    if POSITIVE:
        w = -numbers[1] * tl.where(s >= 1.0 + numbers[0], 0.0, 1.0 + numbers[0] - s)
        return ((w * (s - (1.0 - numbers[0])), w),)
    else:
        w = numbers[1] * tl.where(s <= -numbers[0], 0.0, s + numbers[0])
        return ((w * (s - numbers[0]), w),)
