"""The losses of triplets of a batch, by labels or as a miner listed them."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as library
from pytorch_metric_learning import reducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ... import ops
from ...losses.reduce import reduce
from ..calls import NotFused
from .compared import AllPairs, ByLabels, Compared, Indices, compared
from .fused import Fused, Losses, labelled, not_countable
from .reducing import Loss, Sums, reduced, reducer_of, summed, zero


class OfTriplets(Fused):
    """A loss of triplets."""

    triplets_per_anchor: int | str

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Indices | AllPairs | None, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Losses:  # fmt: skip
        c = compared(self.distance, embeddings, ref_emb)
        self.refuse(c)
        if indices is None and self.triplets_per_anchor != "all":
            if labels is None:
                raise NotFused("neither labels nor indices_tuple")
            indices = lmu.get_random_triplet_indices(labels, ref_labels, t_per_anchor=self.triplets_per_anchor)
        if indices is None or isinstance(indices, AllPairs):
            given = labelled(c, labels, indices, ref_labels)
            assert labels is not None
            return self.by_labels(given, labels)
        a, p, n = joined(c.placed(indices), c.x.shape[0])
        if not a.shape[0]:
            return {name: zero() for name in self.sub_loss_names()}  # type: ignore[attr-defined]
        return self.listed(c, (a, p, n), labels)

    def refuse(self, c: Compared) -> None:
        """Raise `NotFused` for what is never fused, before any triplets are drawn."""

    @abstractmethod
    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses: ...

    @abstractmethod
    def listed(self, c: Compared, triplets: tuple[Tensor, Tensor, Tensor], labels: Tensor | None) -> Losses: ...


def joined(indices: Indices, N: int) -> Indices:
    """Triplets of every listed positive pair with the negatives that are listed for its anchor, in that order."""
    if len(indices) == 3:
        return indices
    a1, p, a2, n = indices
    known, order = a2.sort(stable=True)
    ends = torch.searchsorted(known, torch.arange(N, device=known.device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    of_pair = counts[a1]
    pair = torch.arange(a1.shape[0], device=a1.device).repeat_interleave(of_pair)
    place = torch.arange(pair.shape[0], device=a1.device) - (of_pair.cumsum(0) - of_pair)[pair]
    return a1[pair], p[pair], n[order[(ends - counts)[a1[pair]] + place]]


class TripletMarginLoss(OfTriplets, library.TripletMarginLoss):
    """Triplet loss: fused by labels, for all triplets or a number drawn per anchor, and for listed triplets.

    If a loss is NaN, the value is NaN here; the library's default reducer drops it, so that only gradients are NaN.
    """

    def refuse(self, c: Compared) -> None:
        if self.swap and c.y is not None:
            raise NotFused("swap with references, for which the library takes rows of the batch")

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        metric, _ = given.compared.metric()
        if self.swap:
            raise NotFused("swap of all triplets of a batch")
        if self.margin < 0:
            raise NotFused("a margin below 0")
        reducer = reducer_of(self, "loss")
        counted = "active" if type(reducer) is reducers.AvgNonZeroReducer else "chosen"
        terms, count = ops.fold_triplets(given.batch, float(self.margin), metric, "all", self.smooth_loss, counted)
        sums = Sums(terms, count.detach(), count.detach)
        return {"loss": summed(reducer, sums, given.batch.x, labels, triplets=True)}

    def listed(self, c: Compared, triplets: tuple[Tensor, Tensor, Tensor], labels: Tensor | None) -> Losses:
        a, p, n = triplets
        d_ap, d_an = c.of_pairs(a, p), c.of_pairs(a, n)
        if self.swap:
            d_an = self.distance.smallest_dist(d_an, c.of_pairs(p, n))
        gap = self.distance.margin(d_ap, d_an) + self.margin
        losses = F.softplus(gap) if self.smooth_loss else F.relu(gap)
        return {"loss": {"losses": losses, "indices": triplets, "reduction_type": "triplet"}}


class MarginLoss(OfTriplets, library.MarginLoss):
    """Margin loss with a boundary that may be learned, one for all classes or one per class: fused by labels and for
    listed triplets."""

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        x, positives, negatives = given.batch.x, given.positives, given.negatives
        beta = self.of_anchors(labels, x)
        metric, (boundary,) = given.compared.metric(beta)
        pos, neg = (ops.of("sum", "sum", margin=m) for m in (-self.margin, self.margin))
        far, too_far, near, too_near = ops.fold(
            given.batch, "linear_contrastive", metric, pos=pos, neg=neg, offsets=-boundary.expand(x.shape[0]),
            offsets_of="rows",
        )  # fmt: skip
        # A pair is part of as many triplets as its anchor has pairs of the other kind.
        terms, triplets = negatives * far + positives * near, positives * negatives
        divisor = (negatives * too_far + positives * too_near).detach().sum()
        losses = {"margin_loss": self.divided("margin_loss", terms, triplets, divisor, x, labels)}
        if not self.learn_beta:
            losses["beta_reg_loss"] = zero()
        elif self.beta.shape[0] == 1:
            losses["beta_reg_loss"] = reduced((beta * self.nu).where(triplets.sum() > 0, 0.0))
        else:
            losses["beta_reg_loss"] = self.divided(
                "beta_reg_loss", beta * self.nu * triplets, triplets, divisor, x, labels
            )  # fmt: skip
        return losses

    def divided(
        self, part: str, terms: Tensor, triplets: Tensor, divisor: Tensor, x: Tensor, labels: Tensor
    ) -> Loss:  # fmt: skip
        """What the reducer of a part of the loss makes of the sums of every anchor's triplets."""
        reducer = reducer_of(self, part)
        if type(reducer) is reducers.DivisorReducer:
            return reduced(reduce(terms, "mean", divisor, x))
        return summed(reducer, Sums(terms, triplets, not_countable), x, labels, triplets=True)

    def of_anchors(self, labels: Tensor | None, x: Tensor) -> Tensor:
        """The boundary, [1] for all anchors or [N]."""
        beta: Tensor = self.beta
        if beta.shape[0] > 1:
            if labels is None:
                raise NotFused("a boundary of each class without labels")
            beta = beta[labels.to(beta.device)]
        return beta.to(x)

    def listed(self, c: Compared, triplets: tuple[Tensor, Tensor, Tensor], labels: Tensor | None) -> Losses:
        a, p, n = triplets
        beta = self.of_anchors(labels, c.x)
        beta = beta if beta.shape[0] == 1 else beta[a]
        above = F.relu(self.distance.margin(c.of_pairs(a, p), beta) + self.margin)
        below = F.relu(self.distance.margin(beta, c.of_pairs(a, n)) + self.margin)
        divisor = (above > 0).sum() + (below > 0).sum()
        loss = {"losses": above + below, "indices": triplets, "reduction_type": "triplet", "divisor": divisor}
        return {"margin_loss": loss, "beta_reg_loss": self.compute_reg_loss(beta, a, divisor)}
