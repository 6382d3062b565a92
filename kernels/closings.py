"""Closing formulas: what the states of a row cost, with the derivatives.

    closing(states, numbers) -> ((term, count, (by the first state, by the next one, ...)), ...)

The loss is a sum of means, mostly of one: of the rows' terms, divided by the sum of their counts. Each mean has as many
states, the first one the first of them. Each formula is tested against autograd of its PyTorch form
(`losses/closings.py`), which is what other backends compute.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .folds import larger, store_anchors
from .losses import logistic, minus, relu, softplus
from .walks import count


@triton.jit
def gap(states, numbers):
    """softplus(negative - positive)"""
    positive, negative = states
    z = negative - positive
    return ((softplus(z), 1.0, (minus(logistic(z)), logistic(z))),)


@triton.jit
def supcon(states, numbers):
    """log sum exp of the positives less their mean, plus the gap to the negatives."""
    total, positive, count, negative = states
    some, several = count > 0.0, count > 1.0
    positive = tl.where(some, positive, 0.0)
    z = tl.where(some, negative - positive, 0.0)
    share = 1.0 / tl.where(some, count, 1.0)
    slope = tl.where(some, logistic(z), 0.0)
    term = tl.where(several, positive - total * share, 0.0) + tl.where(some, softplus(z), 0.0)
    of_positive = tl.where(several, 1.0, 0.0) - slope
    return ((term, tl.where(some, 1.0, 0.0), (tl.where(several, minus(share), 0.0), of_positive, 0.0, slope)),)


@triton.jit
def nca(states, numbers):
    """softplus(negative - positive) of rows with a positive."""
    positive, _total, count, negative = states
    some = count > 0.0
    z = tl.where(some, negative - tl.where(some, positive, 0.0), 0.0)
    slope = tl.where(some, logistic(z), 0.0)
    return ((tl.where(some, softplus(z), 0.0), tl.where(some, 1.0, 0.0), (minus(slope), 0.0, 0.0, slope)),)


@triton.jit
def multi_similarity(states, numbers):
    """softplus(pull) / alpha + softplus(push) / beta"""
    pull, push = states
    alpha, beta = numbers
    return ((softplus(pull) / alpha + softplus(push) / beta, 1.0, (logistic(pull) / alpha, logistic(push) / beta)),)


@triton.jit
def circle(states, numbers):
    """softplus(pull + push), counted where it is above 0."""
    z = states[0] + states[1]
    term, slope = softplus(z), logistic(z)
    return ((term, tl.where(term > 0.0, 1.0, 0.0), (slope, slope)),)


@triton.jit
def lifted(states, numbers):
    """max(0, pull + push), where a state over no pairs is 0."""
    pulled, pushed = states[0] > float("-inf"), states[1] > float("-inf")
    term = relu(unless_empty(states[0]) + unless_empty(states[1]))
    slope = tl.where(term == 0.0, 0.0, 1.0)
    return ((term, 1.0, (tl.where(pulled, slope, 0.0), tl.where(pushed, slope, 0.0))),)


@triton.jit
def unless_empty(state):
    """A log sum exp, 0 if it is over no pairs."""
    return tl.where(state == float("-inf"), 0.0, state)


@triton.jit
def active(states, numbers):
    """Sums of hinges, and how many of these are active; positives and negatives have one mean."""
    far, too_far, near, too_near = states
    return ((far + near, too_far + too_near, (1.0, 0.0, 1.0, 0.0)),)


@triton.jit
def active_by_kind(states, numbers):
    """Sums of hinges, and how many of these are active; positives have one mean, and negatives another."""
    far, too_far, near, too_near = states
    return (far, too_far, (1.0, 0.0)), (near, too_near, (1.0, 0.0))


@triton.jit
def cosface(states, numbers):
    """softplus(others - scale (cos - margin))"""
    own, others = states
    scale, margin = numbers
    z = others - scale * (own - margin)
    return ((softplus(z), 1.0, (minus(scale * logistic(z)), logistic(z))),)


@triton.jit
def arcface(states, numbers):
    """softplus(others - scale cos(angle + margin)), for angles up to pi - margin; beyond, cos - margin sin(margin)."""
    own, others = states
    scale, cos, sin, straight = numbers  # of the margin; straight is margin sin(margin), or inf for margins below 0
    squared = 1.0 - own * own
    sine = tl.sqrt(larger(squared, 0.0))
    within = own >= tl.where(straight == float("inf"), float("-inf"), minus(cos))
    bent = cos + tl.where(squared > 0.0, own / tl.where(squared > 0.0, sine, 1.0), 0.0) * sin
    z = others - scale * tl.where(within, own * cos - sine * sin, own - straight)
    slope = logistic(z)
    return ((softplus(z), 1.0, (minus(scale * slope * tl.where(within, bent, 1.0)), slope)),)


@triton.jit
def proxy_anchor(states, numbers):
    """softplus(positive) over the proxies that have a positive, and softplus(negative) over all."""
    positive, negative = states
    some = tl.where(positive > float("-inf"), 1.0, 0.0)
    return (softplus(positive), some, (logistic(positive),)), (softplus(negative), 1.0, (logistic(negative),))


class Closed(NamedTuple):
    """The anchors of one side, to be closed."""

    parts: Any  # their states over parts of all pairs [parts, folds, n]
    anchors: Any  # `folds.Anchors`, to be written
    order: tuple = ()  # as in `tiles.Rows`
    counted: tuple = ()
    classes: tuple = ()  # ([n],) if rows have classes: -1 for a row that does not count, -2 for a wrong one
    weights: tuple = ()  # ([n],) what the rows count, if not 1


@triton.jit
def merged(parts, kinds, at, inside, P, n):
    """The states of some rows over all pairs. Differences of log sum exps are rounded to fp32, but not these."""
    states = ()
    for k in tl.static_range(len(kinds)):
        value = tl.load(parts + k * n.to(tl.int64) + at, mask=inside, other=0.0)
        mass = tl.full(value.shape, 1.0, tl.float32)
        for p in range(1, P):
            part = tl.load(parts + (p * len(kinds) + k) * n.to(tl.int64) + at, mask=inside, other=0.0)
            if len(kinds[k]) > 0:
                best = larger(value, part)
                base = tl.where(tl.abs(best) == float("inf"), 0.0, best)  # inf - inf would be NaN
                mass = mass * tl.exp((value - base).to(tl.float32)) + tl.exp((part - base).to(tl.float32))
                value = best
            else:
                value += part
        if len(kinds[k]) > 0:
            value += tl.log(mass).to(value.dtype)
        states = states + (value,)
    return states


@triton.jit
def close_side(side, sums, kinds, numbers, P, n, CLOSING: tl.constexpr, BLOCK: tl.constexpr):
    """Add the terms and the counts of this program's rows of a side to the sums [BLOCK], and write their anchors."""
    end = count(side, n)
    for first in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = rows < n
        at = tl.load(side.order[0] + rows, mask=inside, other=0) if len(side.order) > 0 else rows
        states = merged(side.parts, kinds, at, inside, P, n)
        live = rows < end
        wrong = live & (rows < 0)
        if len(side.classes) > 0:
            given = tl.load(side.classes[0] + at, mask=inside, other=-1)
            wrong = live & (given < -1)
            live &= given >= 0
        weight = tl.full([BLOCK], 1.0, states[0].dtype)
        if len(side.weights) > 0:
            weight = tl.load(side.weights[0] + at, mask=inside, other=0.0).to(states[0].dtype)
        means = CLOSING(states, numbers)
        grown = ()
        for mean in tl.static_range(len(means)):
            term, counted, slopes = means[mean]
            term = tl.where(live, weight * term, tl.where(wrong, float("nan"), 0.0))
            counted = tl.where(live, weight * counted, 0.0)
            grown = grown + (sums[2 * mean] + term, sums[2 * mean + 1] + counted)
            for k in tl.static_range(len(slopes)):
                slope = tl.where(live, weight * slopes[k], 0.0)
                store_anchors(
                    side.anchors, mean * len(slopes) + k, rows, inside, states[mean * len(slopes) + k], slope, n,
                    len(kinds[mean * len(slopes) + k]) > 0,
                )  # fmt: skip
        sums = grown
    return sums


@triton.jit
def conclude(loss_ptr, scales_ptr, sums, STATES: tl.constexpr, MEAN: tl.constexpr):
    """Store the loss, and what multiplies the derivatives by each of the states."""
    loss = 0.0
    for mean in tl.static_range(len(sums) // 2):
        count = sums[2 * mean + 1]
        count = tl.where(count == 0.0, 1.0, count) if MEAN else 0.0 * count + 1.0
        loss += sums[2 * mean] / count
        for k in tl.static_range(STATES // (len(sums) // 2)):
            at = scales_ptr + mean * (STATES // (len(sums) // 2)) + k
            tl.store(at, (1.0 / count).to(scales_ptr.dtype.element_ty))
    tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))


@triton.jit
def whole(numbers, DTYPE: tl.constexpr):
    """Numbers that are given in two parts, since an argument of a kernel is fp32."""
    found = ()
    for k in tl.static_range(len(numbers) // 2):
        found = found + (tl.cast(numbers[2 * k], DTYPE) + tl.cast(numbers[2 * k + 1], DTYPE),)
    return found


@triton.jit(do_not_specialize=["P", "Q", "N", "M"])
def finish(
    x, y, numbers, kinds, loss_ptr, scales_ptr, parts_ptr, P, Q, N, M,
    CLOSING: tl.constexpr, MEANS: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the states of the anchors, close them, and store the loss, the anchors and what multiplies them.

    Grid: (programs,). One program does all of it; several write their sums to parts [programs, 2 means], of which
    `finish_parts` makes the loss.
    x, y: `Closed`; y is () if only the rows of x are anchors. P, Q: parts of either.
    numbers: those of the closing formula, see `whole`.
    """
    state: tl.constexpr = x.parts.dtype.element_ty
    sums = ()
    for _ in tl.static_range(2 * MEANS):
        sums = sums + (tl.zeros([BLOCK], state),)
    numbers = whole(numbers, state)
    sums = close_side(x, sums, kinds, numbers, P, N, CLOSING, BLOCK)
    if len(y) > 0:
        sums = close_side(y, sums, kinds, numbers, Q, M, CLOSING, BLOCK)
    totals = ()
    for k in tl.static_range(len(sums)):
        totals = totals + (tl.sum(sums[k], 0),)
    if tl.num_programs(0) == 1:
        conclude(loss_ptr, scales_ptr, totals, len(kinds), MEAN)
    else:
        for k in tl.static_range(len(totals)):
            tl.store(parts_ptr + tl.program_id(0) * len(totals) + k, totals[k])


@triton.jit(do_not_specialize=["programs"])
def finish_parts(
    parts_ptr, kinds, loss_ptr, scales_ptr, programs, MEANS: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The loss from the sums of several programs. Grid: (1,)."""
    totals = ()
    for k in tl.static_range(2 * MEANS):
        found = tl.zeros([BLOCK], parts_ptr.dtype.element_ty)
        for first in range(0, programs, BLOCK):
            at = first + tl.arange(0, BLOCK)
            found += tl.load(parts_ptr + at * 2 * MEANS + k, mask=at < programs, other=0.0)
        totals = totals + (tl.sum(found, 0),)
    conclude(loss_ptr, scales_ptr, totals, len(kinds), MEAN)
