"""Rows and the classes that they are compared with; a process of a group may have only a shard of the classes.

The classes are the other side of the score matrix, each with a label of its own: a row's positive is its class, and its
negatives are all other classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks, groups, ops
from .closings import Means, closed, gap


class Classified(NamedTuple):
    """The rows (zeros where they are ignored), the class of each, and the rows of classes to compare them with."""

    x: Tensor
    target: Tensor  # [N], negative where a row has no class
    classes: Tensor  # [group C, D]
    C: int
    group: int = 1  # neighbouring rows of `classes` that belong to one class, whose cosine is that of the nearest


def classified(
    embeddings: object, name: str, classes: object, target: object, ignore_index: int | None
) -> Classified:  # fmt: skip
    x = checks.rows("embeddings", embeddings)
    rows = checks.same_dimensions("embeddings", x, name, classes)
    C = total(rows.shape[0])
    x, index = checks.with_classes(x, target, C, ignore_index)
    return Classified(x, index, rows, C)


def centered(embeddings: object, weight: object, target: object, ignore_index: int, sub_centers: int) -> Classified:
    """`classified` for [C, K, D] sub-centers. The last one is repeated until there are a power of 2 of them; a copy is
    never the first of the nearest."""
    if sub_centers == 1:
        return classified(embeddings, "weight", weight, target, ignore_index)
    x = checks.rows("embeddings", embeddings)
    centers = checks.tensor("weight", weight)
    if centers.dim() != 3 or centers.shape[1] != sub_centers:
        wanted = f"(C, {sub_centers}, {x.shape[1]}), {sub_centers} sub_centers a class"
        raise ValueError(f"weight must have shape {wanted}, got {tuple(centers.shape)}")
    group = 1 << (sub_centers - 1).bit_length()
    padded = torch.cat([centers, *[centers[:, -1:]] * (group - sub_centers)], 1)
    rows = checks.same_dimensions("embeddings", x, "weight", padded.flatten(0, 1))
    C = total(centers.shape[0])
    x, index = checks.with_classes(x, target, C, ignore_index)
    return Classified(x, index, rows, C, group)


def total(classes: int) -> int:
    """How many classes there are in all, where this process may have a shard of them."""
    group = groups.sharded()
    return classes if group is None or group.shard is None else group.shard.total


def class_of(c: Classified) -> Tensor:
    """The class of every row of the classes. [group C]"""
    group = groups.sharded()
    if group is None or group.shard is None:
        return torch.arange(c.classes.shape[0], device=c.x.device, dtype=torch.int64) // c.group
    return group.shard.numbers.repeat_interleave(c.group)


def compared(c: Classified) -> tuple[Tensor, Tensor]:
    """The rows that are compared with the classes, and the class of each; over a group, the rows of all processes."""
    group = groups.sharded()
    if group is None:
        return c.x, c.target
    return group.rows_with_gradient(c.x, group.rows), group.gather(c.target, group.rows)


def merged(found: Sequence[Tensor], kinds: Sequence[str]) -> list[Tensor]:
    """Row states over the classes of all processes for the own rows, from states over the own classes for all rows."""
    group = groups.sharded()
    if group is None:
        return [*found]
    high = group.most(torch.stack([*found]))
    high = high.where(high.isfinite(), 0.0)  # -inf - -inf would be NaN
    terms = [state if of == "sum" else (state - h).exp() for state, h, of in zip(found, high, kinds, strict=True)]
    sums = group.scattered(torch.stack(terms, 1), group.rows).unbind(1)
    first = group.first(group.rows)
    own = high[:, first : first + group.rows[group.rank]]
    none = (total == 0 for total in sums)  # the logarithm of such a sum has no derivative
    return [
        total if of == "sum" else (total.masked_fill(no, 1.0).log() + h).masked_fill(no, -torch.inf)
        for total, h, no, of in zip(sums, own, none, kinds, strict=True)
    ]


class Logits(NamedTuple):
    """What is known of the logits of every row [N]."""

    own: Tensor  # the logit of its class
    others: Tensor  # log sum exp of the logits of the other classes
    total: Tensor | None  # the sum of the other classes' logits, weighted if the classes have weights


def class_logits(
    c: Classified, loss: str, metric: str, numbers: Mapping[str, float | Tensor], own: Mapping[str, float | Tensor], *,
    bias: Tensor | None = None, smooth: bool = False, class_weight: Tensor | None = None,
) -> Logits:  # fmt: skip
    """The logits that a loss of `kernels/losses.py` makes of the scores with its numbers, and with other numbers for
    the own class; their total if the targets are to be smoothed."""
    batch = batch_of(c)
    weights = None if class_weight is None or not smooth else class_weight[batch.y_labels]
    neg = ops.of("lse", "sum", **numbers) if smooth else ops.of("lse", **numbers)
    states = ops.fold(
        batch, loss, metric, pos=ops.of("sum", **own), neg=neg, offsets=bias, weights=weights, group=c.group
    )  # fmt: skip
    found = merged(states, ["sum", *neg.folds])
    return Logits(found[0], found[1], found[2] if smooth else None)


def batch_of(c: Classified) -> checks.Batch:
    """The rows that this process compares with the classes."""
    (x, target), labels = compared(c), class_of(c)
    return checks.Batch(x, c.classes, target, labels, None, y_sorted=True)


def class_gap(
    c: Classified, loss: str, metric: str, numbers: Mapping[str, float | Tensor], own: Mapping[str, float | Tensor],
    reduction: str, weights: Tensor | None = None, *, closing: Callable[..., Means] = gap,
    constants: tuple[float, ...] = (), bias: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """The loss that a closing formula makes of the logit of the own class and the log sum exp of the others; None where
    several processes share the classes.

    weights: how much the rows count [N].
    """
    if groups.sharded() is not None:
        return None
    return closed(
        batch_of(c), loss, metric, closing, reduction, None, constants=constants, classes=c.target, weights=weights,
        pos=ops.of("sum", **own), neg=ops.of("lse", **numbers), offsets=bias, group=c.group,
    )  # fmt: skip


def cosine_logits(
    c: Classified, scale: float | Tensor, smooth: bool = False, class_weight: Tensor | None = None
) -> Logits:  # fmt: skip
    """Logits that are scaled cosines."""
    numbers = {"scale": scale}
    return class_logits(c, "softmax", "similarity", numbers, numbers, smooth=smooth, class_weight=class_weight)
