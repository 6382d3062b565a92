"""Losses of the ranks of positives."""

from __future__ import annotations

import torch

from .common import mean_of, pairs_of, similarities


def _ranks(x, refs, pos, neg, metric, temperature):
    """The ranks of all positives [N, M] among the positives, and among all other rows."""
    s = similarities(x, refs, metric)
    above = ((s[:, None] - s[:, :, None]) / temperature).sigmoid()  # how far j is above p, for each i, p and j
    others = pos[:, None] & ~torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    zero = s.new_zeros(())
    rank = 1 + above.where(others, zero).sum(2)
    return rank, rank + above.where(neg[:, None], zero).sum(2)


def smooth_ap_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, temperature=0.01, metric="cosine", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    among_positives, rank = _ranks(x, refs, pos, neg, metric, temperature)
    precision = (among_positives / rank).where(pos, rank.new_zeros(()))
    terms = 1 - precision.sum(1) / pos.sum(1).clamp_min(1)
    return mean_of(terms.where(pos.any(1), rank.new_zeros(())), pos.any(1), reduction)


def recall_at_k_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, k=(1, 2, 4, 8, 16), temperature=0.01, k_temperature=1.0, metric="cosine",
    reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    _, rank = _ranks(x, refs, pos, neg, metric, temperature)
    zero, recalls = rank.new_zeros(()), []
    for first in k:
        found = ((first - rank) / k_temperature).sigmoid().where(pos, zero).sum(1)
        recalls.append(found.clamp_max(first) / pos.sum(1).clamp(1, first))
    terms = 1 - torch.stack(recalls).mean(0)
    return mean_of(terms.where(pos.any(1), zero), pos.any(1), reduction)
