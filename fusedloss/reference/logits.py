"""Losses of given logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .common import reduce


def mean_of_classes(terms, weights, reduction):
    """Reduced terms of rows; the mean is by their weights, 0 for a row that does not count."""
    if reduction == "none":
        return terms
    total = weights.sum()
    return terms.sum() / (1 if reduction == "sum" else total.where(total != 0, torch.ones_like(total)))


def own_class(target, C, ignore_index=None):
    """One-hot classes of the rows, all 0 for a row that does not count. [N, C, d1, ...]"""
    counted = target != ignore_index if ignore_index is not None else torch.ones_like(target, dtype=torch.bool)
    return (F.one_hot(target.where(counted, 0).long(), C).movedim(-1, 1) * counted.unsqueeze(1)).bool()


def left_out(x, target, ignore_index):
    """Rows x with zeros in place of rows that do not count, whatever those hold. [N, C, d1, ...]"""
    return x.masked_fill((target == ignore_index).unsqueeze(1), 0)


def cross_entropy_loss(
    logits, target, weight=None, *, ignore_index=-100, label_smoothing=0.0, overwrite_logits=False, reduction="mean",
):  # fmt: skip
    C = logits.shape[1]
    w = (logits.new_ones(C) if weight is None else weight).view(1, C, *[1] * (logits.dim() - 2))
    if target.is_floating_point():
        q = target
        weights = smooth = torch.ones_like(logits[:, 0]).detach()
    else:
        logits = left_out(logits, target, ignore_index)
        q = own_class(target, C, ignore_index).to(logits.dtype)
        weights, smooth = (w * q).sum(1), q.sum(1)
    share = w * ((1 - label_smoothing) * q + label_smoothing / C * smooth.unsqueeze(1))
    log_p = logits.log_softmax(1)
    log_p = log_p.masked_fill((share == 0) & (logits == -torch.inf), 0)  # costs nothing
    terms = -(share * log_p).sum(1)
    return mean_of_classes(terms, weights, reduction)


def modulation(logits, own, gamma):
    """(1 - p)^gamma of the own class."""
    return (1 - (logits.softmax(1) * own).sum(1)) ** gamma


def focal_loss(
    logits, target, *, gamma=2.0, weight=None, ignore_index=-100, overwrite_logits=False, reduction="mean"
):  # fmt: skip
    logits, own = left_out(logits, target, ignore_index), own_class(target, logits.shape[1], ignore_index)
    terms = cross_entropy_loss(logits, target, weight=weight, ignore_index=ignore_index, reduction="none")
    w = 1 if weight is None else weight.view(1, -1, *[1] * (logits.dim() - 2))
    return mean_of_classes(modulation(logits, own, gamma) * terms, (w * own).sum(1), reduction)


def binary_cross_entropy_loss(
    logits, target, weight=None, *, pos_weight=None, overwrite_logits=False, reduction="mean"
):  # fmt: skip
    pw = 1 if pos_weight is None else pos_weight
    yes, no = (F.logsigmoid(z).masked_fill((t == 0) & (z == -torch.inf), 0) * t for z, t in (
        (logits, target), (-logits, 1 - target)
    ))  # fmt: skip
    terms = -(pw * yes + no)
    return reduce((terms if weight is None else weight * terms).flatten(), reduction).view(
        logits.shape if reduction == "none" else ()
    )


def sigmoid_focal_loss(
    logits, target, alpha=0.25, gamma=2.0, reduction="mean", *, overwrite_logits=False
):  # fmt: skip
    one_minus_p_t = logits.sigmoid() * (1 - target) + (-logits).sigmoid() * target
    alpha_t = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1
    entropy = binary_cross_entropy_loss(logits, target, reduction="none")
    terms = (alpha_t * one_minus_p_t**gamma * entropy).flatten()
    return reduce(terms, reduction).view(logits.shape if reduction == "none" else ())
