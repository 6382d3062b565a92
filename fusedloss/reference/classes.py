"""Losses of embeddings and the rows of classes: a classifier, or proxies."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import log_sum_exp, logits_of, reduce, root, softplus, where_counted, which_count
from .logits import cross_entropy_loss, left_out, mean_of_classes, modulation, own_class


def linear_cross_entropy_loss(
    embeddings, weight, target, *, bias=None, gamma=0.0, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):  # fmt: skip
    logits = left_out(embeddings, target, ignore_index) @ weight.T + (0 if bias is None else bias)
    own = own_class(target, len(weight), ignore_index)
    terms = cross_entropy_loss(
        logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )  # fmt: skip
    return mean_of_classes(modulation(logits, own, gamma) * terms if gamma else terms, own.sum(1), reduction)


def _margin_softmax(cos, own_logit, scale, target, ignore_index, reduction):
    """Cross entropy of scaled cosines, of which that of the own class is replaced."""
    own = own_class(target, cos.shape[1], ignore_index)
    logits = torch.where(own, own_logit, scale * cos)
    return cross_entropy_loss(logits, target, ignore_index=ignore_index, reduction=reduction)


def _cosines(embeddings, weight, target, ignore_index):
    """To every class, of ones for ignored rows."""
    return logits_of(where_counted(embeddings, which_count(target, ignore_index)), weight, 1.0)


def arcface_loss(embeddings, weight, target, *, margin=0.5, scale=64.0, ignore_index=-100, reduction="mean"):
    cos = _cosines(embeddings, weight, target, ignore_index)
    m = margin if isinstance(margin, Tensor) else cos.new_tensor(margin)
    shifted = torch.where(cos >= -m.cos(), cos * m.cos() - root(1 - cos.square()) * m.sin(), cos - m * m.sin())
    return _margin_softmax(cos, scale * shifted, scale, target, ignore_index, reduction)


def cosface_loss(embeddings, weight, target, *, margin=0.35, scale=64.0, ignore_index=-100, reduction="mean"):
    cos = _cosines(embeddings, weight, target, ignore_index)
    return _margin_softmax(cos, scale * (cos - margin), scale, target, ignore_index, reduction)


def normalized_softmax_loss(embeddings, weight, target, *, temperature=0.05, ignore_index=-100, reduction="mean"):
    logits = _cosines(embeddings, weight, target, ignore_index) / temperature
    return cross_entropy_loss(logits, target, ignore_index=ignore_index, reduction=reduction)


def proxy_nca_loss(embeddings, proxies, target, *, scale=1.0, ignore_index=None, reduction="mean"):
    logits = 2 * scale * _cosines(embeddings, proxies, target, ignore_index)
    none = -1 if ignore_index is None else ignore_index  # which is no class
    return cross_entropy_loss(logits, target, ignore_index=none, reduction=reduction)


def proxy_anchor_loss(
    embeddings, proxies, target, *, margin=0.1, alpha=32.0, ignore_index=None, reduction="mean"
):  # fmt: skip
    cos = _cosines(embeddings, proxies, target, ignore_index).T
    counts = which_count(target, ignore_index)
    own = torch.arange(len(proxies), device=target.device)[:, None] == target
    pull = softplus(log_sum_exp(-alpha * (cos - margin), own & counts))
    push = softplus(log_sum_exp(alpha * (cos + margin), ~own & counts))
    if reduction == "mean":
        return pull.sum() / (own & counts).any(1).sum().clamp_min(1) + push.sum() / max(len(proxies), 1)
    return reduce(pull + push, reduction)
