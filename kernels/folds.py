"""Folds: how the terms of an anchor's pairs become one number, the row state.

    sum   (value,)       the sum of the terms
    lse   (value, mass)  log sum exp: the running maximum, and the sum of exp(term - maximum)

each [n]. A loss says which folds it wants of its positives and which of its negatives; fold k takes term k. Kernels
are told what a fold keeps beside its value: () for a sum, (MASS,) for a log sum exp (`KINDS`), and then go by the
lengths of these tuples, since not every Triton takes tuples of strings.

POSITIVE says whose folds they are, as losses are told it. Before 3.7 Triton takes two calls of a function for one where
their tuples differ only in how they are nested, and so it would those for positives and for negatives.
"""

import triton
import triton.language as tl

from .tiles import load, padded

MASS = ()  # the tuple's length counts, not what is in it
KINDS = {"sum": (), "lse": (MASS,)}
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp(z):
    """e^z of differences from a maximum or a state: one instruction of the hardware, for which 1e-38 is 0."""
    return tl.exp2(z * LOG2E)


@triton.jit
def empty_folds(kinds, POSITIVE: tl.constexpr, SIZE: tl.constexpr):
    """What folds over no pair are."""
    folds = ()
    for k in tl.static_range(len(kinds)):
        if len(kinds[k]) > 0:
            folds = folds + ((tl.full([SIZE], float("-inf"), tl.float32), tl.zeros([SIZE], tl.float32)),)
        else:
            folds = folds + ((tl.zeros([SIZE], tl.float32),),)
    return folds


@triton.jit
def fold_tile(folds, terms, mask, POSITIVE: tl.constexpr, AXIS: tl.constexpr):
    """The folds after the tile's pairs in mask, or all of them if that is None, along its rows (AXIS 1) or its columns
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
    """ptr[first:, places] of [folds, n], of the rows inside: the sums and log sum exps; of rows that do not count those
    of no pair."""
    for k in tl.static_range(len(folds)):
        state = folds[k][0].to(ptr.dtype.element_ty)
        if len(folds[k]) > 1:
            state += tl.log(folds[k][1]).to(state.dtype)
            state = tl.where(counts, state, float("-inf"))
        else:
            state = tl.where(counts, state, 0.0)
        tl.store(ptr + (first + k) * n.to(tl.int64) + places, state, mask=inside)


@triton.jit(do_not_specialize=["n"])
def prepare_anchors(states_ptr, dstates_ptr, order, out_ptr, kinds, n, BLOCK: tl.constexpr):
    """What `load_anchors` loads, of anchors [folds, n] in the order of their side: out [2, folds, padded n] has
    dL/dstate and the states in fp32.

    A logit of 10,000 is rounded to 5e-4 in fp32, and so would be all weights of its row: of a log sum exp, what fp32
    has no room for is a factor of its derivative. Grid: (blocks of n, folds).
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    source = tl.load(order[0] + rows, mask=inside, other=0) if len(order) > 0 else rows
    for k in tl.static_range(len(kinds)):
        if tl.program_id(1) == k:
            at = k * n.to(tl.int64)
            dstate = tl.load(dstates_ptr + at + source, mask=inside, other=0.0).to(tl.float32)
            if len(kinds[k]) > 0:
                exact = tl.load(states_ptr + at + source, mask=inside, other=0.0)
                state = exact.to(tl.float32)
                rest = tl.where(exact == state.to(exact.dtype), 0.0, exact - state.to(exact.dtype))  # not inf - inf
                dstate *= tl.exp(-rest.to(tl.float32))
                tl.store(out_ptr + (len(kinds) + k) * padded(n) + rows, state, mask=inside)
            tl.store(out_ptr + k * padded(n) + rows, dstate, mask=inside)


@triton.jit
def load_anchors(
    anchors, kinds, first, rows, n, POSITIVE: tl.constexpr, AXIS: tl.constexpr, WHOLE: tl.constexpr = False
):
    """(dL/dstate,) of sums and (dL/dstate, state) of log sum exps, of the folds from `first` on; () of no anchors.

    Shaped for a tile whose rows (AXIS 1) or columns (AXIS 0) they are.
    """
    loaded = ()
    if len(anchors) > 0:
        for k in tl.static_range(len(kinds)):
            at = (first + k) * padded(n)
            dstate = tl.expand_dims(load(anchors.dstates + at, rows, n, WHOLE), AXIS)
            if len(kinds[k]) > 0:
                state = tl.expand_dims(load(anchors.states + at, rows, n, WHOLE), AXIS)
                loaded = loaded + ((dstate, state),)
            else:
                loaded = loaded + ((dstate,),)
    return loaded


@triton.jit
def term_weight(term, anchor, slope):
    """dL/dterm slope for the anchor whose term it is, as `load_anchors` has it. Few slopes are no scalar, so they go to
    the anchor and not to the tile."""
    if len(anchor) > 1:
        dstate, state = anchor
        return (dstate * slope) * exp(term - state)
    else:
        return anchor[0] * slope


@triton.jit
def merge_fold(parts, out_ptr, at, inside, P, step, LOG: tl.constexpr, BP: tl.constexpr):
    """One fold [BLOCK] from its parts, which lie `step` apart."""
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


@triton.jit(do_not_specialize=["P", "n"])
def merge(parts, out_ptr, kinds, P, n, BP: tl.constexpr, BLOCK: tl.constexpr):
    """The folds [folds, n] of all pairs from those of parts of them [P, folds, n].

    Grid: (blocks of n, folds).
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    step = len(kinds) * n.to(tl.int64)
    for k in tl.static_range(len(kinds)):
        if tl.program_id(1) == k:
            merge_fold(parts, out_ptr, k * n.to(tl.int64) + rows, rows < n, P, step, len(kinds[k]) > 0, BP)
