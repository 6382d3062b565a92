"""Losses on a tile: the terms that are folded, and their derivatives.

    loss(s, numbers, POSITIVE) -> ((term, by s, by the first number, by the second, ...), ...)

`s` are the scores [BM, BN] of pairs that are all positive, or all negative, and `numbers` are the loss's numbers for
that kind. A loss returns one tuple for each fold that it may want. A term without derivatives is a constant. Values
that are not used cost nothing: the compiler drops them.

The losses also run without Triton, on PyTorch's tensors (`backends/blocked/losses.py`): they consist of arithmetic,
`tl.where`, `tl.exp`, and the functions above the first loss, in place of which PyTorch has its own.
"""

import triton
import triton.language as tl


@triton.jit
def minus(z):
    """-z at no cost: Triton compiles -z to 0 - z, which is one more instruction."""
    return -1.0 * z


@triton.jit
def relu(z):
    """max(z, 0)"""
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def below(z):
    """min(z, 0)"""
    return tl.minimum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log1p(v):
    """log(1 + v) for v in [0, 1] as 2 artanh(v / (2 + v)), which is exact to the last bits near 0 too."""
    r = v / (2.0 + v)
    q = r * r
    tail = 1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0))
    return 2.0 * r * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * tail)))))


@triton.jit
def softplus(z):
    """log(1 + exp(z)), exact to the last bits for every z."""
    return relu(z) + log1p(tl.exp(-tl.abs(z)))


@triton.jit
def logistic(z):
    """1 / (1 + exp(-z)), the slope of softplus."""
    v = tl.exp(-tl.abs(z))
    return tl.where(z < 0.0, v, 1.0) / (1.0 + v)


@triton.jit
def logistic_slope(z):
    """The slope of `logistic`, exact to the last bits for every z."""
    v = tl.exp(-tl.abs(z))
    return v / ((1.0 + v) * (1.0 + v))


@triton.jit
def tanh(u):
    """The hyperbolic tangent, exact to the last bits near 0 too."""
    q = u * u
    small = u * (1.0 + q * (-1.0 / 3.0 + q * (2.0 / 15.0 + q * (-17.0 / 315.0 + q * (62.0 / 2835.0)))))
    v = tl.exp(-2.0 * tl.abs(u))
    large = (1.0 - v) / (1.0 + v)
    return tl.where(q < 0.02, small, tl.where(u < 0.0, -large, large))


@triton.jit
def ones(s):
    """1 for every pair, even where the score is NaN, in the layout of the scores, so that sums need no conversion."""
    return tl.where(s > 0.0, 1.0, 0.0) + tl.where(s > 0.0, 0.0, 1.0)


@triton.jit
def beyond(s, numbers, POSITIVE: tl.constexpr):
    """s - margin where that costs something (above 0 for positives, below 0 for negatives), otherwise 0."""
    (margin,) = numbers
    z = s - margin
    return relu(z) if POSITIVE else below(z)


@triton.jit
def contrastive(s, numbers, POSITIVE: tl.constexpr):
    """h^2 / 2 of the hinge h, whether it is active, and 1."""
    z = beyond(s, numbers, POSITIVE)
    return (0.5 * z * z, z, minus(z)), (tl.where(z == 0.0, 0.0, 1.0),), (ones(s),)


@triton.jit
def linear_contrastive(s, numbers, POSITIVE: tl.constexpr):
    """The hinge h, and whether it is active."""
    z = beyond(s, numbers, POSITIVE)
    active = tl.where(z == 0.0, 0.0, 1.0)
    if POSITIVE:
        return (z, active, minus(active)), (active,)
    else:
        return (minus(z), minus(active), active), (active,)


@triton.jit
def softmax(s, numbers, POSITIVE: tl.constexpr):
    """The logit scale s + bias, twice, since a loss may fold it in two ways, and 1."""
    scale, bias = numbers
    term = (scale * s + bias, scale, s, 1.0)
    return term, term, (ones(s),)


@triton.jit
def capped(s, numbers, POSITIVE: tl.constexpr):
    """The logit s, brought between -cap and cap, twice, since a loss may fold it in two ways."""
    (cap,) = numbers
    u = s / cap
    v = tl.exp(-2.0 * tl.abs(u))
    t = tanh(u)
    slope = 4.0 * v / ((1.0 + v) * (1.0 + v))  # 1 - t^2 without cancellation
    term = (cap * t, slope, t - u * slope)
    return term, term


@triton.jit
def sigmoid(s, numbers, POSITIVE: tl.constexpr):
    """log(1 + exp(z)) of the logit z = scale s + bias, and 1."""
    scale, bias = numbers
    z = scale * s + bias
    slope = logistic(z)
    return (softplus(z), scale * slope, slope * s, slope), (ones(s),)


@triton.jit
def rounded(w, s):
    """w s, rounded before anything is subtracted from it. A product at the end of a term would otherwise be fused with
    the subtraction of a state in the gradient, and be rounded differently there than in the fold."""
    return tl.where(w == 0.0, 0.0, w * s)


@triton.jit
def circle(s, numbers, POSITIVE: tl.constexpr):
    """Circle loss: the weight w, the distance of a score from its optimum, counts as a constant in the derivative."""
    margin, gamma = numbers
    if POSITIVE:
        w = -gamma * relu(1.0 + margin - s)
        return ((rounded(w, s - (1.0 - margin)), w),)
    else:
        w = gamma * relu(s + margin)
        return ((rounded(w, s - margin), w),)


# Terms of a positive, from its rank among the anchor's other rows, which is others + negatives:
#
#     loss(others, negatives, numbers) -> ((term, by others, by negatives), ...)


@triton.jit
def imprecision(others, negatives, numbers):
    """1 - precision at the rank: the share of negatives among the rows up to that rank."""
    rank = others + negatives
    share = negatives / rank
    return ((share, minus(share / rank), (others / rank) / rank),)


@triton.jit
def recall(others, negatives, numbers):
    """A smooth indicator that the rank is at most k, for each k; numbers are the temperature, then every k."""
    found = ()
    for i in tl.static_range(1, len(numbers)):
        z = (numbers[i] - (others + negatives)) / numbers[0]
        slope = minus(logistic_slope(z) / numbers[0])
        found = found + ((logistic(z), slope, slope),)
    return found
