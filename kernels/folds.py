"""Folds: how the terms of an anchor's pairs become one number, the row state.

    sum   (value,)       the sum of the terms
    lse   (most, mass)   log sum exp: the largest of `LOG2E` term so far, and the sum of 2^(LOG2E term - most)

each [n]. A loss says which folds it wants of its positives and which of its negatives; fold k takes term k. Kernels
are told what a fold keeps beside its value: () for a sum, (MASS,) for a log sum exp (`KINDS`), and then go by the
lengths of these tuples, since not every Triton takes tuples of strings.

POSITIVE says whose folds they are, as losses are told it. Before 3.7 Triton takes two calls of a function for one where
their tuples differ only in how they are nested, and so it would those for positives and for negatives.
"""

import triton
import triton.language as tl

from .tiles import INTERPRETED, load, padded

MASS = ()  # the tuple's length counts, not what is in it
KINDS = {"sum": (), "lse": (MASS,)}
LOG2E: tl.constexpr = tl.constexpr(1.4426950216293335)  # log2(e) in float32


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def excess(term, base):
    """LOG2E term - base in fp32. One multiply-add, which rounds once: since the term is a factor, no product of its own
    can fuse with the difference, in the gradient and not in the fold."""
    if term.dtype == tl.float64:
        return (term * LOG2E - base).to(tl.float32)
    elif INTERPRETED:
        return (term.to(tl.float64) * LOG2E - base).to(tl.float32)
    else:
        return tl.fma(term, LOG2E, -base)


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
            most, mass = folds[k]
            if mask is not None:
                term = tl.where(mask, term, float("-inf"))
            higher = larger(most, tl.max(term, AXIS) * LOG2E)
            base = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
            mass = mass * tl.exp2(most - base) + tl.sum(tl.exp2(excess(term, tl.expand_dims(base, AXIS))), AXIS)
            grown = grown + ((higher, mass),)
        else:
            if mask is not None:
                term = tl.where(mask, term, 0.0)
            grown = grown + ((folds[k][0] + tl.sum(term, AXIS),),)
    return grown


@triton.jit
def store_folds(ptr, folds, first, rows, n, counted):
    """ptr[first:, rows] of [folds, n]: the sums and log sum exps; from row `counted` on those of no pair."""
    for k in tl.static_range(len(folds)):
        state = folds[k][0].to(ptr.dtype.element_ty)
        if len(folds[k]) > 1:
            state = (state + tl.log2(folds[k][1]).to(state.dtype)) / LOG2E
            state = tl.where(rows < counted, state, float("-inf"))
        else:
            state = tl.where(rows < counted, state, 0.0)
        tl.store(ptr + (first + k) * n.to(tl.int64) + rows, state, mask=rows < n)


@triton.jit
def weigh(state, dstate):
    """(factor, base) of a log sum exp: dL/dterm = factor 2^(LOG2E term - base).

    A state of 10,000 is rounded to 5e-4 in fp32, and so would be all weights of its row: what fp32 has no room for is a
    part of the factor.
    """
    base = (state * LOG2E).to(tl.float32)
    rest = tl.where(tl.abs(base) == float("inf"), 0.0, excess(state, base))  # not inf - inf
    return dstate.to(tl.float32) * tl.exp2(-rest), base


@triton.jit(do_not_specialize=["n"])
def prepare_anchors(states_ptr, dstates_ptr, order, out_ptr, kinds, n, BLOCK: tl.constexpr):
    """What `load_anchors` loads, of anchors [folds, n] in the order of their side: out [2, folds, padded n].

    Grid: (blocks of n, folds).
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    source = tl.load(order[0] + rows, mask=inside, other=0) if len(order) > 0 else rows
    for k in tl.static_range(len(kinds)):
        if tl.program_id(1) == k:
            at = k * n.to(tl.int64)
            factor = tl.load(dstates_ptr + at + source, mask=inside, other=0.0).to(tl.float32)
            if len(kinds[k]) > 0:
                factor, base = weigh(tl.load(states_ptr + at + source, mask=inside, other=0.0), factor)
                tl.store(out_ptr + (len(kinds) + k) * padded(n) + rows, base, mask=inside)
            tl.store(out_ptr + k * padded(n) + rows, factor, mask=inside)


@triton.jit
def load_anchors(
    anchors, kinds, first, rows, n, POSITIVE: tl.constexpr, AXIS: tl.constexpr, WHOLE: tl.constexpr = False
):
    """(dL/dstate,) of sums and (factor, base) of log sum exps, as `weigh` has them, of the folds from `first` on, shaped
    for a tile whose rows (AXIS 1) or columns (AXIS 0) they are; () of no anchors."""
    loaded = ()
    if len(anchors) > 0:
        for k in tl.static_range(len(kinds)):
            at = (first + k) * padded(n)
            factor = tl.expand_dims(load(anchors.factors + at, rows, n, WHOLE), AXIS)
            if len(kinds[k]) > 0:
                base = tl.expand_dims(load(anchors.bases + at, rows, n, WHOLE), AXIS)
                loaded = loaded + ((factor, base),)
            else:
                loaded = loaded + ((factor,),)
    return loaded


@triton.jit
def term_weight(term, anchor):
    """dL/dterm for the anchor whose term it is, as `load_anchors` has it."""
    if len(anchor) > 1:
        factor, base = anchor
        return factor * tl.exp2(excess(term, base))  # below 1e-38 the hardware makes it 0
    else:
        return anchor[0]


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
