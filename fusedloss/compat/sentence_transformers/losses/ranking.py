"""Losses in which every query finds its document among the others of the batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as library
from sentence_transformers.util import (
    all_gather_with_grad,
    cos_sim,
    dot_score,
    euclidean_sim,
    get_rank,
    manhattan_sim,
)
from torch import Tensor
from typing_extensions import deprecated

from .... import checks, ops
from ....backends.dtypes import loss_dtype
from ....checks import Batch
from ....losses.reduce import softplus
from ....losses.triplets import hardest_pairs
from ...calls import NotFused, attempt
from .embeddings import OfCachedEmbeddings, OfEmbeddings, known, precision_of

# The score of each similarity, and its sign: a distance is the negative of a similarity.
SIMILARITIES = {
    cos_sim: ("similarity", 1.0),
    dot_score: ("dot", 1.0),
    euclidean_sim: ("euclidean", -1.0),
    manhattan_sim: ("manhattan", -1.0),
}


class MultipleNegativesRankingLoss(OfEmbeddings, library.MultipleNegativesRankingLoss):
    """The library's `MultipleNegativesRankingLoss` for any number of columns, in all directions, partitions and
    hardness modes, and with gathered batches. It is fused for the similarities of `sentence_transformers.util`, and
    exact even where a loss is below the last bit of the logits."""

    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        return ranking_loss(self, embeddings)


class CachedMultipleNegativesRankingLoss(OfCachedEmbeddings, library.CachedMultipleNegativesRankingLoss):
    """The library's `CachedMultipleNegativesRankingLoss`, fused as `MultipleNegativesRankingLoss` is: the loss of the
    whole batch is computed at once, in memory for the embeddings alone. It is one step, so there is no progress bar."""

    def _fused(self, embeddings: list[Tensor]) -> Tensor:
        return ranking_loss(self, embeddings)


OF_BOTH_DIRECTIONS = (
    "sentence-transformers will remove this loss: use {} with directions=('query_to_doc', 'doc_to_query') and "
    "partition_mode='per_direction'"
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # defining a subclass warns; here only making an instance does

    @deprecated(OF_BOTH_DIRECTIONS.format("MultipleNegativesRankingLoss"))
    class MultipleNegativesSymmetricRankingLoss(
        library.MultipleNegativesSymmetricRankingLoss, MultipleNegativesRankingLoss
    ):
        """The library's `MultipleNegativesSymmetricRankingLoss`, fused as `MultipleNegativesRankingLoss` is."""

    @deprecated(OF_BOTH_DIRECTIONS.format("CachedMultipleNegativesRankingLoss"))
    class CachedMultipleNegativesSymmetricRankingLoss(
        library.CachedMultipleNegativesSymmetricRankingLoss, CachedMultipleNegativesRankingLoss
    ):
        """The library's `CachedMultipleNegativesSymmetricRankingLoss`, fused as `CachedMultipleNegativesRankingLoss`
        is."""


Ranking = library.MultipleNegativesRankingLoss | library.CachedMultipleNegativesRankingLoss


class Hardness(NamedTuple):
    """How much the logits of negatives are raised, as a multiple of their similarity, a constant to the gradient."""

    in_batch: float = 0.0  # documents of other queries
    own: float = 0.0  # the query's own hard negatives

    @classmethod
    def of(cls, loss: Ranking) -> Hardness:
        strength, mode = loss.hardness_strength, loss.hardness_mode
        return cls(
            strength if mode in ("in_batch_negatives", "all_negatives") else 0.0,
            strength if mode in ("hard_negatives", "all_negatives") else 0.0,
        )


class Compared(NamedTuple):
    """The scores of rows with others, which are told apart by their places in the batch of all processes."""

    score: str
    sign: float
    scale: float

    def of(self, fold: str, hardness: float = 0.0) -> ops.Of:
        return ops.of(fold, scale=self.sign * (self.scale + hardness))

    def constant(self, log_sum: Tensor, hardness: float) -> Tensor:
        """The log sum exp of logits with this hardness, through which no gradient of the hardness flows: the gradient
        is scaled down to that of logits without it."""
        log_sum = log_sum.clamp(min=torch.finfo(log_sum.dtype).min / 2)  # without logits it is -inf
        return log_sum.detach().lerp(log_sum, self.scale / (self.scale + hardness)) if hardness else log_sum

    def others(self, x: Tensor, own: Tensor, y: Tensor, places: Tensor) -> Tensor:
        """The log sum exp of the logits of each row with the rows at other places. [N]"""
        if y is x:
            batch = Batch(x, None, own, own, 0, x_sorted=True)
        else:
            batch = Batch(x, y, own, places, None, x_sorted=True, y_sorted=True)
        (found,) = ops.fold(batch, "softmax", self.score, neg=self.of("lse"))
        return self.constant(found, 0.0)


def ranking_loss(loss: Ranking, embeddings: list[Tensor]) -> Tensor:
    """Cross entropy of each query's document among all candidates of the loss's directions; the mean over the queries.

    With one positive it is softplus(log sum exp of the negatives - the positive).
    """
    score, sign = known("similarity_fct", loss.similarity_fct, SIMILARITIES)
    scale = checks.number("scale", loss.scale, above=True)
    if len(embeddings) < 2:
        raise NotFused("there is one column")
    with precision_of(score, embeddings[0]):
        query, *docs = checks.same_rows([f"embeddings[{i}]" for i in range(len(embeddings))], embeddings)
        positive, negatives = competition(loss, Compared(score, sign, scale), query, docs)
    if loss.partition_mode == "per_direction":
        terms = torch.stack([softplus(log_sum(parts) - positive) for parts in negatives.values()]).mean(0)
    else:
        every = [part for parts in negatives.values() for part in parts]
        if "doc_to_query" in negatives:  # the document's own query is a candidate too
            every.append(positive)
        terms = softplus(log_sum(every) - positive)
    return terms.mean().to(loss_dtype(query))


def log_sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).logsumexp(0)


def competition(
    loss: Ranking, scores: Compared, query: Tensor, docs: list[Tensor]
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The positive logit of each query, and the log sum exp of its negatives in each direction. [N] each"""
    N, directions, hardness = len(query), loss.directions, Hardness.of(loss)
    queries, first = query, 0
    if loss.gather_across_devices:
        docs, first = [all_gather_with_grad(doc) for doc in docs], get_rank() * N
        if {"query_to_query", "doc_to_query"} & {*directions}:
            queries = all_gather_with_grad(query)
    doc = docs[0] if len(docs[0]) == N else docs[0][first : first + N]
    places = torch.arange(len(docs[0]), device=query.device)
    own = places[first : first + N]

    at_once = "doc_to_query" in directions and doc is docs[0] and not hardness.in_batch  # both ways in one pass
    batch = Batch(query, docs[0], own, places, None, x_sorted=True, y_sorted=True)
    pos, neg = scores.of("sum"), scores.of("lse", hardness.in_batch)
    positive, negative = ops.fold(batch, "softmax", scores.score, pos=pos, neg=neg, columns=at_once)
    negatives = {"query_to_doc": [scores.constant(negative[:N], hardness.in_batch)]}
    if len(docs) > 1:
        hard, of_query = side_by_side(docs[1:], places)
        batch = Batch(query, hard, own, of_query, None, x_sorted=True, y_sorted=True)
        pos = scores.of("lse", hardness.own)
        mine, theirs = ops.fold(batch, "softmax", scores.score, pos=pos, neg=neg)
        negatives["query_to_doc"] += [scores.constant(mine, hardness.own), scores.constant(theirs, hardness.in_batch)]
    if "query_to_query" in directions:
        negatives["query_to_query"] = [scores.others(query, own, queries, places)]
    if "doc_to_query" in directions:
        back = scores.constant(negative[N:], 0.0) if at_once else scores.others(doc, own, queries, places)
        negatives["doc_to_query"] = [back]
    if "doc_to_doc" in directions:
        negatives["doc_to_doc"] = [scores.others(doc, own, *side_by_side(docs, places))]
    return positive[:N], negatives


def side_by_side(docs: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
    """The documents with those of a query next to each other, and the places of their queries, which ascend."""
    if len(docs) == 1:
        return docs[0], places
    return torch.stack(docs, 1).flatten(0, 1), places.repeat_interleave(len(docs))


class UnfusedGIST:
    """Counts a call as not fused; among the bases it comes before the library's class."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        library = partial(super().forward, sentence_features, labels)  # type: ignore[misc]
        return attempt(type(self).__name__, guided, library)


def guided() -> Tensor:
    raise NotFused("the guide's similarities choose the negatives, pair by pair, and no fused loss takes such a choice")


class GISTEmbedLoss(UnfusedGIST, library.GISTEmbedLoss):
    """The library's `GISTEmbedLoss`, not fused: the similarities of its guide choose negatives pair by pair."""


class CachedGISTEmbedLoss(UnfusedGIST, library.CachedGISTEmbedLoss):
    """The library's `CachedGISTEmbedLoss`, not fused, for the same reason as `GISTEmbedLoss`."""


class MegaBatchMarginLoss(OfCachedEmbeddings, library.MegaBatchMarginLoss):
    """The library's `MegaBatchMarginLoss`: the hardest negatives are mined without the scores of the batch."""

    def _fused(self, embeddings: list[Tensor]) -> Tensor:
        anchors, positives = embeddings
        places = torch.arange(len(anchors), device=anchors.device)
        found = hardest_pairs(anchors, places, positives, places, metric="cosine")
        positive = F.relu(self.positive_margin - (1 - found.positive_distance))
        negative = F.relu(1 - found.negative_distance - self.negative_margin)
        return (positive + torch.where(found.negative_index >= 0, negative, 0.0)).mean()
