"""Softmax losses of a batch."""

from __future__ import annotations

import torch

from .common import cross_entropy, log_sum_exp, mean_of, pairs_of, reduce, row_cosine, similarities, softplus


def nt_xent_loss(z1, z2, *, temperature=0.5, reduction="mean"):
    z, labels = torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2)
    _, _, pos, neg = pairs_of(z, labels)
    return reduce(cross_entropy(similarities(z, z, "cosine") / temperature, pos, neg), reduction)


def decoupled_contrastive_loss(z1, z2, *, temperature=0.1, sigma=None, reduction="mean"):
    labels = torch.arange(len(z1), device=z1.device)
    x, y, own, _ = pairs_of(z1, labels, z2, labels)
    cos = row_cosine(z1, z2)
    weights = 1 if sigma is None else 2 - len(z1) * (cos.detach() / sigma).softmax(0)
    terms = []
    for a, b in ((x, y), (y, x)):
        sums = [log_sum_exp(similarities(a, c, "cosine") / temperature, ~own) for c in (a, b)]
        terms.append(sum(sums) - weights * cos / temperature)
    found = torch.cat(terms)
    return reduce(found if len(z1) > 1 else 0 * found.nan_to_num(), reduction)


def supcon_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, temperature=0.1, metric="cosine", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    logits = (similarities(x, refs, metric) / temperature).masked_fill(~(pos | neg), -torch.inf)
    counts = pos.sum(1)
    terms = -logits.log_softmax(1).where(pos, logits.new_zeros(())).sum(1) / counts.clamp_min(1)
    return mean_of(terms, counts > 0, reduction)


def pairwise_nt_xent_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, temperature=0.07, metric="cosine", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    logits = similarities(x, refs, metric) / temperature
    lowest = torch.finfo(logits.dtype).min / 2
    terms = softplus(log_sum_exp(logits, neg).clamp_min(lowest)[:, None] - logits).where(pos, logits.new_zeros(()))
    return mean_of(terms, pos, reduction)


def nca_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, temperature=1.0, metric="sqeuclidean", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    logits, counts = similarities(x, refs, metric) / temperature, pos.any(1)
    share = log_sum_exp(logits, neg) - log_sum_exp(logits, pos).masked_fill(~counts, 0)
    return mean_of(softplus(share).where(counts, share.new_zeros(())), counts, reduction)
