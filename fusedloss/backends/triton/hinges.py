"""Losses of mined pairs and triplets, closed by kernels: what a backend without them composes of distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...checks import WRONG
from ...kernels import configs, hinges
from ..dtypes import loss_dtype, state_dtype
from ..request import HardTriplets, Mining, ToCenters
from .launch import Launch, cdiv, numbers
from .mining import mine_parts
from .rows import blocks


def hard_triplets(t: HardTriplets) -> tuple[Tensor, ...]:
    b, device = t.batch, t.batch.x.device
    found = mine_parts(Mining(b, t.metric, t.positives, t.negatives))
    N, D = b.x.shape
    index = torch.empty(2, N, dtype=torch.int32, device=device)
    slopes, sums = outputs(b.x, 2)
    args = (b.x, b.x if b.y is None else b.y, *found, index, slopes, sums, numbers(t.margin), N, len(found.best), D)
    options = dict(METRIC=t.metric, CLOSE=hinges.soft_hinge if t.soft else hinges.hinge, BP=configs.PARTS)
    options |= dict(BEYOND=t.negatives == "beyond", ACTIVE=t.reduction == "active") | blocks()
    Launch(hinges.close_triplets, (sums.shape[1],), args, options).run()
    return *reduced(b.x, sums, t.reduction), index, slopes


def to_centers(t: ToCenters) -> tuple[Tensor, ...]:
    (N, D), (slopes, sums) = t.x.shape, outputs(t.x, 1)
    options: dict[str, Any] = dict(METRIC="sqeuclidean", CLOSE=hinges.half, WRONG=WRONG) | blocks()
    args = (t.x, t.centers, t.classes, slopes, sums, N, D)
    Launch(hinges.close_pairs, (sums.shape[1],), args, options).run()
    return *reduced(t.x, sums, t.reduction), slopes


def outputs(x: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Room for the slopes of so many pairs of each row [3, pairs, N], and for the sums of the programs."""
    N = x.shape[0]
    slopes = torch.empty(3, pairs, N, dtype=torch.float32, device=x.device)
    return slopes, torch.empty(3, cdiv(N, configs.ROWS_PER_PROGRAM), dtype=state_dtype(x), device=x.device)


def reduced(x: Tensor, sums: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """The loss, and its derivatives by the sum of the terms and by the margin [2]."""
    loss, factors = (torch.empty(shape, dtype=loss_dtype(x), device=x.device) for shape in ((), (2,)))
    options = dict(MEAN=reduction != "sum", BLOCK=configs.SUMMED, num_warps=4)
    Launch(hinges.reduce_terms, (1,), (sums, loss, factors, sums.shape[1]), options).run()
    return loss, factors
