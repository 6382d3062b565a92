"""Losses that are the sum of all terms: one pass over the tiles gives the loss and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import loss_dtype, state_dtype
from ..request import NO_OTHERS, Close, Fold, FoldGrad, Wants
from .folds import derivatives
from .parallel import single_threaded

CLOSED = ("sums",)  # what `ops/direct.py` may ask for
Emitted = tuple[Tensor, Tensor, Tensor, Tensor]  # derivatives by x, y, numbers and offsets that lack only dL/dloss


@single_threaded(lambda c: c.fold.batch)
def fold_close(c: Close, wants: Wants) -> tuple[Tensor, Emitted]:
    """The loss, and its derivatives. They are rounded to 16 bits after they are multiplied by dL/dloss."""
    f, b = c.fold, c.fold.batch
    share = torch.ones((), dtype=state_dtype(b.x), device=b.x.device)
    if c.mean and c.divisor is not None:
        share = share / (c.divisor.clamp(min=1) if isinstance(c.divisor, Tensor) else max(c.divisor, 1))
    dstates, total = share.repeat(len(f.pos) + len(f.neg), b.x.shape[0]), torch.zeros_like(share)
    x, y = (None if t is None else torch.empty_like(t, dtype=loss_dtype(t)) for t in (b.x, b.y))
    assert x is not None
    found = derivatives(FoldGrad(f, dstates, dstates, *wants), NO_OTHERS, x, y, total)
    return (total * share).to(loss_dtype(b.x)), found


def fold_close_grad(f: Fold, saved: Emitted, derivative: Tensor, wants: Wants) -> Emitted:
    """dx, dy, and the derivatives by numbers and offsets, from the one by the loss; empty where not wanted."""
    b = f.batch
    dtypes = b.x.dtype, b.x.dtype if b.y is None else b.y.dtype, f.numbers.dtype, loss_dtype(b.x)
    dx, dy, *others = ((t * derivative.to(t.device)).to(dtype) for t, dtype in zip(saved, dtypes, strict=True))
    return dx, dy, others[0], others[1]
