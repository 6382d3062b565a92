"""Losses of embeddings and the rows of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import root, similarities, where_counted, which_count
from .logits import cross_entropy_loss, left_out, mean_of_classes, modulation, own_class


def linear_cross_entropy_loss(
    embeddings, weight, target, *,
    bias=None, gamma=0.0, class_weight=None, z_loss=0.0, softcap=None, ignore_index=-100, label_smoothing=0.0,
    reduction="mean",
):  # fmt: skip
    logits = left_out(embeddings, target, ignore_index) @ weight.T + (0 if bias is None else bias)
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    own = own_class(target, len(weight), ignore_index)
    terms = cross_entropy_loss(
        logits, target, weight=class_weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
        reduction="none",
    )  # fmt: skip
    terms = modulation(logits, own, gamma) * terms if gamma else terms
    weights = own if class_weight is None else class_weight * own
    squares = z_loss * logits.logsumexp(1).square().where(own.any(1), 0)
    return mean_of_classes(terms, weights.sum(1), reduction) + mean_of_classes(squares, own.sum(1), reduction)


def cosines(embeddings, weight, target, ignore_index):
    """The cosines to every class, or to the nearest of its sub-centers; ignored rows are replaced by ones."""
    x = where_counted(embeddings, which_count(target, ignore_index))
    if weight.dim() == 2:
        return similarities(x, weight, "cosine")
    return similarities(x, weight.flatten(0, 1), "cosine").unflatten(1, weight.shape[:2]).max(2).values


def _margin_softmax(cos, own_logit, scale, target, ignore_index, options):
    """Cross entropy of scaled cosines, in which the logit of the own class is replaced."""
    own = own_class(target, cos.shape[1], ignore_index)
    logits = torch.where(own, own_logit, scale * cos)
    weight, smoothing, reduction = options
    return cross_entropy_loss(
        logits, target, weight=weight, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction
    )  # fmt: skip


def arcface_loss(
    embeddings, weight, target, *,
    margin=0.5, scale=64.0, ignore_index=-100, class_weight=None, label_smoothing=0.0, sub_centers=1, reduction="mean",
):  # fmt: skip
    cos = cosines(embeddings, weight, target, ignore_index)
    m = margin if isinstance(margin, Tensor) else cos.new_tensor(margin)
    m = m[:, None] if m.dim() == 1 and len(m) > 1 else m
    within = (cos >= -m.cos()) | (m < 0)
    shifted = torch.where(within, cos * m.cos() - root(1 - cos.square()) * m.sin(), cos - m * m.sin())
    options = class_weight, label_smoothing, reduction
    return _margin_softmax(cos, scale * shifted, scale, target, ignore_index, options)


def cosface_loss(
    embeddings, weight, target, *,
    margin=0.35, scale=64.0, ignore_index=-100, class_weight=None, label_smoothing=0.0, sub_centers=1,
    reduction="mean",
):  # fmt: skip
    cos = cosines(embeddings, weight, target, ignore_index)
    m = margin[:, None] if isinstance(margin, Tensor) and margin.dim() == 1 and len(margin) > 1 else margin
    options = class_weight, label_smoothing, reduction
    return _margin_softmax(cos, scale * (cos - m), scale, target, ignore_index, options)


def normalized_softmax_loss(
    embeddings, weight, target, *,
    temperature=0.05, ignore_index=-100, class_weight=None, label_smoothing=0.0, sub_centers=1, reduction="mean",
):  # fmt: skip
    logits = cosines(embeddings, weight, target, ignore_index) / temperature
    return _margin_softmax(logits, logits, 1.0, target, ignore_index, (class_weight, label_smoothing, reduction))
