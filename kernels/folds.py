"""Folds: how the terms of an anchor's pairs become one number, the row state.

A fold is (value, mass), a number per row each:
    "sum"   value is the sum of the terms; mass is not used
    "lse"   log sum exp: value is the running maximum, mass the sum of exp(term - value)
A loss says which folds it wants of its positives and which of its negatives, as tuples of these names.
"""

import triton
import triton.language as tl


@triton.jit
def empty_folds(KINDS: tl.constexpr, SIZE: tl.constexpr):
    """What folds over no pair are."""
    folds = ()
    for k in tl.static_range(len(KINDS)):
        start = float("-inf") if KINDS[k] == "lse" else 0.0
        folds = folds + ((tl.full([SIZE], start, tl.float32), tl.zeros([SIZE], tl.float32)),)
    return folds


@triton.jit
def fold_tile(folds, terms, mask, KINDS: tl.constexpr, AXIS: tl.constexpr):
    """The folds after the tile's pairs in mask, along its rows (AXIS 1) or its columns (AXIS 0)."""
    grown = ()
    for k in tl.static_range(len(KINDS)):
        value, mass = folds[k]
        term = terms[k][0]
        if KINDS[k] == "lse":
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
    """ptr[:, rows] of [len(KINDS), n]: the sums and log sum exps."""
    for k in tl.static_range(len(KINDS)):
        value, mass = folds[k]
        if KINDS[k] == "lse":
            value += tl.log(mass)
        tl.store(ptr + k * n.to(tl.int64) + rows, value, mask=rows < n)


@triton.jit
def term_weight(term, state, dstate, KIND: tl.constexpr):
    """dL/dterm for the derivative dstate of the state that the term is folded into."""
    if KIND == "lse":
        return dstate * tl.exp(term - state)
    else:
        return dstate
