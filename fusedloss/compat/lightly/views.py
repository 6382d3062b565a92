"""Two views of each sample, among which a view finds the other one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.utils import dist
from torch import Tensor

from ... import checks, ops
from ...checks import Batch
from ..calls import NotFused


def unit_rows(out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
    """Both views, normalised as the library does it."""
    checks.same_rows(("out0", "out1"), (out0, out1))
    if not len(out0):
        raise NotFused("a batch without rows")
    return F.normalize(out0, dim=1), F.normalize(out1, dim=1)


def competition(x0: Tensor, x1: Tensor, temperature: float | Tensor, gather: bool = False) -> tuple[Tensor, Tensor]:
    """The logit of every view with the other view of its sample, and the log sum exp of its logits with the views of
    all other samples, including those of other processes if `gather`; for the views x0, then for x1. [2, N] each"""
    x = torch.stack([x0, x1], 1).flatten(0, 1)  # the views of a sample are neighbours, so that the labels ascend
    gather = gather and dist.world_size() > 1
    y, first = (torch.cat(dist.gather(x)), dist.rank() * len(x)) if gather else (x, 0)
    samples = torch.arange(len(y), device=x.device) // 2
    own = samples[first : first + len(x)]
    rows, others = checks.rows("out0", x), checks.rows("out1", y) if gather else None
    batch = Batch(rows, others, own, samples, first, x_sorted=True, y_sorted=True)
    scale = 1 / checks.number("temperature", temperature, above=True, learnable=True)
    pos, neg = ops.of("sum", scale=scale), ops.of("lse", scale=scale)
    positive, negative = ops.fold(batch, "softmax", "dot", pos=pos, neg=neg)
    return positive.view(-1, 2).t(), negative.view(-1, 2).t()
