"""Losses made of log sum exps over the positives and over the negatives of an anchor."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .common import log_sum_exp, mean_of, pairs_of, pairwise_distance, similarities, softplus, unit, which_count


def multi_similarity_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, alpha=2.0, beta=50.0, base=0.5, metric="cosine", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    s = similarities(x, refs, metric)
    pull, push = log_sum_exp(-alpha * (s - base), pos), log_sum_exp(beta * (s - base), neg)
    terms = softplus(pull) / alpha + softplus(push) / beta
    return mean_of(terms, which_count(labels, ignore_index), reduction)


def circle_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=0.4, gamma=80.0, metric="cosine", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    s = similarities(x, refs, metric)
    pull = log_sum_exp(-gamma * F.relu(1 + margin - s.detach()) * (s - (1 - margin)), pos)
    push = log_sum_exp(gamma * F.relu(s.detach() + margin) * (s - margin), neg)
    terms = softplus(pull + push).where(pos.any(1) & neg.any(1), s.new_zeros(()))
    return mean_of(terms, terms > 0, reduction)


def _lifted_distance(x, y, normalize):
    return pairwise_distance(unit(x) if normalize else x, unit(y) if normalize else y, "euclidean")


def generalized_lifted_structure_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, neg_margin=1.0, pos_margin=0.0, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = _lifted_distance(x, refs, normalize)
    pull, push = log_sum_exp(d - pos_margin, pos), log_sum_exp(neg_margin - d, neg)
    terms = F.relu(pull.masked_fill(~pos.any(1), 0) + push.masked_fill(~neg.any(1), 0))
    return mean_of(terms, which_count(labels, ignore_index), reduction)


def lifted_structure_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, neg_margin=1.0, pos_margin=0.0, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = _lifted_distance(x, refs, normalize)
    lowest = torch.finfo(d.dtype).min / 2  # the gradient of two -inf would be NaN
    own, other = (log_sum_exp(neg_margin - m, of).clamp_min(lowest) for m, of in ((d, neg), (d.T, neg.T)))
    terms = F.relu(torch.logaddexp(own[:, None], other) + d - pos_margin).square().where(pos, d.new_zeros(())) / 2
    return mean_of(terms, pos, reduction)
