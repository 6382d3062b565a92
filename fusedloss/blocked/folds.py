"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..states import split_offsets, state_dtype
from .gradients import add_tile, all_zero, gradients
from .losses import LOSSES
from .tiles import Side, Tile, sides, tiles

EMPTY = {"sum": 0.0, "lse": -torch.inf}  # what a fold over no pair is
SAFE = 10.0  # exponents this far apart lose no more than 5e-7 of their exponentials in float32 when shifted together


class Kind(NamedTuple):
    """The positives of a tile, or its negatives."""

    positive: bool
    mask: Tensor | None  # None where all pairs of the tile are of this kind
    folds: Sequence[str]
    first: int  # where their states begin
    numbers: Sequence[Any]  # of the loss

    @staticmethod
    def of(t: Tile, pos: Sequence[str], neg: Sequence[str], numbers: Sequence[Any]) -> list[Kind]:
        half = len(numbers) // 2
        positives = [Kind(True, t.pos, pos, 0, numbers[:half])] if pos and t.pos is not None else []
        return positives + ([Kind(False, t.neg, neg, len(pos), numbers[half:])] if neg else [])


def listed(params: Tensor) -> Sequence[Any]:
    return params.tolist() if params.device.type == "cpu" else params.unbind()


# ---------------------------------------------------------------------------------------------------------- forward


def fold(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, offsets: Tensor | None, loss: str,
    metric: str, pos: Sequence[str], neg: Sequence[str], own: bool, columns: bool,
) -> Tensor:  # fmt: skip
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=True, own=own)
    v, w = walked(offsets, y, xs, ys)
    numbers = listed(params)
    by_row = empty_states([*pos, *neg], x)
    by_column = by_row if y is None else empty_states([*pos, *neg], y)
    for t in tiles(xs, ys, metric):
        s = t.s if w is None else shift(t, v, w)[0]
        for of in Kind.of(t, pos, neg, numbers):
            terms = LOSSES[loss].terms(s, of.numbers, of.positive)
            for k, (kind, term) in enumerate(zip(of.folds, terms, strict=False), of.first):
                if of.mask is not None:
                    term = torch.where(of.mask, term, EMPTY[kind])
                rows, cols = fold_tile(term, kind, t.mirrored or columns)
                add(by_row[k, t.r], rows, kind)
                if cols is not None:
                    add(by_column[k, t.c], cols, kind)
    found = [xs.restore(by_row, 1), *([ys.restore(by_column, 1)] if columns else [])]
    return torch.cat(found, 1)


def empty_states(kinds: Sequence[str], x: Tensor) -> Tensor:
    """What the states of rows x are before any pair. [folds, N]"""
    return torch.stack([x.new_full((len(x),), EMPTY[kind], dtype=state_dtype(x)) for kind in kinds])


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


def walked(offsets: Tensor | None, y: Tensor | None, *both: Side) -> list[Tensor | None]:
    """The offsets of the rows and of the columns in the walking order."""
    parts = split_offsets(offsets, y, len(both[1].rows))
    return [None if part is None else side.ordered(part[None])[0] for part, side in zip(parts, both, strict=True)]


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
    """States and derivatives of a side's anchors, [folds, n, 1] of rows or [folds, 1, n] of columns."""

    states: Tensor
    dstates: Tensor

    def at(self, part: slice) -> Anchors:
        return Anchors(*(t[:, part] if t.shape[2] == 1 else t[:, :, part] for t in self))


def fold_grad(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, offsets: Tensor | None,
    states: Tensor, dstates: Tensor, loss: str, metric: str, pos: Sequence[str], neg: Sequence[str], own: bool,
    want_x: bool, want_y: bool, want_params: bool, want_offsets: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dy, dparams and doffsets for derivatives dstates of the states; empty tensors for those not wanted."""
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=True, own=own)
    v, w = walked(offsets, y, xs, ys)
    N, numbers = len(x), listed(params)
    rows = Anchors(*(xs.ordered(t[:, :N])[:, :, None] for t in (states, dstates)))
    columns = None
    if y is None:  # row j of a self batch is an anchor too
        columns = Anchors(*(t.mT for t in rows))
    elif states.shape[1] > N:
        columns = Anchors(*(ys.ordered(t[:, N:])[:, None] for t in (states, dstates)))
    of_x, of_y = gradients(xs, ys, want_x, want_y)
    dparams = torch.zeros_like(params)

    for t in tiles(xs, ys, metric):
        s, share = (t.s, None) if w is None else shift(t, v, w)
        anchors = [rows.at(t.r), *([] if columns is None else [columns.at(t.c)])]
        g = None
        for of in Kind.of(t, pos, neg, numbers):
            terms = LOSSES[loss].terms(s, of.numbers, of.positive) if "lse" in of.folds else [s] * len(of.folds)
            slopes = LOSSES[loss].slopes(s, of.numbers, of.positive)
            for k, (kind, term, (by_s, by_numbers)) in enumerate(zip(of.folds, terms, slopes, strict=False), of.first):
                weight = term_weight(term, kind, [(a.states[k], a.dstates[k]) for a in anchors])
                if want_params:
                    once = 0.5 if t.itself else 1.0  # a diagonal tile shows each of its pairs twice
                    for p, by in enumerate(by_numbers(), 0 if of.positive else len(numbers) // 2):
                        dparams[p] += (once * times(by, weight, of.mask, s).sum()).to(dparams.device)
                part = times(by_s, weight, of.mask, s)
                g = part if g is None else g.add_(part)
        if g is None or all_zero(g):
            continue
        if share is not None:
            of_x.offsets[t.r] += (g * share).sum(1)
        if want_offsets and not t.itself:
            of_y.offsets[t.c] += (g if share is None else g * (1 - share)).sum(0)
        add_tile(of_x, of_y, t.r, t.c, g, t.s, metric, columns=t.mirrored or y is not None)

    shifted = [of_x] * (v is not None) + [of_y] * (y is not None)
    by_offset = [side.side.restore(side.offsets, 0) for side in shifted]
    return (
        of_x.finish(x),
        x.new_empty(0) if y is None else of_y.finish(y),
        dparams if want_params else x.new_empty(0),
        torch.cat(by_offset) if want_offsets else x.new_empty(0),
    )


def term_weight(term: Tensor, kind: str, anchors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """dL/dterm of a tile, summed over its anchors: the (state, dL/dstate) of the rows, and of the columns."""
    if kind == "sum":
        return total([dstate.to(term.dtype) for _, dstate in anchors])
    if term.device.type == "cpu":
        extremes = [extreme for state, _ in anchors for extreme in state.aminmax()]
        high = max(extremes).to(term.dtype)
        if high - min(extremes) < SAFE:  # one exponential serves all
            scale = total([(dstate * (high - state).exp()).to(term.dtype) for state, dstate in anchors])
            return (term - high).exp_().mul_(scale)
    return total([exponential(term, state, dstate) for state, dstate in anchors])


def exponential(term: Tensor, state: Tensor, dstate: Tensor, out: Tensor | None = None) -> Tensor:
    """dL/dterm of a log sum exp; what the tile's dtype has no room for is a factor of its derivative."""
    rounded = state.to(term.dtype)
    rest = torch.where(state == rounded, 0.0, state - rounded)  # not inf - inf
    return torch.sub(term, rounded, out=out).exp_().mul_((dstate * (-rest).exp()).to(term.dtype))


def total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def times(slope: Tensor | float, weight: Tensor, mask: Tensor | None, like: Tensor) -> Tensor:
    """The product as a tile, 0 outside the mask. Overwrites a slope that is a tile."""
    g = slope.mul_(weight) if isinstance(slope, Tensor) and slope.shape == like.shape else weight * slope
    if mask is not None:
        return torch.where(mask, g, 0.0)
    return g if g.shape == like.shape else g.repeat(1, like.shape[1])
