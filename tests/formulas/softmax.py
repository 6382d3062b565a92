"""Losses with a softmax over the rows of a batch: by two views, or by labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import Batch, nothing, reduced
from .scores import cosines, double, log_sum_exp, number, similarities, softplus


def against(own: Tensor, others: Tensor) -> Tensor:
    """-log of the share of a logit in the softmax of it and of others."""
    rest = log_sum_exp(others)
    return own * 0 if rest is None else softplus(rest - own)


def nt_xent_loss(z1: Tensor, z2: Tensor, *, temperature: float | Tensor = 0.5, reduction: str = "mean") -> Tensor:
    views, N = torch.cat([double(z1), double(z2)]), len(z1)
    terms = []
    for i in range(2 * N):
        partner = (i + N) % (2 * N)
        rest = [j for j in range(2 * N) if j not in (i, partner)]
        logits = cosines(views[i], views) / number(temperature)
        terms.append([against(logits[partner], logits[rest])])
    return reduced(terms, reduction, nothing(z1, z2, temperature))


def decoupled_contrastive_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    sigma: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    x, y, N, t = double(z1), double(z2), len(z1), number(temperature)
    zero = nothing(z1, z2, temperature)
    matching = cosines(x, y)
    weights = [1.0] * N
    if sigma is not None:
        weights = (2 - N * torch.softmax(matching.detach() / sigma, 0)).tolist()
    terms: list[list[Tensor]] = []
    for own_view, other_view in ((x, y), (y, x)):
        for i in range(N):
            rest = [j for j in range(N) if j != i]
            if not rest:
                terms.append([])
                continue
            pull = weights[i] * cosines(own_view[i], other_view[i]) / t
            push = torch.logsumexp(cosines(own_view[i], own_view[rest]) / t, 0)
            push = push + torch.logsumexp(cosines(own_view[i], other_view[rest]) / t, 0)
            terms.append([push - pull])
    return reduced(terms, reduction, zero)


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    temperature: float | Tensor = 0.1,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        if not batch.positives[i]:
            continue
        others = batch.others(i)
        logits = similarities(batch.x[i], batch.y[others], metric) / number(temperature)
        costs = []
        for p in batch.positives[i]:
            at = others.index(p)
            costs.append(against(logits[at], torch.cat([logits[:at], logits[at + 1 :]])))
        terms[i].append(torch.stack(costs).mean())
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings, temperature))


def pairwise_nt_xent_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    temperature: float | Tensor = 0.07,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms = []
    for i, row in enumerate(batch.x):
        pull = similarities(row, batch.y[batch.positives[i]], metric) / number(temperature)
        push = similarities(row, batch.y[batch.negatives[i]], metric) / number(temperature)
        terms.append([against(positive, push) for positive in pull])
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings, temperature))


def nca_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    temperature: float | Tensor = 1.0,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        pull = similarities(batch.x[i], batch.y[batch.positives[i]], metric) / number(temperature)
        push = similarities(batch.x[i], batch.y[batch.negatives[i]], metric) / number(temperature)
        positives = log_sum_exp(pull)
        if positives is not None:
            terms[i].append(against(positives, push))
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings, temperature))
