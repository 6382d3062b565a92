"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..states import state_dtype
from .losses import LOSSES
from .scores import manhattan_grad, own_factor, pull
from .tiles import Side, Tile, sides, tiles

EMPTY = {"sum": 0.0, "lse": -torch.inf}  # what a fold over no pair is
SAFE = 60.0  # exponents this far apart stay in the range of float32 together


class Kind(NamedTuple):
    """The positives of a tile, or its negatives."""

    positive: bool
    mask: Tensor | None  # None where all pairs of the tile are of this kind
    folds: Sequence[str]
    first: int  # where their states begin
    numbers: Sequence[Any]  # of the loss

    @staticmethod
    def of(t: Tile, pos: Sequence[str], neg: Sequence[str], params: Sequence[Any]) -> list[Kind]:
        half = len(params) // 2
        positives = [Kind(True, t.pos, pos, 0, params[:half])] if pos and t.pos is not None else []
        return positives + ([Kind(False, t.neg, neg, len(pos), params[half:])] if neg else [])


def fold(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, offsets: Tensor | None, loss: str,
    metric: str, pos: Sequence[str], neg: Sequence[str], columns: bool,
) -> Tensor:  # fmt: skip
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=True)
    v, w = lifts(offsets, xs, ys)
    numbers, kinds = listed(params), [*pos, *neg]
    start = torch.tensor([EMPTY[kind] for kind in kinds], dtype=state_dtype(x), device=x.device)
    by_row = start[:, None].repeat(1, len(x))
    by_column = by_row if y is None else start[:, None].repeat(1, len(y))
    for t in tiles(xs, ys, metric):
        s = t.s if v is None else t.s + lift(v[t.r], w[t.c])[0]
        for of in Kind.of(t, pos, neg, numbers):
            terms = LOSSES[loss].terms(s, of.numbers, of.positive)
            for k, (kind, term) in enumerate(zip(of.folds, terms, strict=False), of.first):
                if of.mask is not None:
                    term = term.where(of.mask, term.new_tensor(EMPTY[kind]))
                rows, cols = fold_tile(term, kind, t.mirrored or columns)
                add(by_row[k, t.r], rows, kind)
                if cols is not None:
                    add(by_column[k, t.c], cols, kind)
    found = [xs.restore(by_row, 1), *([ys.restore(by_column, 1)] if columns else [])]
    return torch.cat(found, 1)


def listed(params: Tensor) -> Sequence[Any]:
    return params.tolist() if params.device.type == "cpu" else params.unbind()


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
    high = term.amax(dim, keepdim=True).nan_to_num_(neginf=0.0, posinf=torch.inf, nan=torch.nan)  # -inf - -inf is NaN
    return log_sum((term - high).exp_(), high.squeeze(dim), dim)


def log_sum(p: Tensor, high: Tensor, dim: int) -> Tensor:
    """log(sum(p)) + high; a logit of 10,000 leaves float32 no room for the logarithm."""
    dtype = state_dtype(p)
    return p.sum(dim).to(dtype).log_().add_(high.to(dtype))


def add(state: Tensor, part: Tensor, kind: str) -> None:
    if kind == "sum":
        state += part
    else:
        torch.logaddexp(state, part.to(state.dtype), out=state)


def lifts(offsets: Tensor | None, x: Side, y: Side) -> tuple[Any, Any]:
    """Both sides' part of the offsets [N + M], or [N] of a self batch, in the walking order."""
    if offsets is None:
        return None, None
    v = x.ordered(offsets[None, : len(x.rows)])[0]
    return v, v if x is y else y.ordered(offsets[None, len(x.rows) :])[0]


def lift(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """log(exp(v_i) + exp(v_j)) of the offsets, and its derivative by v_i. [BM, BN] each"""
    lifted = torch.logaddexp(v[:, None], w)
    return lifted, (v[:, None] - lifted).exp_().where(v[:, None] != w, lifted.new_tensor(0.5))  # also of two infinities


def fold_grad(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, offsets: Tensor | None,
    states: Tensor, dstates: Tensor, loss: str, metric: str, pos: Sequence[str], neg: Sequence[str],
    want_x: bool, want_y: bool, want_params: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dy, dparams and doffsets for derivatives dstates of the states; empty tensors for those not wanted."""
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=True)
    v, w = lifts(offsets, xs, ys)
    N, numbers = len(x), listed(params)
    row_anchors = [xs.ordered(t[:, :N])[:, :, None] for t in (states, dstates)]  # [folds, N, 1]
    column_anchors = None  # [folds, 1, M]
    if y is None:  # row j of a self batch is an anchor too
        column_anchors = [t.mT for t in row_anchors]
    elif states.shape[1] > N:
        column_anchors = [ys.ordered(t[:, N:])[:, None] for t in (states, dstates)]
    dx, own_x, dv = torch.zeros_like(xs.rows), torch.zeros_like(xs.norms), torch.zeros_like(xs.norms)
    dy, own_y, dw = (dx, own_x, dv) if y is None else (torch.zeros_like(ys.rows), *torch.zeros(2, len(y)).to(ys.norms))
    dparams = torch.zeros_like(params)

    for t in tiles(xs, ys, metric):
        s = t.s
        if v is not None:
            lifted, share = lift(v[t.r], w[t.c])
            s = s + lifted
        anchors = [[a[:, t.r] for a in row_anchors]]
        if column_anchors is not None:
            anchors.append([a[:, :, t.c] for a in column_anchors])
        g = None
        for of in Kind.of(t, pos, neg, numbers):
            terms = LOSSES[loss].terms(s, of.numbers, of.positive) if "lse" in of.folds else of.folds
            slopes = LOSSES[loss].slopes(s, of.numbers, of.positive)
            for k, (kind, term, (by_s, by_numbers)) in enumerate(zip(of.folds, terms, slopes, strict=False), of.first):
                weight = term_weight(term, kind, [(state[k], dstate[k]) for state, dstate in anchors], s.dtype)
                if want_params:
                    once = 0.5 if t.itself else 1.0  # a diagonal tile shows each of its pairs twice
                    for p, by in enumerate(by_numbers(), 0 if of.positive else len(numbers) // 2):
                        dparams[p] += (once * times(by, weight, of.mask, s).sum()).to(dparams.device)
                part = times(by_s, weight, of.mask, s)
                g = part if g is None else g.add_(part)
        if g is None or (x.device.type == "cpu" and all(extreme == 0 for extreme in g.aminmax())):
            continue
        both_sides = t.mirrored or (y is not None and want_y)
        if v is not None:
            dv[t.r] += (g * share).sum(1)
            if t.mirrored or y is not None:
                dw[t.c] += (g * (1 - share)).sum(0)
        if metric == "manhattan":
            if want_x:
                dx[t.r] += manhattan_grad(g, xs.rows[t.r], ys.rows[t.c])
            if both_sides:
                dy[t.c] += manhattan_grad(g.T, ys.rows[t.c], xs.rows[t.r])
            continue
        pulls, own = pull(g, t.s, xs.norms[t.r], ys.norms[t.c], metric)
        if want_x:
            dx[t.r].addmm_(pulls, ys.rows[t.c])
        if both_sides:
            dy[t.c].addmm_(pulls.T, xs.rows[t.r])
        if own is not None:
            own_x[t.r] += own.sum(1)
            if both_sides:
                own_y[t.c] += own.sum(0)

    def finish(d: Tensor, own: Tensor, side: Side, like: Tensor) -> Tensor:
        if metric not in ("manhattan", "dot"):
            d.addcmul_(side.rows, (own * own_factor(side.norms, metric))[:, None])
        return side.restore(d, 0).to(like.dtype)

    by_offset = [xs.restore(dv, 0), *([] if y is None else [ys.restore(dw, 0)])]
    return (
        finish(dx, own_x, xs, x) if want_x else x.new_empty(0),
        finish(dy, own_y, ys, y) if y is not None and want_y else x.new_empty(0),
        dparams if want_params else x.new_empty(0),
        x.new_empty(0) if offsets is None else torch.cat(by_offset),
    )


def term_weight(term: Tensor | str, kind: str, anchors: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """dL/dterm of a tile, summed over its anchors: the (state, dL/dstate) of the rows, and of the columns."""
    if kind == "sum":
        return sum(dstate for _, dstate in anchors).to(dtype)  # type: ignore[union-attr]
    if term.device.type == "cpu":
        extremes = [extreme for state, _ in anchors for extreme in state.aminmax()]
        high = max(extremes)
        if high - min(extremes) < SAFE:  # one exponential serves all
            scale = sum(dstate * (high.to(dtype) - state).exp() for state, dstate in anchors)
            return (term - high.to(dtype)).exp_().mul_(scale.to(dtype))
    return sum(exponential(term, state, dstate) for state, dstate in anchors)


def exponential(term: Tensor, state: Tensor, dstate: Tensor) -> Tensor:
    """dL/dterm of a log sum exp, whose rounding to the tile's dtype is a factor of its derivative."""
    rounded = state.to(term.dtype)
    rest = (state - rounded).where(state != rounded, state.new_zeros(()))  # not inf - inf
    return (term - rounded).exp_().mul_((dstate * (-rest).exp()).to(term.dtype))


def times(slope: Tensor | float, weight: Tensor, mask: Tensor | None, like: Tensor) -> Tensor:
    """The product as a tile, 0 outside the mask. Overwrites a slope that is a tile."""
    g = slope.mul_(weight) if isinstance(slope, Tensor) and slope.shape == like.shape else weight * slope
    if mask is not None:
        return g.where(mask, g.new_zeros(()))
    return g if g.shape == like.shape else g.repeat(1, like.shape[1])
