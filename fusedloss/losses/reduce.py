"""Reductions shared by the losses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..states import loss_dtype

REDUCTIONS = ("mean", "sum", "none")


def reduce(terms: Tensor, reduction: str, count: Tensor | int, x: Tensor) -> Tensor:
    """The loss of rows x. "none": the terms [N]; "sum"; "mean" over `count` of them, 0 (still attached to the graph)
    when count is 0."""
    if reduction != "none":
        terms = terms.sum()
    if reduction == "mean":
        terms = terms / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
    return terms.to(loss_dtype(x))


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)) to the last bits for every z; torch's own is linear from a threshold on."""
    return 0.0 - F.logsigmoid(-z)  # unlike -F.logsigmoid never -0.0
