"""Folds: how the terms of an anchor's pairs become one number, the row state.

A fold is (value, mass), a number per row each:
    "sum"   value is the sum of the terms; mass is not used
    "lse"   log sum exp: value is the running maximum, mass the sum of exp(term - value)
A loss says which folds it wants of its positives and which of its negatives. Kernels take them as one number, since not
every Triton takes tuples of strings: KINDS % 16 folds, and bit 4 + k says whether fold k is "lse".
"""

import triton
import triton.language as tl


@triton.jit
def empty_folds(KINDS: tl.constexpr, SIZE: tl.constexpr):
    """What folds over no pair are."""
    folds = ()
    for k in tl.static_range(KINDS % 16):
        start = float("-inf") if (KINDS >> (4 + k)) & 1 else 0.0
        folds = folds + ((tl.full([SIZE], start, tl.float32), tl.zeros([SIZE], tl.float32)),)
    return folds


@triton.jit
def fold_tile(folds, terms, mask, KINDS: tl.constexpr, AXIS: tl.constexpr):
    """The folds after the tile's pairs in mask, along its rows (AXIS 1) or its columns (AXIS 0)."""
    grown = ()
    for k in tl.static_range(KINDS % 16):
        value, mass = folds[k]
        term = terms[k][0]
        if (KINDS >> (4 + k)) & 1:
            z = tl.where(mask, term, float("-inf"))
            best = tl.maximum(value, tl.max(z, AXIS))
            shift = tl.where(best == float("-inf"), 0.0, best)  # -inf - -inf would be NaN
            mass = mass * tl.exp(value - shift) + tl.sum(tl.exp(z - tl.expand_dims(shift, AXIS)), AXIS)
            value = best
        else:
            value += tl.sum(tl.where(mask, term, 0.0), AXIS)
        grown = grown + ((value, mass),)
    return grown


@triton.jit
def store_folds(ptr, folds, rows, n, KINDS: tl.constexpr):
    """ptr[:, rows] of [folds, n]: the sums and log sum exps."""
    for k in tl.static_range(KINDS % 16):
        value, mass = folds[k]
        value = value.to(ptr.dtype.element_ty)
        if (KINDS >> (4 + k)) & 1:
            value += tl.log(mass).to(ptr.dtype.element_ty)
        tl.store(ptr + k * n.to(tl.int64) + rows, value, mask=rows < n)


@triton.jit
def load_anchors(states, rows, n, KINDS: tl.constexpr, FIRST: tl.constexpr, AXIS: tl.constexpr, ARE: tl.constexpr):
    """(state, dL/dstate) of the folds KINDS, which begin at FIRST, of [folds, n] each; nothing if rows are no anchors.

    Shaped for a tile whose rows (AXIS 1) or columns (AXIS 0) they are. A logit of 10,000 is rounded to 5e-4 in fp32,
    and so would be all weights of its row: of a log sum exp, what fp32 has no room for is a factor of its derivative.
    """
    anchors = ()
    if ARE:
        for k in tl.static_range(KINDS % 16):
            at = (FIRST + k) * n.to(tl.int64) + rows
            exact = tl.load(states[0] + at, mask=rows < n, other=0.0)
            state = exact.to(tl.float32)
            dstate = tl.load(states[1] + at, mask=rows < n, other=0.0).to(tl.float32)
            if (KINDS >> (4 + k)) & 1:
                rest = tl.where(exact == state.to(exact.dtype), 0.0, exact - state.to(exact.dtype))  # not inf - inf
                dstate *= tl.exp(-rest.to(tl.float32))
            anchors = anchors + ((tl.expand_dims(state, AXIS), tl.expand_dims(dstate, AXIS)),)
    return anchors


@triton.jit
def term_weight(term, anchor, LSE: tl.constexpr):
    """dL/dterm for the (state, dL/dstate) of the anchor whose term it is."""
    if LSE:
        return anchor[1] * tl.exp(term - anchor[0])
    else:
        return anchor[1]


@triton.jit(do_not_specialize=["P", "n"])
def merge(parts, out_ptr, unit, P, n, KINDS: tl.constexpr, BP: tl.constexpr, BLOCK: tl.constexpr):
    """The folds [folds, n] of all pairs from those of parts of them [P, folds, n], times a unit if there is one.

    Grid: (blocks of n, folds).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, log_sum = at < n, ((KINDS >> (4 + tl.program_id(1))) & 1) != 0
    at += tl.program_id(1) * n.to(tl.int64)
    step = tl.num_programs(1) * n.to(tl.int64)
    value = tl.zeros([BLOCK], parts.dtype.element_ty)
    best = value + float("-inf")
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)
        mask = (p < P)[:, None] & inside[None, :]
        part = tl.load(parts + p.to(tl.int64)[:, None] * step + at[None, :], mask=mask, other=0.0)
        if log_sum:
            part = tl.where(mask, part, float("-inf"))
            before, best = best, tl.maximum(best, tl.max(part, 0))
            shift = tl.where(tl.abs(best) == float("inf"), 0.0, best)  # inf - inf would be NaN
            value = value * tl.exp(before - shift) + tl.sum(tl.exp(part - shift[None, :]), 0)
        else:
            value += tl.sum(part, 0)
    if log_sum:
        value = best + tl.log(value)
    if len(unit) > 0:
        value *= tl.load(unit[0])
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)
