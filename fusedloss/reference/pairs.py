"""Losses of pairs: given ones, and all of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .common import (
    log_sum_exp,
    mean_of,
    pairs_of,
    pairwise_distance,
    reduce,
    row_cosine,
    row_distance,
    softplus,
    which_count,
)


def _graded(target, similar, if_similar, if_not):
    """The loss of each pair: its target's share of `if_similar`, and the remaining share of `if_not`."""
    target = target.to(if_not.dtype).clamp(min=0)
    share = target if similar == 1 else 1 - target
    mixed = share * if_similar + (1 - share) * if_not
    return torch.where(share == 1, if_similar, torch.where(share == 0, if_not, mixed))


def _short_of(x, y, metric, margin):
    """margin - d(x_i, y_i), which keeps digits of small cosines that 1 - (1 - cos) loses. [N]"""
    return row_cosine(x, y) - (1 - margin) if metric == "cosine" else margin - row_distance(x, y, metric)


def contrastive_loss(x1, x2, target, *, margin=1.0, metric="euclidean", similar=1, reduction="mean"):
    d, short = row_distance(x1, x2, metric), F.relu(_short_of(x1, x2, metric, margin))
    return reduce(_graded(target, similar, d.square(), short.square()) / 2, reduction)


def euclidean_distance_loss(x1, x2, target, *, margin=1.0, similar=1, reduction="mean"):
    return 2 * contrastive_loss(x1, x2, target, margin=margin, similar=similar, reduction=reduction)


def cosine_similarity_loss(x1, x2, target=None, *, similar=1, reduction="mean"):
    cos = row_cosine(x1, x2)
    return reduce(1 - cos if target is None else _graded(target, similar, 1 - cos, 1 + cos) / 2, reduction)


def cosine_embedding_loss(x1, x2, target, margin=0.0, *, similar=1, reduction="mean"):
    cos = row_cosine(x1, x2)
    return reduce(_graded(target, similar, 1 - cos, F.relu(cos - margin)), reduction)


def cosent_loss(x1, x2, target, *, scale=20.0):
    z = scale * row_cosine(x1, x2)
    above = target[:, None] > target
    return softplus(log_sum_exp((z - z[:, None]).reshape(1, -1), above.reshape(1, -1)))[0]


def pairwise_contrastive_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, pos_margin=0.0, neg_margin=1.0, metric="euclidean", power=2, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    terms = torch.where(pos, F.relu(d - pos_margin), F.relu(neg_margin - d)).pow(power) * (pos | neg) / power
    if reduction == "none":
        return terms.sum(1)
    if reduction == "active":
        return sum((terms * kind).sum() / ((terms > 0) & kind).sum().clamp_min(1) for kind in (pos, neg))
    return terms.sum() / ((pos | neg).sum().clamp_min(1) if reduction == "mean" else 1)


def margin_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=0.2, beta=1.2, metric="euclidean", reduction="active",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    if isinstance(beta, torch.Tensor) and beta.dim() == 1 and len(beta) > 1:
        beta = beta[labels.long().where(which_count(labels, ignore_index), 0)][:, None]
    terms = F.relu(torch.where(pos, d - (beta - margin), (beta + margin) - d)).where(pos | neg, d.new_zeros(()))
    return mean_of(terms, pos | neg, reduction)
