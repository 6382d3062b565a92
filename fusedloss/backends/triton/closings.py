"""Losses from row states in as few launches as possible: the closing formula is a kernel too, or none is needed."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import attention, closings, configs, engine, folds, tiles
from ..dtypes import loss_dtype, state_dtype
from ..request import CLOSINGS, Close, Fold, FoldGrad, Wants
from .folds import (
    fold_grad,
    folded,
    folded_parts,
    folded_sides,
    gradients,
    has_row_share,
    is_wide,
    kinds_of,
    new_anchors,
    planned,
    results,
)
from .launch import Launch, Total, cdiv, merge_all, optional
from .sides import Side

CLOSED = (*CLOSINGS, "", "triplets")  # what `ops/direct.py` may ask for: closing formulas, none, or triplets


class Open(NamedTuple):
    """What the backward of states needs that no formula has closed."""

    x: Side
    y: Side
    states: Tensor


class Saved(NamedTuple):
    """What the backward of a closed loss needs: both sides with their anchors, and what multiplies dL/dstates."""

    x: Side
    y: Side
    by_state: Tensor  # [folds]
    alike: bool  # whether they are all the same
    dx: Tensor | None = None  # without dL/dpositive of the rows, if the forward has found it, see `attended` [N, D]


Emitted = tuple[Tensor, Tensor, Tensor, Tensor]  # derivatives that lack only dL/dloss, as `folds.results` gives them


def fold_close(c: Close, wants: Wants) -> tuple[Tensor, Open | Saved | Emitted]:
    """The loss or the states, and what the backward needs."""
    x, y = folded_sides(c.fold)
    if not c.closing:
        states = folded(c.fold, x, y)
        return states, Open(x, y, states)
    loss = torch.empty((), dtype=loss_dtype(c.fold.batch.x), device=c.fold.batch.x.device)
    return loss, emitted(c, x, y, wants, loss) if c.closing == "sums" else finished(c, x, y, wants, loss)


def emitted(c: Close, x: Side, y: Side, wants: Wants, loss: Tensor) -> Saved | Emitted:
    """Every term has the same derivative, so one pass gives the loss and its gradient; but if rows are too wide for a
    program to hold, the backward gives the gradient.

    Without y, a row is an anchor of as many pairs as it is a column of, so its gradient as an anchor counts twice.
    """
    f, every = c.fold, x._replace(anchors=folds.EVERY)
    self_batch = f.batch.y is None
    divisor, times = c.divisor if c.mean and c.divisor is not None else 1, 2.0 if self_batch else 1.0
    share = torch.ones_like(loss) / divisor.clamp(min=1) if isinstance(divisor, Tensor) else 1.0 / max(divisor, 1)
    if is_wide(f, x, y):
        parts, kinds = folded_parts(f, x, y)[0], kinds_of(f)
        merge_all([], kinds, [], Total(parts, loss, scalars(share)))
        by_state = torch.ones(len(kinds), dtype=torch.float32, device=loss.device) * share
        return Saved(every, every if self_batch else y, by_state, True)
    scales = engine.Scales(scalars(times * share, share))
    of_x, of_y = gradients(f, every, y, wants, scales, torch.float32, loss)
    return results(torch.empty_like(x.rows.rows[:0, :0], dtype=torch.float32), wants, of_x, of_y, f.numbers)


def scalars(*given: Any) -> tiles.Numbers:
    """Numbers of a kernel, which are all tensors on the device or all none."""
    return tiles.Numbers((), given) if isinstance(given[0], Tensor) else tiles.Numbers(given, ())


def finished(c: Close, x: Side, y: Side, wants: Wants, loss: Tensor) -> Saved:
    """Fold, and close the states."""
    f, kinds, means = c.fold, kinds_of(c.fold), CLOSINGS[c.closing]
    self_batch, device = f.batch.y is None, loss.device
    found = attended(c, x, y, wants)
    parts, dx = (folded_parts(f, x, y), None) if found is None else found
    by_state = torch.empty(len(kinds), dtype=torch.float32, device=device)
    x = x._replace(anchors=new_anchors(x, kinds, device))
    y = x if self_batch else y._replace(anchors=new_anchors(y, kinds, device)) if f.columns else y
    sides: list[Any] = [closed(side, of) for side, of in zip((x, y), parts, strict=False)]
    sides[0] = sides[0]._replace(classes=optional(c.classes), weights=optional(c.weights))
    count = sum(side.n for side in (x, y)[: len(parts)])
    programs = 1 if count <= configs.ALONE else min(configs.CLOSERS, cdiv(count, configs.CLOSED))
    sums = torch.empty(programs if programs > 1 else 0, 2 * means, dtype=state_dtype(f.batch.x), device=device)
    sizes = (len(parts[0]), len(parts[-1]), x.n, y.n)
    args = (
        sides[0],
        sides[1] if f.columns else (),
        in_two(c.constants),
        kinds,
        loss,
        by_state,
        sums,
        *sizes,
    )
    options = dict(MEANS=means, MEAN=c.mean, BLOCK=configs.CLOSED, num_warps=8)
    formula = getattr(closings, c.closing)
    Launch(closings.finish, (programs,), args, dict(CLOSING=formula) | options).run()
    if programs > 1:
        Launch(closings.finish_parts, (1,), (sums, kinds, loss, by_state, programs), options).run()
    return Saved(x, y, by_state, means == 1, dx)


def in_two(constants: tuple[float, ...]) -> tuple[float, ...]:
    """Every number as two of which the first has the digits of a float32, and the second those that are left."""
    high = [ctypes.c_float(c).value for c in constants]
    low = [c - h if math.isfinite(h) else 0.0 for c, h in zip(constants, high, strict=True)]
    return tuple(part for both in zip(high, low, strict=True) for part in both)


def attended(c: Close, x: Side, y: Side, wants: Wants) -> tuple[list[Tensor], Tensor] | None:
    """The states of the rows, and dx without dL/dpositive, in one pass over the scores. None for other losses, if the
    backward needs its pass over the rows for more than dx, and if the rows alone do not fill a device."""
    f, pulled = c.fold, (c.closing, c.fold.loss) == ("gap", "softmax") and not c.fold.columns
    more = wants.x_offsets or (wants.numbers and not (wants.y or wants.y_offsets))
    if not pulled or f.batch.y is None or not x.rows.near or not wants.x or more:
        return None
    if x.precision == "manhattan" or is_wide(f, x, y):
        return None
    chosen, terms, options = planned("attend", f, x, y)
    if chosen.splits(x.n, y.n) > 1:
        return None
    states = torch.empty(1, 2, x.n, dtype=state_dtype(f.batch.x), device=f.batch.x.device)
    dx = torch.empty(x.n, x.D, dtype=torch.float32, device=f.batch.x.device)
    args = (x.rows, y.rows, *terms, states, dx, optional(f.batch.ref_offset), x.n, y.n, x.D)
    options |= chosen.options | dict(ROW_SHARE=has_row_share(f.metric))
    Launch(attention.attend, (cdiv(x.n, chosen.tile.BM),), args, options, chosen.key).run()
    return [states], dx


def closed(side: Side, parts: Tensor) -> closings.Closed:
    return closings.Closed(parts, side.anchors, side.rows.order, side.rows.counted)


def fold_close_grad(f: Fold, saved: Open | Saved | Emitted, derivative: Tensor, wants: Wants) -> Emitted:
    """dx, dy, and the derivatives by numbers and offsets, from the one by the result; empty where not wanted."""
    b = f.batch
    if isinstance(saved, Open):
        anchors = "both" if f.columns else "rows"
        return fold_grad(FoldGrad(f, saved.states, derivative, *wants, anchors), prepared=(saved.x, saved.y))
    if not isinstance(saved, Saved):
        dtypes = b.x.dtype, b.x.dtype if b.y is None else b.y.dtype, f.numbers.dtype, torch.float32
        return tuple(map(multiplied, saved, (derivative,) * 4, dtypes))  # type: ignore[return-value]
    sums, factors = tiles.Numbers((1.0, 0.5 if b.y is None else 1.0), ()), (saved.by_state, derivative)
    scales = engine.Scales(sums, common=factors) if saved.alike else engine.Scales(sums, factors)
    if saved.dx is None:
        return results(b.x, wants, *gradients(f, saved.x, saved.y, wants, scales, b.x.dtype), f.numbers)
    others = wants._replace(x=False)
    of_sides = gradients(f, saved.x, saved.y, others, scales, b.x.dtype) if any(others) else (None, None)
    dx, *rest = results(b.x, others, *of_sides, f.numbers)
    if wants.x:
        dstates, _ = saved.x.anchors
        by_positive = dstates[0, : saved.x.n] * (saved.by_state[0] * derivative)
        dx = multiplied(saved.dx, saved.x.restore(by_positive, 0)[:, None], b.x.dtype)
    return dx, *rest  # type: ignore[return-value]


def multiplied(derivative: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The product, rounded once."""
    out = torch.empty_like(derivative, dtype=dtype)
    return torch.mul(derivative, factor.to(derivative.device), out=out) if derivative.numel() else out
