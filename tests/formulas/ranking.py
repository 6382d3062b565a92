"""Losses of the smoothed ranks of an anchor's positives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import Batch, nothing, reduced
from .scores import similarities


def ranks(batch: Batch, i: int, metric: str, temperature: float) -> list[tuple[Tensor, Tensor]]:
    """For every positive of an anchor, its smoothed rank among all rows and among the positives alone."""
    s_pos = similarities(batch.x[i], batch.y[batch.positives[i]], metric)
    s_neg = similarities(batch.x[i], batch.y[batch.negatives[i]], metric)
    found = []
    for p in range(len(s_pos)):
        other_positives = torch.cat([s_pos[:p], s_pos[p + 1 :]])
        among_positives = 1 + torch.sigmoid((other_positives - s_pos[p]) / temperature).sum()
        found.append((among_positives + torch.sigmoid((s_neg - s_pos[p]) / temperature).sum(), among_positives))
    return found


def smooth_ap_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    temperature: float = 0.01,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        lost = [1 - among / rank for rank, among in ranks(batch, i, metric, temperature)]
        if lost:
            terms[i].append(torch.stack(lost).mean())
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings))


def recall_at_k_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    k: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    k_temperature: float = 1.0,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        places = [rank for rank, _ in ranks(batch, i, metric, temperature)]
        recalls = []
        for n in k if places else ():
            found = torch.stack([torch.sigmoid((n - rank) / k_temperature) for rank in places]).sum()
            recalls.append((found if found < n else found * 0 + n) / min(n, len(places)))
        if recalls:
            terms[i].append(1 - torch.stack(recalls).mean())
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings))
