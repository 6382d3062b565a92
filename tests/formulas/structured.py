"""Losses in which all pairs of an anchor weigh each other."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import Batch, nothing, reduced
from .scores import distances, log_one_plus, log_sum_exp, similarities, softplus, unit


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        s_pos = similarities(batch.x[i], batch.y[batch.positives[i]], metric)
        s_neg = similarities(batch.x[i], batch.y[batch.negatives[i]], metric)
        pull = log_one_plus(-alpha * (s_pos - base)) / alpha
        push = log_one_plus(beta * (s_neg - base)) / beta
        terms[i].append(pull + push)
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings))


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    margin: float = 0.4,
    gamma: float = 80.0,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        if not batch.positives[i] or not batch.negatives[i]:
            continue
        pull = []
        for s in similarities(batch.x[i], batch.y[batch.positives[i]], metric):
            weight = max(1 + margin - s.item(), 0.0)
            pull.append(-gamma * weight * (s - 1 + margin))
        push = []
        for s in similarities(batch.x[i], batch.y[batch.negatives[i]], metric):
            weight = max(s.item() + margin, 0.0)
            push.append(gamma * weight * (s - margin))
        terms[i].append(softplus(torch.logsumexp(torch.stack(pull), 0) + torch.logsumexp(torch.stack(push), 0)))
    zero = nothing(embeddings, ref_embeddings)
    return reduced(terms, "active" if reduction == "mean" else reduction, zero)


def generalized_lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    zero = nothing(embeddings, ref_embeddings)
    for i in batch.anchors:
        x, positives, negatives = batch.x[i], batch.y[batch.positives[i]], batch.y[batch.negatives[i]]
        if normalize:
            x, positives, negatives = unit(x), unit(positives), unit(negatives)
        pull = log_sum_exp(distances(x, positives, "euclidean") - pos_margin)
        push = log_sum_exp(neg_margin - distances(x, negatives, "euclidean"))
        terms[i].append(torch.relu(sum((part for part in (pull, push) if part is not None), zero)))
    return reduced(terms, reduction, zero)


def lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)

    x, y = (unit(batch.x), unit(batch.y)) if normalize else (batch.x, batch.y)
    zero = nothing(embeddings, ref_embeddings)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        d_in = distances(x[i], y[batch.negatives[i]], "euclidean")
        # The negatives of the other end: anchors with another label, which in a batch are rows of that batch.
        others = [a for a in batch.anchors if batch.labels[a] != batch.labels[i]]
        for j, d_ij in zip(batch.positives[i], distances(x[i], y[batch.positives[i]], "euclidean"), strict=True):
            d_jn = distances(y[j], x[others], "euclidean")
            push = log_sum_exp(neg_margin - torch.cat([d_in, d_jn]))
            terms[i].append(zero if push is None else torch.relu(push + d_ij - pos_margin) ** 2 / 2)
    return reduced(terms, reduction, zero)
