"""Losses of triplets: given ones, and those of a batch with labels."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as library
from sentence_transformers.sentence_transformer.losses import BatchHardTripletLossDistanceFunction as DistanceFunction
from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric
from torch import Tensor

from .... import checks
from ....losses.triplets import (
    batch_all_triplet_loss,
    batch_semihard_triplet_loss,
    hardest_pairs,
    triplet_margin_loss,
)
from ...calls import NotFused, attempt
from .embeddings import OfEmbeddings, dense, each_has_one, known, precision_of

InBatch = library.BatchHardTripletLoss | library.BatchAllTripletLoss | library.BatchSemiHardTripletLoss
IN_BATCH = {DistanceFunction.euclidean_distance: "euclidean", DistanceFunction.cosine_distance: "cosine"}
GIVEN = {
    TripletDistanceMetric.EUCLIDEAN: "euclidean",
    TripletDistanceMetric.COSINE: "cosine",
    TripletDistanceMetric.MANHATTAN: "manhattan",
}


class TripletLoss(OfEmbeddings, library.TripletLoss):
    """The library's `TripletLoss`; fused for the distances of `TripletDistanceMetric`."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        metric = known("distance_metric", self.distance_metric, GIVEN)
        anchor, positive, negative = embeddings
        return triplet_margin_loss(anchor, positive, negative, margin=self.triplet_margin, metric=metric, eps=0.0)


class BatchHardTripletLoss(library.BatchHardTripletLoss):
    """The library's `BatchHardTripletLoss`; fused for the distances of `BatchHardTripletLossDistanceFunction`.

    As in the library, the mean is over all anchors: one without a positive counts as if it had one at distance 0, and
    one without a negative costs the margin.
    """

    def batch_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        def ours() -> Tensor:
            gap = hardest_gap(self, labels, embeddings) + self.triplet_margin
            return gap.masked_fill(gap < 0, 0.0).mean()

        return attempt(type(self).__name__, ours, partial(super().batch_hard_triplet_loss, labels, embeddings))


class BatchHardSoftMarginTripletLoss(library.BatchHardSoftMarginTripletLoss):
    """The library's `BatchHardSoftMarginTripletLoss`; fused for the distances of
    `BatchHardTripletLossDistanceFunction`, with the mean of `BatchHardTripletLoss`."""

    def batch_hard_triplet_soft_margin_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        theirs = partial(super().batch_hard_triplet_soft_margin_loss, labels, embeddings)
        return attempt(type(self).__name__, lambda: F.softplus(hardest_gap(self, labels, embeddings)).mean(), theirs)


def hardest_gap(loss: library.BatchHardTripletLoss, labels: Tensor, embeddings: Tensor) -> Tensor:
    """How much farther the farthest positive of every anchor is than its nearest negative. [N]"""
    metric, labels = of_batch(loss, labels, embeddings)
    with precision_of(metric, embeddings):
        found = hardest_pairs(embeddings, labels, metric=metric)
    positive = torch.where(found.positive_index >= 0, found.positive_distance, 0.0)
    return torch.where(found.negative_index >= 0, positive - found.negative_distance, 0.0)


def of_batch(loss: InBatch, labels: Tensor, embeddings: Tensor) -> tuple[str, Tensor]:
    """The metric, and one label per row."""
    dense([embeddings])
    return known("distance_metric", loss.distance_metric, IN_BATCH), each_has_one(labels, embeddings)


class BatchAllTripletLoss(library.BatchAllTripletLoss):
    """The library's `BatchAllTripletLoss`; fused for the distances of `BatchHardTripletLossDistanceFunction`.

    A triplet that exactly keeps its margin has gradient 0 here; in the library it has that of an active triplet.
    """

    def batch_all_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        def ours() -> Tensor:
            metric, classes = of_batch(self, labels, embeddings)
            margin = self.triplet_margin
            with precision_of(metric, embeddings):
                return batch_all_triplet_loss(embeddings, classes, margin=margin, metric=metric, reduction="active")

        return attempt(type(self).__name__, ours, partial(super().batch_all_triplet_loss, labels, embeddings))


class BatchSemiHardTripletLoss(library.BatchSemiHardTripletLoss):
    """The library's `BatchSemiHardTripletLoss`; fused for the distances of `BatchHardTripletLossDistanceFunction`.

    A batch of one class has no negatives, and the library then takes negatives at distance 0. On a GPU, where a check
    of the labels would wait for the device, the loss of such a batch is 0 here. Among negatives at the same distance
    the one of the lowest label receives the gradient; in the library it is the first one.
    """

    def batch_semi_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        def ours() -> Tensor:
            metric, classes = of_batch(self, labels, embeddings)
            if checks.readable(classes) and bool((classes == classes[:1]).all()):
                raise NotFused("the batch has one class, so no negatives")
            with precision_of(metric, embeddings):
                return batch_semihard_triplet_loss(embeddings, classes, margin=self.margin, metric=metric)

        return attempt(type(self).__name__, ours, partial(super().batch_semi_hard_triplet_loss, labels, embeddings))
