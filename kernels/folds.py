"""Folds: how the terms of an anchor's pairs become one number, the row state.

    sum   (value,)       the sum of the terms
    lse   (value, mass)  log sum exp: the running maximum, and the sum of exp(term - maximum)

each [n]. A loss says which folds it wants over its positives and which over its negatives; fold k takes term k. A
kernel is given a tuple of what each fold keeps beside its value (`KINDS`): () for a sum, (MASS,) for a log sum exp. The
lengths of these tuples tell the folds apart, since not every Triton takes tuples of strings.

POSITIVE says whether the folds are over positives, as for losses. It also keeps the calls for positives and for
negatives apart: before 3.7, Triton confuses two calls of a function whose tuples differ only in their nesting.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import load, load_numbers, padded

MASS = ()  # the tuple's length counts, not what is in it
KINDS = {"sum": (), "lse": (MASS,)}


class Anchors(NamedTuple):
    """The anchors of a side in the backward, in the order of the side, in fp32. [folds, padded n] each"""

    dstates: Any  # dL/dstates
    states: Any  # the states that are log sum exps


EVERY = ((),)  # anchors whose states, all of them sums, have the derivative 1
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp(z):
    """e^z for differences from a maximum or a state, by one hardware instruction, which flushes 1e-38 to 0."""
    return tl.exp2(z * LOG2E)


@triton.jit
def empty_folds(kinds, POSITIVE: tl.constexpr, SIZE: tl.constexpr):
    """The folds over no pairs."""
    folds = ()
    for k in tl.static_range(len(kinds)):
        if len(kinds[k]) > 0:
            folds = folds + ((tl.full([SIZE], float("-inf"), tl.float32), tl.zeros([SIZE], tl.float32)),)
        else:
            folds = folds + ((tl.zeros([SIZE], tl.float32),),)
    return folds


@triton.jit
def fold_tile(folds, terms, mask, POSITIVE: tl.constexpr, AXIS: tl.constexpr):
    """The folds after the tile's pairs in the mask (all pairs if it is None), along its rows (AXIS 1) or its columns
    (AXIS 0)."""
    grown = ()
    for k in tl.static_range(len(folds)):
        term = terms[k][0]
        if len(folds[k]) > 1:
            value, mass = folds[k]
            if mask is not None:
                term = tl.where(mask, term, float("-inf"))
            best = larger(value, tl.max(term, AXIS))
            base = tl.where(best == float("-inf"), 0.0, best)  # -inf - -inf would be NaN
            mass = mass * exp(value - base) + tl.sum(exp(term - tl.expand_dims(base, AXIS)), AXIS)
            grown = grown + ((best, mass),)
        else:
            if mask is not None:
                term = tl.where(mask, term, 0.0)
            grown = grown + ((folds[k][0] + tl.sum(term, AXIS),),)
    return grown


@triton.jit
def store_folds(ptr, folds, first, places, inside, counts, n):
    """Store the sums and log sum exps of the rows inside in ptr[first:, places] of [folds, n]; rows that do not count
    get the folds over no pairs."""
    for k in tl.static_range(len(folds)):
        state = folds[k][0].to(ptr.dtype.element_ty)
        if len(folds[k]) > 1:
            state += tl.log(folds[k][1]).to(state.dtype)
            state = tl.where(counts, state, float("-inf"))
        else:
            state = tl.where(counts, state, 0.0)
        tl.store(ptr + (first + k) * n.to(tl.int64) + places, state, mask=inside)


@triton.jit
def store_anchors(anchors, k, rows, inside, state, dstate, n, LOG: tl.constexpr):
    """Store anchors for `load_anchors`.

    A logit of 10,000 is rounded to 5e-4 in fp32, and all weights of its row would have that error. So the digits of a
    log sum exp beyond fp32 become a factor of its derivative.
    """
    dstate = dstate.to(tl.float32)
    if LOG:
        rounded = state.to(tl.float32)
        rest = tl.where(state == rounded.to(state.dtype), 0.0, state - rounded.to(state.dtype))  # not inf - inf
        dstate *= tl.exp(-rest.to(tl.float32))
        tl.store(anchors.states + k * padded(n) + rows, rounded, mask=inside)
    tl.store(anchors.dstates + k * padded(n) + rows, dstate, mask=inside)


@triton.jit(do_not_specialize=["n"])
def prepare_anchors(states_ptr, dstates_ptr, order, anchors, kinds, n, BLOCK: tl.constexpr):
    """The anchors of a side from their states and dL/dstates [folds, n]. Grid: (blocks of n, folds)."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    source = tl.load(order[0] + rows, mask=inside, other=0) if len(order) > 0 else rows
    for k in tl.static_range(len(kinds)):
        if tl.program_id(1) == k:
            at = k * n.to(tl.int64) + source
            dstate = tl.load(dstates_ptr + at, mask=inside, other=0.0)
            state = tl.load(states_ptr + at, mask=inside, other=0.0)
            store_anchors(anchors, k, rows, inside, state, dstate, n, len(kinds[k]) > 0)


@triton.jit
def load_anchors(
    anchors,
    kinds,
    first,
    rows,
    n,
    upstream,
    POSITIVE: tl.constexpr,
    AXIS: tl.constexpr,
    WHOLE: tl.constexpr = False,
    SIDE: tl.constexpr = 0,
):
    """(dL/dstate,) for sums and (dL/dstate, state) for log sum exps, for the folds from `first` on; () without anchors.

    They are shaped for a tile whose rows (AXIS 1) or columns (AXIS 0) are the anchors.
    upstream: what multiplies dL/dstate, one number a fold; or (). SIDE keeps calls apart, as POSITIVE does.
    """
    loaded = ()
    if len(anchors) == 1:
        for k in tl.static_range(len(kinds)):
            loaded = loaded + ((upstream[first + k] if len(upstream) > 0 else 1.0,),)
    elif len(anchors) > 0:
        for k in tl.static_range(len(kinds)):
            at = (first + k) * padded(n)
            dstate = load(anchors.dstates + at, rows, n, WHOLE)
            if len(upstream) > 0:
                dstate *= upstream[first + k]
            dstate = tl.expand_dims(dstate, AXIS)
            if len(kinds[k]) > 0:
                state = tl.expand_dims(load(anchors.states + at, rows, n, WHOLE), AXIS)
                loaded = loaded + ((dstate, state),)
            else:
                loaded = loaded + ((dstate,),)
    return loaded


@triton.jit
def term_weight(term, anchor, slope):
    """dL/dterm times the slope, for an anchor from `load_anchors`. Most slopes are scalars, so they multiply the anchor
    and not the tile."""
    if len(anchor) > 1:
        dstate, state = anchor
        return (dstate * slope) * exp(term - state)
    else:
        return anchor[0] * slope


@triton.jit
def merge_fold(parts, out_ptr, at, inside, P, step, LOG: tl.constexpr, BP: tl.constexpr):
    """One fold [BLOCK] from its parts, which are `step` apart in memory."""
    value = tl.zeros(at.shape, parts.dtype.element_ty)
    best = value + float("-inf")
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)
        mask = (p < P)[:, None] & inside[None, :]
        part = tl.load(parts + p.to(tl.int64)[:, None] * step + at[None, :], mask=mask, other=0.0)
        if LOG:
            part = tl.where(mask, part, float("-inf"))
            before, best = best, larger(best, tl.max(part, 0))
            shift = tl.where(tl.abs(best) == float("inf"), 0.0, best)  # inf - inf would be NaN
            value = value * tl.exp(before - shift) + tl.sum(tl.exp(part - shift[None, :]), 0)
        else:
            value += tl.sum(part, 0)
    if LOG:
        value = best + tl.log(value)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def merge_side(side, kinds, P, n, BP: tl.constexpr, BLOCK: tl.constexpr):
    parts, out_ptr = side
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    step = len(kinds) * n.to(tl.int64)
    for k in tl.static_range(len(kinds)):
        if tl.program_id(1) == k:
            merge_fold(parts, out_ptr, k * n.to(tl.int64) + rows, rows < n, P, step, len(kinds[k]) > 0, BP)


@triton.jit
def add_up(numbers_ptr, out_ptr, factor, count, BLOCK: tl.constexpr):
    """The sum of `count` numbers times a factor, by one program."""
    total = tl.zeros([BLOCK], numbers_ptr.dtype.element_ty)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(numbers_ptr + at, mask=at < count, other=0.0)
    tl.store(out_ptr, (tl.sum(total, 0) * factor).to(out_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["P", "Q", "n", "m", "count"])
def merge(x, y, total, kinds, P, Q, n, m, count, BP: tl.constexpr, BLOCK: tl.constexpr, SUMMED: tl.constexpr):
    """The folds over all pairs from folds over parts of them. Grid: (blocks, folds, one for each of x, y and total).

    x: (parts [P, folds, n], out [folds, n]) or (); y: the same with Q and m.
    total: (numbers [count], out, factor) or (); their sum is one more result.
    """
    job = tl.program_id(2)
    if len(x) > 0:
        if job == 0:
            merge_side(x, kinds, P, n, BP, BLOCK)
        job -= 1
    if len(y) > 0:
        if job == 0:
            merge_side(y, kinds, Q, m, BP, BLOCK)
        job -= 1
    if len(total) > 0:
        if (job == 0) & (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            (factor,) = load_numbers(total[2])
            add_up(total[0], total[1], factor, count, SUMMED)
