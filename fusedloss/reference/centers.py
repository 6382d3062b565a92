"""Losses of the centers of classes."""

from __future__ import annotations

import torch

from .common import diagonal, mean_of, row_distance, similarities, where_counted, which_count


def center_loss(embeddings, centers, target, *, ignore_index=None, reduction="mean"):
    counts = which_count(target, ignore_index)
    own = centers[target.long().where(counts, 0)]
    terms = row_distance(where_counted(embeddings, counts), own, "sqeuclidean") / 2
    return mean_of(torch.where(counts, terms, 0), counts, reduction)


def island_loss(embeddings, centers, target, *, weight=10.0, ignore_index=None, reduction="mean"):
    cos = similarities(centers, centers, "cosine")
    near = center_loss(embeddings, centers, target, ignore_index=ignore_index, reduction=reduction)
    return near + weight * (cos + 1)[~diagonal(cos)].sum()
