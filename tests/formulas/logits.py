"""Losses of given logits, and the cross entropy that the losses of classes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import nothing, total
from .scores import double, log_sum_exp, softplus


def rest_of(z: Tensor, c: int) -> Tensor | None:
    """log sum exp of the logits of all classes but c; None if there are none."""
    return log_sum_exp(torch.cat([z[:c], z[c + 1 :]]))


def surprise(z: Tensor, c: int) -> Tensor:
    """-log of the probability of class c, exact near 0 too."""
    rest = rest_of(z, c)
    return z[c] * 0 if rest is None else softplus(rest - z[c])


def missed(z: Tensor, c: int, gamma: float) -> Tensor | float:
    """(1 - p_c)^gamma, with a finite gradient."""
    rest = rest_of(z, c)
    if gamma == 0 or rest is None:
        return 0.0**gamma if rest is None else 1.0
    return torch.exp(-gamma * softplus(z[c] - rest))


def entropy(z: Tensor, q: Sequence[float] | Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of probabilities q, smoothed, with weights of classes. A class without a share costs nothing."""
    parts = []
    for c in range(len(z)):
        share = (1 - smoothing) * q[c] + smoothing / len(z)
        if share != 0 or (isinstance(share, Tensor) and share.requires_grad and z[c] != -torch.inf):
            parts.append(share * surprise(z, c) * (1 if weight is None else double(weight.detach())[c]))
    return total(parts, torch.zeros((), dtype=torch.float64))


def one_hot(c: int, C: int) -> list[float]:
    return [float(other == c) for other in range(C)]


def weighted(terms: Sequence[Tensor | None], weights: Sequence[float], reduction: str, zero: Tensor) -> Tensor:
    """The value of terms that already have their weights; None for rows that do not count."""
    every = [zero if term is None else term + zero for term in terms]
    if reduction == "none":
        return torch.stack(every) if every else zero.new_zeros(0) + zero
    together = sum(w for term, w in zip(terms, weights, strict=True) if term is not None)
    return total(every, zero) / (1 if reduction == "sum" or together == 0 else together)


def flat(logits: Tensor) -> Tensor:
    """Logits [N, C, d1, ...] as rows of classes."""
    return double(logits).movedim(1, -1).flatten(0, -2) if logits.dim() > 2 else double(logits)


def weights_of(weight: Tensor | None, classes: Sequence[int], ignore_index: int | None) -> list[float]:
    """The weight of every row: that of its class, or 1; 0 for an ignored row."""
    if weight is None:
        return [float(c != ignore_index) for c in classes]
    return [0.0 if c == ignore_index else double(weight)[c].item() for c in classes]


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    overwrite_logits: bool = False,
    reduction: str = "mean",
) -> Tensor:
    rows, zero = flat(logits), nothing(logits, target)
    if target.is_floating_point():
        of_rows = flat(target)
        terms: list[Tensor | None] = [
            entropy(z, q, weight, label_smoothing) for z, q in zip(rows, of_rows, strict=True)
        ]
        weights = [1.0] * len(terms)
    else:
        classes: list[int] = target.flatten().tolist()
        terms = [
            None if c == ignore_index else entropy(rows[i], one_hot(c, rows.shape[1]), weight, label_smoothing)
            for i, c in enumerate(classes)
        ]
        weights = weights_of(weight, classes, ignore_index)
    value = weighted(terms, weights, reduction, zero)
    return value.view(logits.shape[:1] + logits.shape[2:]) if reduction == "none" else value


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    overwrite_logits: bool = False,
    reduction: str = "mean",
) -> Tensor:
    rows, classes = flat(logits), target.flatten().tolist()
    weights = weights_of(weight, classes, ignore_index)
    terms: list[Tensor | None] = []
    for i, c in enumerate(classes):
        if c == ignore_index:
            terms.append(None)
        else:
            terms.append(weights[i] * missed(rows[i], c, gamma) * surprise(rows[i], c))
    value = weighted(terms, weights, reduction, nothing(logits))
    return value.view(target.shape) if reduction == "none" else value


def of_elements(terms: Sequence[Tensor], logits: Tensor, reduction: str) -> Tensor:
    """The value of terms in the order of the elements of the logits."""
    value = weighted(terms, [1.0] * len(terms), reduction, nothing(logits))
    return value.view(logits.shape) if reduction == "none" else value


def binary_cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    overwrite_logits: bool = False,
    reduction: str = "mean",
) -> Tensor:
    def numbers(factor: Tensor | None) -> list[float]:
        ones = torch.ones(logits.shape, dtype=torch.float64)
        return (ones if factor is None else ones * double(factor.detach())).flatten().tolist()

    terms = []
    answers = double(target).flatten().tolist()
    for z, t, w, v in zip(double(logits).flatten(), answers, numbers(weight), numbers(pos_weight), strict=True):
        terms.append(w * (v * t * softplus(-z) + (1 - t) * softplus(z)))
    return of_elements(terms, logits, reduction)


def sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    overwrite_logits: bool = False,
) -> Tensor:
    terms = []
    for z, t in zip(double(logits).flatten(), double(target).flatten(), strict=True):
        log_p, log_not_p = -softplus(-z), -softplus(z)
        log_missed = torch.logaddexp(log_p + (1 - t).log(), log_not_p + t.log())
        alpha_t = 1 if alpha == -1 else alpha * t + (1 - alpha) * (1 - t)
        terms.append(-alpha_t * torch.exp(gamma * log_missed) * (t * log_p + (1 - t) * log_not_p))
    return of_elements(terms, logits, reduction)
