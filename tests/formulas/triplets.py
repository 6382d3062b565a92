"""Losses of triplets, given or of a batch, and the mined pairs of every anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .batches import Batch, nothing, reduced
from .scores import distances, double, number, softplus


def triplet_term(d_ap: Tensor, d_an: Tensor, margin: Tensor, soft_margin: bool) -> Tensor:
    z = d_ap - d_an + margin
    return softplus(z) if soft_margin else torch.relu(z)


def margin_of(margin: float | Tensor | None, soft_margin: bool, default: float) -> Tensor:
    """The margin as given, or the default of a hinge, or 0 for a soft margin."""
    if margin is not None:
        return number(margin)
    return number(0.0 if soft_margin else default)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | Tensor | None = None,
    *,
    metric: str = "euclidean",
    swap: bool = False,
    soft_margin: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    m = margin_of(margin, soft_margin, 1.0)
    terms = []
    for a, p, n in zip(double(anchor), double(positive), double(negative), strict=True):
        d_ap = distances(a, p, metric, shift=eps)
        d_an = distances(a, n, metric, shift=eps)
        if swap:
            d_an = torch.minimum(d_an, distances(p, n, metric, shift=eps))
        terms.append([triplet_term(d_ap, d_an, m, soft_margin)])
    return reduced(terms, reduction, nothing(anchor, positive, negative, margin))


Found = tuple[Tensor, int] | None  # a distance and the place of the other row; None where there is no such row


def first(places: list[int], d: Tensor, key: Callable[[float], float]) -> Found:
    """The distance and place with the least key, the first of several."""
    if not places:
        return None
    at = min(range(len(places)), key=lambda k: key(d[k].item()))
    return d[at], places[at]


def mined(batch: Batch, i: int, metric: str, positives: str, negatives: str) -> tuple[Found, Found]:
    """The selected positive and the selected negative of an anchor."""

    def nearest(d: float) -> float:
        return d

    def farthest(d: float) -> float:
        return -d

    d_pos = distances(batch.x[i], batch.y[batch.positives[i]], metric)
    d_neg = distances(batch.x[i], batch.y[batch.negatives[i]], metric)
    chosen = first(batch.positives[i], d_pos, {"hardest": farthest, "easiest": nearest}[positives])
    if negatives != "semihard":
        return chosen, first(batch.negatives[i], d_neg, {"hardest": nearest, "easiest": farthest}[negatives])
    if chosen is None:
        return None, None
    farther = [k for k in range(len(d_neg)) if d_neg[k] > chosen[0]]
    return chosen, first([batch.negatives[i][k] for k in farther], d_neg[farther], nearest)


class HardestPairs(NamedTuple):
    positive_distance: Tensor
    positive_index: Tensor
    negative_distance: Tensor
    negative_index: Tensor


def hardest_pairs(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    metric: str = "euclidean",
    positives: str = "hardest",
    negatives: str = "hardest",
) -> HardestPairs:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    found = [mined(batch, i, metric, positives, negatives) for i in range(len(batch.labels))]
    zero = nothing(embeddings, ref_embeddings)
    of_kind = []
    for kind in (0, 1):
        pairs = [pair[kind] for pair in found]
        apart = [zero + torch.nan if pair is None else zero + pair[0] for pair in pairs]
        of_kind.append(torch.stack(apart) if apart else zero.new_zeros(0) + zero)
        of_kind.append(torch.tensor([-1 if pair is None else pair[1] for pair in pairs], dtype=torch.int64))
    return HardestPairs(*of_kind)


def batch_hard_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    margin: float | Tensor | None = None,
    metric: str = "euclidean",
    soft_margin: bool = False,
    positives: str = "hardest",
    negatives: str = "hardest",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    m = margin_of(margin, soft_margin, 0.2)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        positive, negative = mined(batch, i, metric, positives, negatives)
        if positive is not None and negative is not None:
            terms[i].append(triplet_term(positive[0], negative[0], m, soft_margin))
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings, margin))


def batch_semihard_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    margin: float | Tensor = 0.2,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    terms: list[list[Tensor]] = [[] for _ in batch.labels]
    for i in batch.anchors:
        if not batch.negatives[i]:
            continue
        # By label, and by place within a label: of several at the same distance the first of them is taken.
        negatives = sorted(batch.negatives[i], key=lambda j: (batch.ref_labels[j], j))
        d_neg = distances(batch.x[i], batch.y[negatives], metric)
        known = d_neg.tolist()
        for d_ap in distances(batch.x[i], batch.y[batch.positives[i]], metric):
            farther = [k for k in range(len(known)) if known[k] > d_ap.item()]
            k = min(farther, key=known.__getitem__) if farther else known.index(max(known))
            terms[i].append(torch.relu(d_ap - d_neg[k] + number(margin)))
    return reduced(terms, reduction, nothing(embeddings, ref_embeddings, margin))


def batch_all_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ref_offset: int | None = None,
    ignore_index: int | None = None,
    margin: float | Tensor | None = None,
    metric: str = "euclidean",
    soft_margin: bool = False,
    triplets: str = "all",
    reduction: str = "mean",
) -> Tensor:
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    m = margin_of(margin, soft_margin, 0.2)
    zero = nothing(embeddings, ref_embeddings, margin)
    sums, counts = [], []  # of every anchor
    for i in range(len(batch.labels)):
        d_neg = distances(batch.x[i], batch.y[batch.negatives[i]], metric)
        cost, count = zero, 0
        for d_ap in distances(batch.x[i], batch.y[batch.positives[i]], metric):
            kinds = {
                "all": torch.ones(len(d_neg), dtype=torch.bool),
                "hard": d_neg <= d_ap,
                "semihard": (d_neg > d_ap) & (d_neg <= d_ap + m),
                "easy": d_neg > d_ap + m,
            }
            terms = triplet_term(d_ap, d_neg[kinds[triplets]], m, soft_margin)
            cost = cost + terms.sum()
            count += int((terms > 0).sum()) if reduction == "active" else len(terms)
        sums.append(cost)
        counts.append(count)
    if reduction == "none":
        return torch.stack(sums) if sums else zero.new_zeros(0) + zero
    return sum(sums, zero) / (1 if reduction == "sum" else max(sum(counts), 1))
