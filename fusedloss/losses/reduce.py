"""Reductions and closing formulas shared by the losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, groups
from ..backends.dtypes import loss_dtype, state_dtype
from ..checks import IGNORED, WRONG

REDUCTIONS = ("mean", "sum", "none")
OF_HINGES = (*REDUCTIONS, "active")
Folding = Callable[..., tuple[Tensor, ...]]  # `ops.fold` for one batch and metric, or the same for other pairs


def similarity(metric: str) -> tuple[str, float]:
    """The score for a metric of `checks.SIMILARITIES`, and the sign that makes it a similarity: -1 for a distance."""
    return {"cosine": ("similarity", 1.0), "dot": ("dot", 1.0)}.get(metric, (metric, -1.0))


def pairs(batch: checks.Batch) -> int | Tensor:
    """How many pairs there are in a batch, without those of a row with itself."""
    group = groups.current() if batch.shared else None
    others: int | Tensor
    if batch.ignored is None:
        others = batch.y_labels.shape[0] if group is None else sum(group.rows) * batch.shared
    else:
        counted = (batch.y_labels != batch.ignored).sum()
        others = counted if group is None else group.sum(counted)
    return batch.anchors * (others - int(batch.ref_offset is not None))


def reduce(terms: Tensor, reduction: str, count: Tensor | int, x: Tensor, active: Tensor | None = None) -> Tensor:
    """The loss of rows x from their terms [N].

    reduction: "none": the terms; "sum"; "mean": the sum divided by `count`, a number of terms or the sum of their
        weights; it is 0, still attached to the graph, if `count` is 0. "active": the mean over the terms above 0.
    active: how many terms above 0 each of the given terms is a sum of.
    """
    if reduction == "active":
        return reduce(terms, "mean", (terms.detach() > 0 if active is None else active.detach()).sum(), x)
    group = groups.current()
    if group is not None and reduction != "none":
        return over_group(terms.sum().to(state_dtype(x)), reduction, count, group).to(loss_dtype(x))
    # In compiled code the comparison would bind the batch size.
    if reduction == "mean" and not torch.compiler.is_compiling() and isinstance(count, int) and count == terms.numel():
        terms = terms.mean() if count else terms.sum()
    elif reduction != "none":
        terms = terms.sum()
        if reduction == "mean":
            terms = terms / (count.where(count != 0, 1) if isinstance(count, Tensor) else at_least_one(count))
    return terms.to(loss_dtype(x))


def over_group(own: Tensor, reduction: str, count: Tensor | int, group: groups.Group) -> Tensor:
    """The "sum" or "mean" over all processes, the same value in each."""
    counted = own.detach().new_full((), count) if isinstance(count, int) else count.detach().to(own)
    total, count = group.total(torch.stack([own, counted])).unbind()
    return total / count.detach().where(count != 0, 1) if reduction == "mean" else total


def at_least_one(count: int) -> int:
    """The larger of 1 and a number of rows, which may be symbolic."""
    return max(count, 1) if isinstance(count, int) else torch.sym_max(count, 1)


def reduce_rows(terms: Tensor, reduction: str, index: Tensor, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """`reduce` over the rows that have a class, weighted; NaN if `checks.class_indices` found one out of range."""
    if weights is None and checks.readable(index) and index.numel() and int(index.min()) >= 0:
        return reduce(terms, reduction, terms.numel(), x)  # every row has a class
    terms = terms.masked_fill(index == IGNORED, 0.0).masked_fill(index == WRONG, torch.nan)
    counted = (index >= 0) if weights is None else weights.where(index >= 0, 0.0)
    return reduce(terms, reduction, counted.sum(), x)


def mean_shares(z: Tensor) -> Tensor:
    """N softmax(z), whose mean over the N rows of the batch is 1."""
    group = groups.current()
    if group is None:
        return z.shape[0] * z.softmax(0)
    lowest = torch.finfo(z.dtype).min
    high = group.most(z.amax(0) if z.shape[0] else z.new_full((), lowest))
    p = (z - high).exp()
    return sum(group.rows) * p / group.sum(p.sum())


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), exact to the last bits for every z, in float64 too: above 40 it is z."""
    return F.softplus(z, threshold=40.0)


def focal(z: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma of the probability p = sigmoid(-z) of the own class; its gradient is finite for every gamma > 0."""
    return (gamma * F.logsigmoid(z)).exp()
