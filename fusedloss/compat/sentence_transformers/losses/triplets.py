"""Losses of triplets: given ones, and those of a batch with labels."""

from __future__ import annotations

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
from ...calls import NotFused
from .embeddings import OfEmbeddings, each_has_one, known, precision_of

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


class BatchHardTripletLoss(OfEmbeddings, library.BatchHardTripletLoss):
    """The library's `BatchHardTripletLoss`; fused for the distances of `BatchHardTripletLossDistanceFunction`.

    As there the mean is over all anchors: one without a positive has one at distance 0, and one without a negative
    costs the margin.
    """

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        gap = hardest_gap(self, embeddings[0], labels) + self.triplet_margin
        return gap.masked_fill(gap < 0, 0.0).mean()


class BatchHardSoftMarginTripletLoss(OfEmbeddings, library.BatchHardSoftMarginTripletLoss):
    """The library's `BatchHardSoftMarginTripletLoss`; fused for the distances of
    `BatchHardTripletLossDistanceFunction`, with the mean of `BatchHardTripletLoss`."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        return F.softplus(hardest_gap(self, embeddings[0], labels)).mean()


def hardest_gap(loss: library.BatchHardTripletLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    """How much farther the farthest positive of every anchor is than its nearest negative. [N]"""
    metric = known("distance_metric", loss.distance_metric, IN_BATCH)
    with precision_of(metric, embeddings):
        found = hardest_pairs(embeddings, each_has_one(labels, embeddings), metric=metric)
    positive = torch.where(found.positive_index >= 0, found.positive_distance, 0.0)
    return torch.where(found.negative_index >= 0, positive - found.negative_distance, 0.0)


class BatchAllTripletLoss(OfEmbeddings, library.BatchAllTripletLoss):
    """The library's `BatchAllTripletLoss`; fused for the distances of `BatchHardTripletLossDistanceFunction`.

    A triplet that is exactly as far as its margin has gradient 0, that of an active one there.
    """

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        metric = known("distance_metric", self.distance_metric, IN_BATCH)
        rows, labels = embeddings[0], each_has_one(labels, embeddings[0])
        with precision_of(metric, rows):
            return batch_all_triplet_loss(rows, labels, margin=self.triplet_margin, metric=metric, reduction="active")


class BatchSemiHardTripletLoss(OfEmbeddings, library.BatchSemiHardTripletLoss):
    """The library's `BatchSemiHardTripletLoss`; fused for the distances of `BatchHardTripletLossDistanceFunction`.

    A batch of one class has no negatives. The library then takes negatives at distance 0; on a GPU, where looking at
    the labels would wait for them, the loss is 0 here. Of negatives at the same distance that of the lowest label has
    the gradient, there the first.
    """

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        metric = known("distance_metric", self.distance_metric, IN_BATCH)
        rows, labels = embeddings[0], each_has_one(labels, embeddings[0])
        if checks.readable(labels) and bool((labels == labels[:1]).all()):
            raise NotFused("the batch has one class, so no negatives")
        with precision_of(metric, rows):
            return batch_semihard_triplet_loss(rows, labels, margin=self.margin, metric=metric)
