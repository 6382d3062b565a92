"""Softmax and sigmoid losses over a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .common import diagonal, logits_of, mean_of, pairs_of, reduce


def _cross_entropy(logits, pos, neg):
    """-log of the positive's share, of its row's logits: pos has one pair a row. [N]"""
    return -logits.masked_fill(~(pos | neg), -torch.inf).log_softmax(1).where(pos, logits.new_zeros(())).sum(1)


def info_nce_loss(
    query, key, negatives=None, *,
    temperature=0.07, normalize=True, in_batch_negatives=True, symmetric=False, offset=0, reduction="mean",
):  # fmt: skip
    logits = logits_of(query, key, 1 / temperature, normalize)
    pos = diagonal(logits, offset)
    neg = ~pos & in_batch_negatives
    by_key = _cross_entropy(logits.T, pos.T, neg.T) if symmetric else None
    if negatives is not None:
        queue = torch.ones(len(query), len(negatives), dtype=torch.bool, device=query.device)
        logits = torch.cat([logits, logits_of(query, negatives, 1 / temperature, normalize)], 1)
        pos, neg = torch.cat([pos, ~queue], 1), torch.cat([neg, queue], 1)
    by_query = _cross_entropy(logits, pos, neg)
    return reduce((by_query + by_key) / 2 if symmetric else by_query, reduction)


def nt_xent_loss(z1, z2, *, temperature=0.5, reduction="mean"):
    z, labels = torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2)
    _, _, pos, neg = pairs_of(z, labels)
    return reduce(_cross_entropy(logits_of(z, z, 1 / temperature), pos, neg), reduction)


def clip_loss(image, text, logit_scale, *, logit_bias=None, reduction="mean"):
    logits = logit_scale * image @ text.T + (0 if logit_bias is None else logit_bias)
    pos = diagonal(logits)
    return reduce((_cross_entropy(logits, pos, ~pos) + _cross_entropy(logits.T, pos, ~pos)) / 2, reduction)


def siglip_loss(image, text, logit_scale, logit_bias, *, reduction="mean"):
    logits = logit_scale * image @ text.T + logit_bias
    return reduce(-F.logsigmoid(torch.where(diagonal(logits), logits, -logits)).sum(1), reduction)


def supcon_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, temperature=0.1, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    logits = logits_of(x, refs, 1 / temperature, normalize).masked_fill(~(pos | neg), -torch.inf)
    counts = pos.sum(1)
    terms = -logits.log_softmax(1).where(pos, logits.new_zeros(())).sum(1) / counts.clamp_min(1)
    return mean_of(terms, counts > 0, reduction)


def n_pair_loss(anchor, positive, *, l2_reg=0.0, reduction="mean"):
    logits = anchor @ positive.T
    pos = diagonal(logits)
    return reduce(_cross_entropy(logits, pos, ~pos) + l2_reg * (anchor.square() + positive.square()).sum(1), reduction)
