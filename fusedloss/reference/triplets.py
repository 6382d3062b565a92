"""Losses of triplets: given ones, mined ones, and all of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import mean_of, pairs_of, pairwise_distance, reduce, row_distance, softplus


class HardestPairs(NamedTuple):
    positive_distance: Tensor
    positive_index: Tensor
    negative_distance: Tensor
    negative_index: Tensor


def _margin(margin, default, soft_margin):
    return margin if margin is not None else 0.0 if soft_margin else default


def _hinge(gap, margin, soft_margin):
    return softplus(gap + margin) if soft_margin else F.relu(gap + margin)


def triplet_margin_loss(
    anchor,
    positive,
    negative,
    margin=None,
    *,
    metric="euclidean",
    swap=False,
    soft_margin=False,
    eps=1e-6,
    reduction="mean",
):
    d_ap, d_an = row_distance(anchor, positive, metric, eps), row_distance(anchor, negative, metric, eps)
    if swap:
        d_an = torch.minimum(d_an, row_distance(positive, negative, metric, eps))
    return reduce(_hinge(d_ap - d_an, _margin(margin, 1.0, soft_margin), soft_margin), reduction)


def hardest_pairs(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, metric="euclidean", positives="hardest", negatives="hardest",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)

    def extreme(mask, farthest):
        worst = -torch.inf if farthest else torch.inf
        candidates = d.detach().where(mask, d.new_tensor(worst))
        index = candidates.argmax(1) if farthest else candidates.argmin(1)  # the first on ties
        return torch.where(mask.any(1), index, -1)

    def at(index):
        distance = row_distance(x, refs[index.clamp_min(0)], metric)  # exact, not the expanded form
        return distance.where(index >= 0, distance.new_tensor(torch.nan))

    if d.numel() == 0:
        none = torch.full_like(labels, -1, dtype=torch.int64)
        nan = x.sum(1) * 0 + torch.nan
        return HardestPairs(nan, none, nan, none)
    positive = extreme(pos, positives == "hardest")
    if negatives == "semihard":
        neg = neg & (d > d.gather(1, positive.clamp_min(0)[:, None])) & (positive >= 0)[:, None]
    negative = extreme(neg, negatives == "easiest")
    return HardestPairs(at(positive), positive, at(negative), negative)


def batch_hard_triplet_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=None, metric="euclidean", soft_margin=False,
    positives="hardest", negatives="hardest", reduction="mean",
):  # fmt: skip
    mined = hardest_pairs(
        embeddings, labels, ref_embeddings, ref_labels,
        ref_offset=ref_offset, ignore_index=ignore_index, metric=metric, positives=positives, negatives=negatives,
    )  # fmt: skip
    counts = (mined.positive_index >= 0) & (mined.negative_index >= 0)
    gap = torch.where(counts, mined.positive_distance - mined.negative_distance, 0)
    terms = torch.where(counts, _hinge(gap, _margin(margin, 0.2, soft_margin), soft_margin), 0)
    return mean_of(terms, counts, reduction)


def batch_all_triplet_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=None, metric="euclidean", soft_margin=False, triplets="all",
    reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    gap = d[:, :, None] - d[:, None]  # d(a, p) - d(a, n)
    margin = _margin(margin, 0.2, soft_margin)
    bands = dict(hard=gap >= 0, semihard=(gap < 0) & (gap >= -margin), easy=gap < -margin)
    chosen = pos[:, :, None] & neg[:, None] & bands.get(triplets, True)
    terms = _hinge(gap, margin, soft_margin).where(chosen, gap.new_zeros(()))
    return mean_of(terms, chosen, reduction)


def batch_semihard_triplet_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=0.2, metric="sqeuclidean", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = pairs_of(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    if d.numel() == 0:
        return mean_of(d, pos, reduction)
    farther = neg[:, None] & (d[:, None] > d[:, :, None])  # than the positive [N, M, M]
    nearest = d[:, None].where(farther, d.new_tensor(torch.inf)).argmin(2)
    farthest = d.where(neg, d.new_tensor(-torch.inf)).argmax(1, keepdim=True)
    chosen = pos & neg.any(1, keepdim=True)
    d_an = d.gather(1, torch.where(farther.any(2), nearest, farthest))
    terms = F.relu(d - d_an + margin).where(chosen, d.new_zeros(()))
    return mean_of(terms, chosen, reduction)
