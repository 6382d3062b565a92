"""Losses of given pairs, and of all pairs of a batch with a margin."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import Batch, nothing, reduced
from .scores import cosines, distances, double, log_one_plus, number


def similar_shares(target: Tensor, similar: int) -> list[float]:
    """How far each pair is similar, from 0 to 1."""
    if not target.is_floating_point():
        return [float(int(t) == similar) for t in target.tolist()]
    shares = [max(t, 0.0) for t in double(target).tolist()]  # -1 is a pair that is not similar
    return shares if similar == 1 else [1 - share for share in shares]


def graded(share: float, attract: Tensor, repel: Tensor) -> Tensor:
    """The cost of a pair that is similar by a share, and not by the rest. What has no share is not looked at."""
    if share == 1:
        return attract
    return repel if share == 0 else share * attract + (1 - share) * repel


def contrastive_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 1.0,
    metric: str = "euclidean",
    similar: int = 1,
    reduction: str = "mean",
) -> Tensor:
    zero, m = nothing(x1, x2, margin), number(margin)
    terms = []
    for a, b, share in zip(double(x1), double(x2), similar_shares(target, similar), strict=True):
        d = distances(a, b, metric)
        terms.append([graded(share, d**2 / 2, torch.relu(m - d) ** 2 / 2)])
    return reduced(terms, reduction, zero)


def euclidean_distance_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 1.0,
    similar: int = 1,
    reduction: str = "mean",
) -> Tensor:
    return 2 * contrastive_loss(x1, x2, target, margin=margin, similar=similar, reduction=reduction)


def cosine_similarity_loss(
    x1: Tensor, x2: Tensor, target: Tensor | None = None, *, similar: int = 1, reduction: str = "mean"
) -> Tensor:
    terms = []
    for i, (a, b) in enumerate(zip(double(x1), double(x2), strict=True)):
        cos = cosines(a, b)
        if target is None:
            terms.append([1 - cos])
        else:
            share = similar_shares(target[i : i + 1], similar)[0]
            terms.append([graded(share, (1 - cos) / 2, (1 + cos) / 2)])
    return reduced(terms, reduction, nothing(x1, x2))


def cosine_embedding_loss(
    x1: Tensor, x2: Tensor, target: Tensor, margin: float | Tensor = 0.0, *, similar: int = 1, reduction: str = "mean"
) -> Tensor:
    terms = []
    for a, b, share in zip(double(x1), double(x2), similar_shares(target, similar), strict=True):
        cos = cosines(a, b)
        terms.append([graded(share, 1 - cos, torch.relu(cos - number(margin)))])
    return reduced(terms, reduction, nothing(x1, x2, margin))


def cosent_loss(x1: Tensor, x2: Tensor, target: Tensor, *, scale: float | Tensor = 20.0) -> Tensor:
    cos, s, grades = cosines(double(x1), double(x2)), number(scale), target.tolist()
    logits = [
        s * (cos[j] - cos[i])
        for i, higher in enumerate(grades)
        for j, lower in enumerate(grades)
        if higher > lower  # pair i ought to have the higher cosine
    ]
    zero = nothing(x1, x2, scale)
    return zero + log_one_plus(torch.stack(logits)) if logits else zero


def pairwise_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    pos_margin: float | Tensor = 0.0,
    neg_margin: float | Tensor = 1.0,
    metric: str = "euclidean",
    power: int = 2,
    reduction: str = "mean",
) -> Tensor:
    zero = nothing(embeddings, ref_embeddings, pos_margin, neg_margin)
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    c = {1: 1.0, 2: 0.5}[power]
    too_far: list[list[Tensor]] = []
    too_near: list[list[Tensor]] = []
    for i, row in enumerate(batch.x):
        d_pos = distances(row, batch.y[batch.positives[i]], metric)
        d_neg = distances(row, batch.y[batch.negatives[i]], metric)
        too_far.append([*(c * torch.relu(d_pos - number(pos_margin)) ** power)])
        too_near.append([*(c * torch.relu(number(neg_margin) - d_neg) ** power)])
    if reduction == "active":
        return reduced(too_far, "active", zero) + reduced(too_near, "active", zero)
    return reduced([a + b for a, b in zip(too_far, too_near, strict=True)], reduction, zero)


def margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    margin: float | Tensor = 0.2,
    beta: float | Tensor = 1.2,
    metric: str = "euclidean",
    reduction: str = "active",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    of_labels = isinstance(beta, Tensor) and beta.numel() > 1
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        boundary = number(beta[batch.labels[i]] if of_labels and isinstance(beta, Tensor) else beta)
        d_pos = distances(batch.x[i], batch.y[batch.positives[i]], metric)
        d_neg = distances(batch.x[i], batch.y[batch.negatives[i]], metric)
        terms[i] += torch.relu(d_pos - boundary + number(margin))
        terms[i] += torch.relu(boundary + number(margin) - d_neg)
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings, margin, beta))
