"""What the formulas have in common: exact functions of float64 numbers, and how like or apart rows are.

Every function follows the contract where autograd of the plain expression would not: the root has gradient 0 at 0, and
a softplus or a sum of exponentials loses no digits far from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8  # the smallest norm that a row is divided by


def double(t: Tensor) -> Tensor:
    """A tensor in float64, attached to its graph; one that is not floating as well."""
    return t.to(torch.float64)


def number(value: float | Tensor) -> Tensor:
    """A number or a tensor of one element as a scalar in float64, attached to its graph."""
    if isinstance(value, Tensor):
        return double(value).reshape(())
    return torch.tensor(float(value), dtype=torch.float64)


def root(t: Tensor) -> Tensor:
    """The square root, which is 0 with gradient 0 where t is not above 0."""
    below = t <= 0
    return torch.where(below, 0.0, torch.where(below, 1.0, t).sqrt())


def softplus(t: Tensor) -> Tensor:
    """log(1 + exp(t)), exact for any t."""
    return -torch.nn.functional.logsigmoid(-t)


def log_sum_exp(logits: Tensor) -> Tensor | None:
    """log sum exp of a vector; None for a sum of nothing. Logits of -inf are not part of the sum."""
    present = logits[logits != -torch.inf]
    return torch.logsumexp(present, 0) if len(present) else None


def log_one_plus(logits: Tensor) -> Tensor:
    """log(1 + sum exp) of a vector, exact where the sum is tiny; 0 for a sum of nothing."""
    total = log_sum_exp(logits)
    return logits.sum() * 0 if total is None else softplus(total)


def norms(rows: Tensor) -> Tensor:
    """The length of every row [..., D], at least EPS."""
    length = root((rows * rows).sum(-1))
    return torch.where(length > EPS, length, EPS)


def unit(rows: Tensor) -> Tensor:
    """Rows [..., D] scaled to length 1, as far as they are not shorter than EPS."""
    return rows / norms(rows)[..., None]


def dots(row: Tensor, rows: Tensor) -> Tensor:
    """The products of a row [D] with rows [K, D]; or those of rows [K, D] with rows [K, D], one by one."""
    return (row * rows).sum(-1)


def cosines(row: Tensor, rows: Tensor) -> Tensor:
    """The cosines, which are exactly 0 where the products are."""
    return dots(row, rows) / (norms(row) * norms(rows))


def distances(row: Tensor, rows: Tensor, metric: str, *, shift: float = 0.0) -> Tensor:
    """The distances of a row [D], or of rows [K, D] one by one, to rows [K, D]. The shift is added to all differences,
    which the cosine distance does not have."""
    if metric == "cosine":
        return 1 - cosines(row, rows)
    apart = row - rows + shift
    if metric == "manhattan":
        return apart.abs().sum(-1)
    squared = (apart * apart).sum(-1)
    return {"sqeuclidean": squared, "euclidean": root(squared)}[metric]


def similarities(row: Tensor, rows: Tensor, metric: str) -> Tensor:
    """The cosines or products of a row [D] with rows [K, D], or the distances with the other sign."""
    if metric == "cosine":
        return cosines(row, rows)
    return dots(row, rows) if metric == "dot" else -distances(row, rows, metric)
