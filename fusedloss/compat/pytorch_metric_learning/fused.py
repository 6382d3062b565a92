"""The base of the library's losses that compute with fusedloss where they can, and what they refuse."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pytorch_metric_learning import reducers
from torch import Tensor

from ..calls import NotFused, attempt
from .compared import AllPairs, ByLabels, Compared, Indices, score_of
from .reducing import Loss

Losses = dict[str, Loss]  # by the name of a part of the loss


class Fused:
    """A base class to put before a loss of the library; it computes with fusedloss where that gives the same value."""

    distance: Any
    reducer: Any
    collect_stats: bool

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Indices | AllPairs | None, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Losses:  # fmt: skip
        library = super().compute_loss  # type: ignore[misc]

        def ours() -> Losses:
            if self.collect_stats:
                raise NotFused("the loss collects stats")
            return self.fused(embeddings, labels, indices_tuple, ref_emb, ref_labels)

        def theirs() -> Losses:
            listed = indices_tuple
            if isinstance(listed, AllPairs):
                assert labels is not None and ref_labels is not None
                listed = listed.listed(labels, ref_labels)
            found: Losses = library(embeddings, labels, listed, ref_emb, ref_labels)
            return found

        return attempt(type(self).__name__, ours, theirs)

    @abstractmethod
    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Indices | AllPairs | None, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Losses:  # fmt: skip
        """The losses as the library's `compute_loss` returns them; it may raise `NotFused`."""


def labelled(c: Compared, labels: Tensor | None, indices: AllPairs | None, ref_labels: Tensor | None) -> ByLabels:
    """The pairs of a batch by the library's rule: a row is not paired with itself if both labels are one tensor."""
    if labels is None or ref_labels is None:
        raise NotFused("neither labels nor indices_tuple, or references without labels")
    own = 0 if ref_labels is labels else None
    return ByLabels(c, labels, ref_labels, own if indices is None else indices.first)


ROUNDED = "a reducer of losses above 0, of a softmax: the library's are 0 or not by their rounding"


def not_countable() -> Tensor:
    raise NotFused(ROUNDED)


def refuse_above_zero(reducer: Any) -> None:
    """Refuse a reducer of losses above 0, for losses of a softmax, which are never 0 here."""
    for part in reducer.modules():
        if isinstance(part, reducers.ThresholdReducer) and part.low is not None and part.low <= 0:
            raise NotFused(ROUNDED)


def of_batch(x: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None) -> Tensor:
    """The labels of a loss that takes no references."""
    if labels is None or ref_emb is not x or ref_labels is not labels:
        raise NotFused("no labels, or references")
    return labels


def of_cosines(loss: Any, x: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None) -> Tensor:
    """`of_batch` for a loss of cosines whose values are never 0 here."""
    labels = of_batch(x, labels, ref_emb, ref_labels)
    refuse_above_zero(loss.reducer)
    if score_of(loss.distance) != "similarity":
        raise NotFused("a distance that is no cosine")
    return labels
