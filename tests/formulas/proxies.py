"""Losses of proxies and of centers, one row per class."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import average, nothing, reduced, total
from .logits import surprise
from .scores import cosines, double, log_one_plus, number


def proxy_nca_loss(
    embeddings: Tensor,
    proxies: Tensor,
    target: Tensor,
    *,
    scale: float | Tensor = 1.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    x, rows = double(embeddings), double(proxies)
    terms: list[list[Tensor]] = []
    for i, y in enumerate(target.tolist()):
        if y == ignore_index:
            terms.append([])
            continue
        squared = 2 - 2 * cosines(x[i], rows)  # distances on the unit sphere
        terms.append([surprise(-number(scale) * squared, y)])
    return reduced(terms, reduction, nothing(embeddings, proxies, scale))


def proxy_anchor_loss(
    embeddings: Tensor,
    proxies: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.1,
    alpha: float | Tensor = 32.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    zero, m, a = nothing(embeddings, proxies, margin, alpha), number(margin), number(alpha)
    x, classes = double(embeddings), target.tolist()
    pulls, pushes = [], []
    present = 0  # classes with a row in the batch
    for c, proxy in enumerate(double(proxies)):
        own = [i for i, y in enumerate(classes) if y != ignore_index and y == c]
        others = [i for i, y in enumerate(classes) if y != ignore_index and y != c]
        present += bool(own)
        pulls.append(log_one_plus(-a * (cosines(proxy, x[own]) - m)))
        pushes.append(log_one_plus(a * (cosines(proxy, x[others]) + m)))
    if reduction == "mean":
        return total(pulls, zero) / max(present, 1) + average(pushes, zero)
    return reduced([[pull, push] for pull, push in zip(pulls, pushes, strict=True)], reduction, zero)


def center_loss(
    embeddings: Tensor,
    centers: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    x, rows = double(embeddings), double(centers)
    terms = [[((x[i] - rows[y]) ** 2).sum() / 2] if y != ignore_index else [] for i, y in enumerate(target.tolist())]
    return reduced(terms, reduction, nothing(embeddings, centers))


def island_loss(
    embeddings: Tensor,
    centers: Tensor,
    target: Tensor,
    *,
    weight: float = 10.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    rows = double(centers)
    alike = [cosines(rows[j], rows[k]) + 1 for j in range(len(rows)) for k in range(len(rows)) if j != k]
    near = center_loss(embeddings, centers, target, ignore_index=ignore_index, reduction=reduction)
    return near + weight * total(alike, torch.zeros((), dtype=torch.float64))
