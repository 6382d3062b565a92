"""Losses of two towers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .common import cross_entropy, diagonal, reduce, similarities


def _masks(x, y, offset, ids, y_ids):
    """Masks of the pairs of a row and its own one, and of pairs with different ids. [N, M] each"""
    own = diagonal(x.new_empty(len(x), len(y)), offset)
    return own, ~own if ids is None else ids[:, None] != (ids if y_ids is None else y_ids)


def info_nce_loss(
    query, key, negatives=None, *,
    temperature=0.07, metric="cosine", in_batch_negatives=True, symmetric=False, ids=None, key_ids=None,
    hard_negatives=None, key_bias=None, offset=0, reduction="mean",
):  # fmt: skip
    logits = similarities(query, key, metric) / temperature + (0 if key_bias is None else key_bias)
    pos, neg = _masks(query, key, offset, ids, key_ids)
    by_key = cross_entropy(logits.T, pos.T, neg.T) if symmetric else None
    logits = [logits.masked_fill(~(pos | (neg & in_batch_negatives)), -torch.inf)]
    if negatives is not None:
        logits.append(similarities(query, negatives, metric) / temperature)
    if hard_negatives is not None:
        each = [similarities(q[None], h, metric) for q, h in zip(query, hard_negatives, strict=True)]
        logits.append(torch.cat([*each, query.new_empty(0, hard_negatives.shape[1])]) / temperature)
    logits = torch.cat(logits, 1)
    pos = torch.cat([pos, pos.new_zeros(len(pos), logits.shape[1] - pos.shape[1])], 1)
    by_query = cross_entropy(logits, pos, ~pos)
    return reduce((by_query + by_key) / 2 if symmetric else by_query, reduction)


def clip_loss(
    image, text, logit_scale, *, logit_bias=None, offset=0, ids=None, text_ids=None, reduction="mean"
):  # fmt: skip
    logits = logit_scale * image @ text.T + (0 if logit_bias is None else logit_bias)
    pos, neg = _masks(image, text, offset, ids, text_ids)
    by_image = cross_entropy(logits, pos, neg)
    if len(image) != len(text):
        return reduce(by_image, reduction)
    return reduce((by_image + cross_entropy(logits.T, pos.T, neg.T)) / 2, reduction)


def siglip_loss(
    image, text, logit_scale, logit_bias, *, offset=0, ids=None, text_ids=None, reduction="mean"
):  # fmt: skip
    logits = logit_scale * image @ text.T + logit_bias
    own, other = _masks(image, text, -len(image) if offset is None else offset, ids, text_ids)
    pos = own if ids is None else ~other
    return reduce(-F.logsigmoid(torch.where(pos, logits, -logits)).sum(1), reduction)


def n_pair_loss(anchor, positive, *, l2_reg=0.0, reduction="mean"):
    logits = anchor @ positive.T
    pos = diagonal(logits)
    return reduce(cross_entropy(logits, pos, ~pos) + l2_reg * (anchor.square() + positive.square()).sum(1), reduction)
