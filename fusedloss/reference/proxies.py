"""Losses of embeddings and a proxy of every class."""

from __future__ import annotations

import torch

from .classes import cosines
from .common import log_sum_exp, reduce, softplus, which_count
from .logits import cross_entropy_loss


def proxy_nca_loss(embeddings, proxies, target, *, scale=1.0, ignore_index=None, reduction="mean"):
    logits = 2 * scale * cosines(embeddings, proxies, target, ignore_index)
    none = -1 if ignore_index is None else ignore_index  # not a class
    return cross_entropy_loss(logits, target, ignore_index=none, reduction=reduction)


def proxy_anchor_loss(
    embeddings, proxies, target, *, margin=0.1, alpha=32.0, ignore_index=None, reduction="mean"
):  # fmt: skip
    cos = cosines(embeddings, proxies, target, ignore_index).T
    counts = which_count(target, ignore_index)
    own = torch.arange(len(proxies), device=target.device)[:, None] == target
    pull = softplus(log_sum_exp(-alpha * (cos - margin), own & counts))
    push = softplus(log_sum_exp(alpha * (cos + margin), ~own & counts))
    if reduction == "mean":
        return pull.sum() / (own & counts).any(1).sum().clamp_min(1) + push.sum() / max(len(proxies), 1)
    return reduce(pull + push, reduction)
