"""Losses of given pairs, of their distances, their similarities or the order of the similarities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as library
from sentence_transformers.sentence_transformer.losses import SiameseDistanceMetric
from sentence_transformers.util import (
    pairwise_angle_sim,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
)
from torch import Tensor

from .... import checks, ops
from ....backends.dtypes import loss_dtype
from ....losses.pairs import in_order
from ...calls import NotFused
from .embeddings import OfEmbeddings, each_has_one, known

DISTANCES = {
    SiameseDistanceMetric.EUCLIDEAN: "euclidean",
    SiameseDistanceMetric.MANHATTAN: "manhattan",
    SiameseDistanceMetric.COSINE_DISTANCE: "cosine",
}
EPS = 1e-6  # which torch.nn.functional.pairwise_distance adds to differences


def compared(embeddings: list[Tensor], metric: str, eps: float = 0.0) -> Tensor:
    """The distance or similarity of every pair by the metric. [N]"""
    if len(embeddings) != 2:
        raise NotFused("there are not two columns")
    x, y = checks.given_rows(("embeddings[0]", "embeddings[1]"), embeddings)
    return ops.row_distances(x, y, None, metric, eps)[0]


class ContrastiveLoss(OfEmbeddings, library.ContrastiveLoss):
    """The library's `ContrastiveLoss`; fused for the distances of `SiameseDistanceMetric`, with labels of any value."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        labels, d = labels_and_distances(self, embeddings, labels)
        hinge = F.relu(self.margin - d)
        losses = 0.5 * (labels.float() * d.square() + (1 - labels).float() * hinge.square())
        return losses.mean() if self.size_average else losses.sum()


class OnlineContrastiveLoss(OfEmbeddings, library.OnlineContrastiveLoss):
    """The library's `OnlineContrastiveLoss`; fused for the distances of `SiameseDistanceMetric`."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        labels, d = labels_and_distances(self, embeddings, labels)
        if not d.shape[0]:
            raise NotFused("the batch is empty")
        similar, dissimilar = labels == 1, labels == 0
        farthest = torch.where(similar.any(), d.where(similar, -torch.inf).amax(), mean_of(d, dissimilar))
        nearest = torch.where(dissimilar.any(), d.where(dissimilar, torch.inf).amin(), mean_of(d, similar))
        positive = d.square().where(similar & (d > nearest), 0.0)
        negative = F.relu(self.margin - d).square().where(dissimilar & (d < farthest), 0.0)
        return positive.sum() + negative.sum()


def mean_of(d: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen distances; NaN if none is chosen."""
    return d.where(chosen, 0.0).sum() / chosen.sum()


def labels_and_distances(
    loss: library.ContrastiveLoss | library.OnlineContrastiveLoss, embeddings: list[Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The label and the distance of every pair. [N] each"""
    metric = known("distance_metric", loss.distance_metric, DISTANCES)
    labels = each_has_one(labels, embeddings[0])
    if not loss._checked_labels and bool(((labels != 0) & (labels != 1)).any()):
        raise NotFused("the library warns of the first labels, which are not 0 and 1")
    loss._checked_labels = True
    return labels, compared(embeddings, metric, EPS)


class CosineSimilarityLoss(OfEmbeddings, library.CosineSimilarityLoss):
    """The library's `CosineSimilarityLoss`: its cosines are fused, whatever functions are applied to them."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        target = each_has_one(labels.float(), embeddings[0])
        loss: Tensor = self.loss_fct(self.cos_score_transformation(compared(embeddings[:2], "similarity")), target)
        return loss


def angle(embeddings: list[Tensor]) -> Tensor:
    """`pairwise_angle_sim`: |cos + sin| of halves that are the parts of complex numbers.

    Both are products with the second row: of the first row, and of the first row turned by a right angle. The sum of
    these two is the first row turned by half a right angle, times the square root of 2.
    """
    x, y = checks.given_rows(("embeddings[0]", "embeddings[1]"), embeddings)
    if x.shape[1] % 2:
        x, y = F.pad(x, (0, 1)), F.pad(y, (0, 1))
    real, imaginary = x.to(loss_dtype(x)).chunk(2, dim=1)
    turned = torch.cat([real + imaginary, imaginary - real], dim=1)
    return math.sqrt(2) * compared([turned, y.to(turned.dtype)], "similarity").abs()


SIMILARITIES: dict[Any, Callable[[list[Tensor]], Tensor]] = {
    pairwise_cos_sim: lambda embeddings: compared(embeddings, "similarity"),
    pairwise_dot_score: lambda embeddings: compared(embeddings, "dot"),
    pairwise_euclidean_sim: lambda embeddings: -compared(embeddings, "euclidean"),
    pairwise_manhattan_sim: lambda embeddings: -compared(embeddings, "manhattan"),
    pairwise_angle_sim: angle,
}


class CoSENTLoss(OfEmbeddings, library.CoSENTLoss):
    """The library's `CoSENTLoss`; fused for the library's pairwise similarities, and exact even where it is below the
    last bit of 1."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        similarity = known("similarity_fct", self.similarity_fct, SIMILARITIES)
        labels = each_has_one(labels, embeddings[0])
        scores = similarity(embeddings[:2])
        return in_order(scores, checks.grades(labels, scores), self.scale)


class AnglELoss(library.AnglELoss, CoSENTLoss):
    """The library's `AnglELoss` for pairs with labels and for tuples: the order of angles, as in `CoSENTLoss`."""
