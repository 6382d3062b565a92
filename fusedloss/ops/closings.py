"""Losses whose closing formula is computed beside the folds, where a backend can."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import groups
from ..backends import resolve_backend
from ..backends.request import Close
from ..checks import Batch
from .direct import apply, possible, tensors_in
from .folds import requested


def close(
    batch: Batch, loss: str, metric: str, closing: str, reduction: str, *, constants: tuple[float, ...] = (),
    count: int | Tensor | None = None, classes: Tensor | None = None, weights: Tensor | None = None, **folded: Any,
) -> Tensor | None:  # fmt: skip
    """The loss that a closing formula makes of `fold`'s states, or None where PyTorch has to compute the formula.

    closing: a name of `CLOSINGS`; its states are those of pos and neg.
    reduction: "sum", or a mean.
    constants, count, classes, weights: see `Close`; the count is its divisor.
    """
    counts_active = closing.startswith("active")
    if reduction == "none" or (reduction == "active" and not counts_active):
        return None
    if groups.current() is not None or groups.sharded() is not None:
        return None
    request = requested(batch, loss, metric, **folded)
    backend, given = resolve_backend(batch.x), tensors_in(request)
    if not possible(given, backend, closing):
        return None
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if closing == "sums" and not wanted:
        return None
    return apply(Close(request, closing, constants, reduction != "sum", count, classes, weights), backend)
