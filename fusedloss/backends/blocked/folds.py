"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dtypes import state_dtype
from ..request import Fold, FoldGrad
from .losses import LOSSES, Term
from .tiles import Side, Tile, add_tile, all_zero, gradients, sides, tiles

EMPTY = {"sum": 0.0, "lse": -torch.inf}  # what a fold over no pair is
SAFE = 10.0  # exponents this far apart lose no more than 5e-7 of their exponentials in float32 when shifted together


class Folded(NamedTuple):
    """A fold of a tile: which state it is, of which pairs (None: of all), and the loss's term."""

    state: int
    kind: str
    mask: Tensor | None
    positive: bool
    term: Term


def folded(f: Fold, t: Tile, s: Tensor, numbers: Sequence[Any]) -> Iterator[Folded]:
    """The folds of the positives of a tile, if it has any, and of its negatives."""
    for positive, kinds, mask in ((True, f.pos, t.pos), (False, f.neg, t.neg)):
        if kinds and (mask is not None or not positive):
            terms = LOSSES[f.loss](s, numbers[not positive], positive)
            for k, (kind, term) in enumerate(zip(kinds, terms, strict=False), 0 if positive else len(f.pos)):
                yield Folded(k, kind, mask, positive, term)


def listed(numbers: Tensor) -> Sequence[Any]:
    """A loss's numbers, as floats where reading them is no sync."""
    return numbers.tolist() if numbers.device.type == "cpu" else [row.unbind() for row in numbers]


# ---------------------------------------------------------------------------------------------------------- forward


def fold(f: Fold) -> Tensor:
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    b = f.batch
    xs, ys = sides(b, f.metric, sort=True)
    v, w = (None, None) if f.offsets is None else walked(f, xs, ys)
    numbers = listed(f.numbers)
    by_row = empty_states(f, b.x)
    by_column = by_row if b.y is None else empty_states(f, b.y)
    for t in tiles(xs, ys, f.metric):
        s = t.s if w is None else shift(t, v, w)[0]
        for k, kind, mask, _, of in folded(f, t, s, numbers):
            term = of.value() if mask is None else torch.where(mask, of.value(), EMPTY[kind])
            rows, cols = fold_tile(term, kind, t.mirrored or f.columns)
            add(by_row[k, t.r], rows, kind)
            if cols is not None:
                add(by_column[k, t.c], cols, kind)
    found = xs.restore(by_row, 1)
    return torch.cat([found, ys.restore(by_column, 1)], 1) if f.columns else found


def empty_states(f: Fold, x: Tensor) -> Tensor:
    """What the states of rows x are before any pair. [folds, N]"""
    states = x.new_zeros(len(f.pos) + len(f.neg), len(x), dtype=state_dtype(x))
    for state, kind in zip(states, [*f.pos, *f.neg], strict=True):
        state.fill_(EMPTY[kind])
    return states


def fold_tile(term: Tensor, kind: str, columns: bool) -> tuple[Tensor, Tensor | None]:
    """A tile's part of the states of its rows, and of its columns if they are wanted."""
    if kind == "sum":
        return term.sum(1), term.sum(0) if columns else None
    if term.device.type == "cpu" and columns:
        low, high = term.aminmax()
        if high - low < SAFE:  # one exponential serves both
            p = (term - high).exp_()
            return log_sum(p, high, 1), log_sum(p, high, 0)
    return log_sum_exp(term, 1), log_sum_exp(term, 0) if columns else None


def log_sum_exp(term: Tensor, dim: int) -> Tensor:
    high = highest(term, dim)
    return log_sum((term - high).exp_(), high.squeeze(dim), dim)


def highest(term: Tensor, dim: int) -> Tensor:
    """The maximum, by which exponents are shifted; 0 for one of -inf, since -inf - -inf is NaN."""
    return term.amax(dim, keepdim=True).nan_to_num_(neginf=0.0, posinf=torch.inf, nan=torch.nan)


def log_sum(p: Tensor, high: Tensor, dim: int) -> Tensor:
    """log(sum(p)) + high; a logit of 10,000 leaves float32 no room for the logarithm."""
    dtype = state_dtype(p)
    return p.sum(dim).to(dtype).log_().add_(high.to(dtype))


def add(state: Tensor, part: Tensor, kind: str) -> None:
    if kind == "sum":
        state += part
    else:
        torch.logaddexp(state, part, out=state)


def walked(f: Fold, x: Side, y: Side) -> tuple[Tensor | None, Tensor | None]:
    """The offsets of the rows and of the columns in the walking order."""
    of_x, of_y = f.split_offsets
    return None if of_x is None else x.ordered(of_x), None if of_y is None else y.ordered(of_y)


def shift(t: Tile, v: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor | None]:
    """The scores plus the columns' offsets w; if the rows have offsets too, lifted by log(exp(v_i) + exp(v_j)), with
    the derivative of that by v_i. [BM, BN] each"""
    if v is None:
        return t.s + w[t.c], None
    v, w = v[t.r, None], w[t.c]
    lift = torch.logaddexp(v, w)
    return t.s + lift, torch.where(v == w, 0.5, (v - lift).exp_())  # also of two infinities


# --------------------------------------------------------------------------------------------------------- backward


class Anchors(NamedTuple):
    """What is known of a side's anchors: of all folds [folds, n], or of one, as it meets a tile."""

    states: Tensor
    dstates: Tensor  # dL/dstates


def fold_grad(g: FoldGrad) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, b = g.fold, g.fold.batch
    N, numbers = len(b.x), listed(f.numbers)
    xs, ys = sides(b, f.metric, sort=True)
    v, w = (None, None) if f.offsets is None else walked(f, xs, ys)
    rows = Anchors(xs.ordered(g.states[:, :N]), xs.ordered(g.dstates[:, :N]))
    columns = rows if b.y is None else None  # row j of a self batch is an anchor too
    if g.states.shape[1] > N:
        columns = Anchors(ys.ordered(g.states[:, N:]), ys.ordered(g.dstates[:, N:]))
    of_x, of_y = gradients(xs, ys, g.want_x, g.want_y)
    by_numbers = torch.zeros_like(f.numbers)

    for t in tiles(xs, ys, f.metric):
        s, share = (t.s, None) if w is None else shift(t, v, w)
        gradient = None
        for k, kind, mask, positive, term in folded(f, t, s, numbers):
            if term.by_s is None:
                continue
            anchors = [Anchors(rows.states[k, t.r, None], rows.dstates[k, t.r, None])]
            if columns is not None:
                anchors.append(Anchors(columns.states[k, t.c], columns.dstates[k, t.c]))
            weight = term_weight(term, kind, anchors, s.dtype)
            if g.want_numbers:
                once = 0.5 if t.diagonal else 1.0  # a diagonal tile shows each of its pairs twice
                for p, by in enumerate(term.by_numbers()):
                    by_numbers[int(not positive), p] += (once * times(by, weight, mask, s).sum()).to(by_numbers.device)
            part = times(term.by_s(), weight, mask, s)
            gradient = part if gradient is None else gradient.add_(part)
        if gradient is None or all_zero(gradient):
            continue
        if share is not None:
            of_x.offsets[t.r] += (gradient * share).sum(1)
        if g.want_offsets and not t.diagonal:
            of_y.offsets[t.c] += (gradient if share is None else gradient * (1 - share)).sum(0)
        add_tile(of_x, of_y, t.r, t.c, gradient, t.s, f.metric, columns=t.mirrored or b.y is not None)

    none = b.x.new_empty
    shifted = [of_x] * (v is not None) + [of_y] * (b.y is not None)
    return (
        of_x.finish(b.x),
        none(0) if b.y is None else of_y.finish(b.y),
        by_numbers if g.want_numbers else none(0),
        torch.cat([of.side.restore(of.offsets, 0) for of in shifted]) if g.want_offsets else none(0),
    )


def term_weight(term: Term, kind: str, anchors: Sequence[Anchors], dtype: torch.dtype) -> Tensor:
    """dL/dterm of a tile, summed over its anchors: those of the rows, and of the columns."""
    value = term.value() if kind == "lse" else None
    shift = None if value is None else common_shift(anchors, dtype)
    weights = []
    for state, dstate in anchors:
        if value is None:
            weights.append(dstate.to(dtype))
        elif shift is None:
            weights.append(exponential(value, state, dstate))
        else:
            weights.append((dstate * (shift - state).exp()).to(dtype))
    weight = weights[0] if len(weights) == 1 else weights[0] + weights[1]
    return weight if value is None or shift is None else (value - shift).exp_().mul_(weight)


def common_shift(anchors: Sequence[Anchors], dtype: torch.dtype) -> Tensor | None:
    """The highest of the states, if they are so close that one exponential serves all; None where it takes a sync."""
    low, high = anchors[0].states.aminmax()
    if low.device.type != "cpu":
        return None
    for other in anchors[1:]:
        least, most = other.states.aminmax()
        low, high = min(low, least), max(high, most)
    high = high.to(dtype)
    return high if high - low < SAFE else None


def exponential(term: Tensor, state: Tensor, dstate: Tensor, out: Tensor | None = None) -> Tensor:
    """dL/dterm of a log sum exp; what the tile's dtype has no room for is a factor of its derivative."""
    rounded = state.to(term.dtype)
    rest = torch.where(state == rounded, 0.0, state - rounded)  # not inf - inf
    return torch.sub(term, rounded, out=out).exp_().mul_((dstate * (-rest).exp()).to(term.dtype))


def times(slope: Tensor | float, weight: Tensor, mask: Tensor | None, like: Tensor) -> Tensor:
    """The product as a tile, 0 outside the mask. Overwrites a slope that is a tile."""
    g = slope.mul_(weight) if isinstance(slope, Tensor) and slope.shape == like.shape else weight * slope
    if mask is not None:
        return torch.where(mask, g, 0.0)
    return g if g.shape == like.shape else g.repeat(1, like.shape[1])
