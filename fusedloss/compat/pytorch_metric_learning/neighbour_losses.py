"""Losses of the place of an anchor's positives among its neighbours."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses as library
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ...losses import closings, softmax
from ...losses.ranking import smooth_ap_loss
from ..calls import NotFused
from .compared import AllPairs, ByLabels, Indices, compared
from .fused import Fused, Losses, of_cosines, refuse_above_zero
from .reducing import elements, zero


class NCALoss(Fused, library.NCALoss):
    """NCA: fused by labels, with or without the weights of an indices_tuple, for every reducer.

    A batch without any positive pair costs 0; in the library its loss is NaN. An anchor whose probability is below the
    smallest float counts here; the library leaves it out.
    """

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Indices | AllPairs | None, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Losses:  # fmt: skip
        if embeddings.shape[0] <= 1:
            return {"loss": zero()}
        if labels is None or ref_labels is None:
            raise NotFused("no labels")
        refuse_above_zero(self.reducer)
        own = ref_emb is embeddings
        if own and ref_labels is not labels:
            raise NotFused("labels of their own for the same rows")
        listed = None if isinstance(indices, AllPairs) else indices  # every anchor has equally many of them
        return self.neighbours(embeddings, ref_emb, labels, ref_labels, listed)

    def neighbours(
        self, embeddings: Tensor, refs: Tensor, labels: Tensor, ref_labels: Tensor, indices: Indices | None
    ) -> Losses:  # fmt: skip
        c = compared(self.distance, embeddings, refs)
        given = ByLabels(c, labels, ref_labels, 0 if c.y is None else None)
        ((terms, counts),) = closings.nca(given.fold("softmax", **softmax.nca_folds(c.sign * self.softmax_scale)))
        weights = lmu.convert_to_weights(indices, labels, dtype=terms.dtype, using_ref=c.y is not None)
        assert counts is not None
        counted = counts.nonzero()[:, 0]
        if not counted.shape[0]:
            return {"loss": zero()}
        return {"loss": elements((terms * weights)[counted].to(c.loss_dtype), counted)}


class SmoothAPLoss(Fused, library.SmoothAPLoss):
    """Smooth-AP, which counts an anchor among its own positives, as the library does.

    The rows of a class may be anywhere in the batch. The library assumes that they are neighbours, and takes the number
    of classes for their size: its value is right only if there are as many classes as rows in each.
    """

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Losses:  # fmt: skip
        labels = of_cosines(self, embeddings, labels, ref_emb, ref_labels)
        if labels.unique(return_counts=True)[1].unique().shape[0] != 1:
            raise NotFused("classes of different sizes")
        terms = smooth_ap_loss(
            embeddings, labels, embeddings, labels, temperature=float(self.temperature), reduction="none"
        )  # fmt: skip
        return {"ap_loss": elements(terms * lmu.convert_to_weights(indices, labels, dtype=terms.dtype))}
