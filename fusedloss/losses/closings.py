"""Closing formulas in PyTorch: what the states of the rows cost. `kernels/closings.py` has the same for the GPU.

    closing(states, *constants) -> [(terms, counts), ...]

The loss is a sum of means, mostly of one: the sum of the terms [N], divided by the sum of their counts. Counts of None
stand for 1 each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..checks import Batch
from .reduce import reduce, reduce_rows, softplus

Means = list[tuple[Tensor, Tensor | None]]


def closed(
    batch: Batch, loss: str, metric: str, closing: Callable[..., Means], reduction: str, count: Any, *,
    constants: tuple[float, ...] = (), classes: Tensor | None = None, weights: Tensor | None = None, **folded: Any,
) -> Tensor:  # fmt: skip
    """The loss of a closing formula of `ops.fold`'s states.

    count: how many terms a mean is over, where the formula has no counts.
    classes: of the rows [N]; the mean is over the rows that have one. weights: how much each of these counts [N].
    """
    found = ops.close(
        batch, loss, metric, closing.__name__, reduction, constants=constants, count=count, classes=classes,
        weights=weights, **folded,
    )  # fmt: skip
    if found is not None:
        return found
    means = closing(ops.fold(batch, loss, metric, **folded), *constants)
    if classes is not None:
        ((terms, _),) = means
        return reduce_rows(terms if weights is None else weights * terms, reduction, classes, batch.x, weights)
    counts = [count if counted is None else counted.sum() for _, counted in means]
    parts = [reduce(terms, reduction, of, batch.x, found) for (terms, found), of in zip(means, counts, strict=True)]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def sums(states: Sequence[Tensor]) -> Means:
    """The sum of all states, of which each is a sum."""
    return [(states[0] + states[1], None)]


def gap(states: Sequence[Tensor]) -> Means:
    positive, negative = states
    return [(softplus(negative - positive), None)]


def supcon(states: Sequence[Tensor]) -> Means:
    """SupCon, from the sum, the log sum exp and the number of the positives, and the log sum exp of the negatives.

    `count * lse(all) - total` would lose the digits of a small loss, and cannot be differentiated without negatives.
    """
    total, positive, count, negative = states
    count = count.detach()
    positive = positive.masked_fill(count == 0, 0.0)
    # How much the positives differ (exactly 0 for a single one), and how they compare with the negatives.
    spread = torch.where(count > 1, positive - total / count.clamp(min=1), 0.0)
    return [(torch.where(count > 0, spread + softplus(negative - positive), 0.0), count > 0)]


def nca(states: Sequence[Tensor]) -> Means:
    positive, _total, count, negative = states
    some = count.detach() > 0
    return [(torch.where(some, softplus(negative - positive.masked_fill(~some, 0.0)), 0.0), some)]


def multi_similarity(states: Sequence[Tensor], alpha: float, beta: float) -> Means:
    pull, push = states
    return [(softplus(pull) / alpha + softplus(push) / beta, None)]


def circle(states: Sequence[Tensor]) -> Means:
    terms = softplus(states[0] + states[1])
    return [(terms, terms.detach() > 0)]


def lifted(states: Sequence[Tensor]) -> Means:
    pull, push = (state.masked_fill(state == -math.inf, 0.0) for state in states)
    return [(F.relu(pull + push), None)]


def active(states: Sequence[Tensor]) -> Means:
    """Sums of hinges over the positives and over the negatives, with one mean over all that are active."""
    far, too_far, near, too_near = states
    return [(far + near, (too_far + too_near).detach())]


def active_by_kind(states: Sequence[Tensor]) -> Means:
    """Sums of hinges over the positives and over the negatives, each with a mean over those that are active."""
    far, too_far, near, too_near = states
    return [(far, too_far.detach()), (near, too_near.detach())]


def cosface(states: Sequence[Tensor], scale: float, margin: float) -> Means:
    own, others = states
    return [(softplus(others - scale * (own - margin)), None)]


def arcface(states: Sequence[Tensor], scale: Any, cos: Any, sin: Any, straight: Any) -> Means:
    """The margin of angles by its cosine, its sine, and margin sin(margin), which is inf for margins below 0: beyond
    pi - margin the cosine goes on with slope 1."""
    own, others = states
    return [(softplus(others - scale * with_angle(own, cos, sin, straight)), None)]


def with_angle(own: Tensor, cos: Any, sin: Any, straight: Any) -> Tensor:
    """The cosine of an angle after a margin is added to it."""
    squared = 1 - own.square()
    away = squared > 0
    sine = torch.where(away, squared.where(away, 1.0).sqrt(), 0.0)
    within = (own >= -cos) | (straight == math.inf)
    return torch.where(within, own * cos - sine * sin, own - straight)


def proxy_anchor(states: Sequence[Tensor]) -> Means:
    """Over the proxies: those that have a positive, and all of them."""
    positive, negative = states
    return [(softplus(positive), positive.detach() > -math.inf), (softplus(negative), None)]
