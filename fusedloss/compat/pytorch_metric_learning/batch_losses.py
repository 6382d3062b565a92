"""The losses of a batch: of its pairs and triplets, by labels or as a miner listed them."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as library
from pytorch_metric_learning import reducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ... import ops
from ...losses import softmax, structured
from ...losses.ranking import smooth_ap_loss
from ...losses.reduce import reduce, softplus
from ..calls import NotFused, attempt
from .compared import AllPairs, ByLabels, Compared, Indices, Listed, compared, score_of
from .reducing import Loss, Sums, elements, reduced, reducer_of, summed, zero

Losses = dict[str, Loss]  # by the names of a loss's parts


class Fused:
    """Before a loss of the library: computes with fusedloss where that can be the same."""

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
        """The losses as the library's `compute_loss` gives them, or `NotFused`."""


def labelled(c: Compared, labels: Tensor | None, indices: AllPairs | None, ref_labels: Tensor | None) -> ByLabels:
    """The pairs of a batch, by the library's rule: a row is no pair of itself if both labels are the same tensor."""
    if labels is None or ref_labels is None:
        raise NotFused("neither labels nor indices_tuple, or references without labels")
    own = 0 if ref_labels is labels else None
    return ByLabels(c, labels, ref_labels, own if indices is None else indices.first)


class OfPairs(Fused):
    """A loss of pairs."""

    once = False  # whether a pair that is listed twice is one

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Indices | AllPairs | None, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Losses:  # fmt: skip
        c = compared(self.distance, embeddings, ref_emb)
        listed = () if indices is None or isinstance(indices, AllPairs) else lmu.convert_to_pairs(indices, None)
        if not embeddings.shape[0] or (listed and all(len(index) <= 1 for index in listed)):
            return {name: zero() for name in self.parts()}  # the library has no loss of one pair
        if listed:
            return self.listed(Listed.once(c, listed) if self.once else Listed(c, listed))
        given = labelled(c, labels, indices if isinstance(indices, AllPairs) else None, ref_labels)
        assert labels is not None
        losses = self.by_labels(given, labels)
        enough = (given.counts[0] > 1) | (given.counts[1] > 1)
        return {name: {**loss, "losses": loss["losses"].where(enough, 0.0)} for name, loss in losses.items()}

    def parts(self) -> list[str]:
        names: list[str] = self._sub_loss_names()  # type: ignore[attr-defined]
        return names

    @abstractmethod
    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses: ...

    @abstractmethod
    def listed(self, given: Listed) -> Losses: ...


class OfRows(OfPairs):
    """A loss of pairs that has one value an anchor."""

    once = True

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        return self.listed(given)

    def listed(self, given: ByLabels | Listed) -> Losses:
        return {"loss": elements(self.terms(given).to(given.compared.loss_dtype))}

    @abstractmethod
    def terms(self, given: ByLabels | Listed) -> Tensor: ...


class ContrastiveLoss(OfPairs, library.ContrastiveLoss):
    """Contrastive loss: fused by labels and of listed pairs."""

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        metric, margins = given.compared.metric(self.pos_margin, self.neg_margin)
        pos, neg = (ops.of("sum", "sum", margin=margin) for margin in margins)
        states = ops.fold(given.batch, "linear_contrastive", metric, pos=pos, neg=neg)
        kinds = {"pos_loss": (*states[:2], given.positives), "neg_loss": (*states[2:], given.negatives)}
        return {
            name: summed(
                reducer_of(self, name), Sums(terms, counts, partial(Tensor.detach, active)), given.batch.x, labels
            )
            for name, (terms, active, counts) in kinds.items()
        }

    def listed(self, given: Listed) -> Losses:
        losses: Losses = self._compute_loss(given.pos.scores, given.neg.scores, given.indices)
        return losses


class NTXentLoss(OfPairs, library.NTXentLoss):
    """NT-Xent: fused by labels, where the reducer wants no single pairs but their sums, and of listed pairs.

    The library's value is at most -log of the smallest float of the dtype, 87 in float32 and 9.7 in float16, and its
    gradient 0 there; this one's is right.
    """

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        c, batch = given.compared, given.batch
        scale = c.sign / self.temperature
        terms = softmax.nt_xent_sums(partial(ops.fold, batch, metric=c.score), scale)[0]
        sums = Sums(terms, given.positives, not_countable)
        loss = summed(reducer_of(self, "loss"), sums, batch.x, labels)
        return {"loss": {**loss, "losses": loss["losses"].where(given.counts[1] > 0, 0.0)}}

    def listed(self, given: Listed) -> Losses:
        pos, neg = given.pos, given.neg
        if not pos.anchors.shape[0] or not neg.anchors.shape[0]:
            return {"loss": zero()}
        scale = given.compared.sign / self.temperature
        against = neg.log_sum_exp(scale, 0.0)[pos.anchors]
        terms = softplus(against - scale * pos.scores).to(pos.scores.dtype)
        return {"loss": {"losses": terms, "indices": (pos.anchors, pos.others), "reduction_type": "pos_pair"}}


ROUNDED = "a reducer of losses above 0, of a softmax: the library's are 0 or not by their rounding"


def not_countable() -> Tensor:
    raise NotFused(ROUNDED)


def refuse_above_zero(reducer: Any) -> None:
    """For losses of a softmax, which are never 0 here."""
    for part in reducer.modules():
        if isinstance(part, reducers.ThresholdReducer) and part.low is not None and part.low <= 0:
            raise NotFused(ROUNDED)


class SupConLoss(OfRows, library.SupConLoss):
    """Supervised contrastive loss: fused by labels and of listed pairs, for every reducer.

    An anchor that costs less than the rounding of its logits is counted by the default reducer; the library counts it
    if its rounding is upwards.
    """

    def terms(self, given: ByLabels | Listed) -> Tensor:
        terms, _ = softmax.supcon_terms(given.fold, given.compared.sign / self.temperature)
        positives, negatives = given.counts
        return terms.where((positives > 0) & (negatives > 0), 0.0)


class MultiSimilarityLoss(OfRows, library.MultiSimilarityLoss):
    """Multi-similarity loss: fused by labels and of listed pairs, for every reducer."""

    def terms(self, given: ByLabels | Listed) -> Tensor:
        refuse_above_zero(self.reducer)
        if self.alpha <= 0 or self.beta <= 0:
            raise NotFused("alpha or beta that are not above 0")
        sign = given.compared.sign
        return structured.multi_similarity_terms(given.fold, sign * self.alpha, sign * self.beta, self.base)


class CircleLoss(OfRows, library.CircleLoss):
    """Circle loss: fused by labels and of listed pairs, for every reducer."""

    def terms(self, given: ByLabels | Listed) -> Tensor:
        m = self.m
        if (self.op, self.on, self.delta_p, self.delta_n) != (1 + m, -m, 1 - m, m):
            raise NotFused("op, on, delta_p or delta_n of their own")
        return structured.circle_terms(given.fold, m, self.gamma)


class GeneralizedLiftedStructureLoss(OfRows, library.GeneralizedLiftedStructureLoss):
    """Generalised lifted structure loss: fused by labels and of listed pairs, for every reducer."""

    def terms(self, given: ByLabels | Listed) -> Tensor:
        return structured.generalized_lifted_terms(
            given.fold, -given.compared.sign, self.pos_margin, self.neg_margin
        )  # fmt: skip


class LiftedStructureLoss(OfPairs, library.LiftedStructureLoss):
    """Lifted structure loss: fused by labels within a batch, and of listed pairs."""

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        batch = given.batch
        if batch.y is not None:
            raise NotFused("references, whose negatives are those of the row with the same number, by labels")
        metric, (pos_margin, neg_margin) = given.compared.metric(self.pos_margin, self.neg_margin)
        terms, active, counts = structured.lifted_sums(batch, metric, pos_margin, neg_margin)
        sums = Sums(terms, counts, partial(Tensor.detach, active))
        return {"loss": summed(reducer_of(self, "loss"), sums, batch.x, labels)}

    def listed(self, given: Listed) -> Losses:
        pos, neg, sign = given.pos, given.neg, -given.compared.sign
        if not pos.anchors.shape[0] or not neg.anchors.shape[0]:
            return {"loss": zero()}
        push = neg.log_sum_exp(-sign, sign * self.neg_margin)
        more = given.compared.rows - push.shape[0]
        of_other = F.pad(push, (0, max(more, 0)), value=-torch.inf)[pos.others]
        of_anchor = push[pos.anchors]
        of_both = torch.where(pos.anchors == pos.others, of_anchor, log_add(of_anchor, of_other))
        of_both = of_both.masked_fill(of_both == -torch.inf, 0.0)
        terms = F.relu(of_both + sign * (pos.scores - self.pos_margin)).square() / 2
        return {
            "loss": {
                "losses": terms.to(pos.scores.dtype), "indices": (pos.anchors, pos.others),
                "reduction_type": "pos_pair",
            }
        }  # fmt: skip


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), whose gradient is 0 where both are -inf."""
    none = (a == -torch.inf) & (b == -torch.inf)
    return torch.logaddexp(a.masked_fill(none, 0.0), b.masked_fill(none, 0.0)).masked_fill(none, -torch.inf)


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
        """What is not fused of any triplets: known before some are drawn."""

    @abstractmethod
    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses: ...

    @abstractmethod
    def listed(self, c: Compared, triplets: tuple[Tensor, Tensor, Tensor], labels: Tensor | None) -> Losses: ...


def joined(indices: Indices, N: int) -> Indices:
    """Triplets: every listed positive pair with the negatives that are listed for its anchor, in their order."""
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
    """Triplet loss: fused by labels, of all triplets or of so many that are drawn for an anchor, and of listed ones.

    A NaN among the losses is NaN here; the library's default reducer drops it, and its gradients alone are NaN.
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
        terms, chosen, active = ops.fold_triplets(given.batch, float(self.margin), metric, "all", self.smooth_loss)
        sums = Sums(terms, chosen.detach(), partial(Tensor.detach, active))
        return {"loss": summed(reducer_of(self, "loss"), sums, given.batch.x, labels, triplets=True)}

    def listed(self, c: Compared, triplets: tuple[Tensor, Tensor, Tensor], labels: Tensor | None) -> Losses:
        a, p, n = triplets
        d_ap, d_an = c.of_pairs(a, p), c.of_pairs(a, n)
        if self.swap:
            d_an = self.distance.smallest_dist(d_an, c.of_pairs(p, n))
        gap = self.distance.margin(d_ap, d_an) + self.margin
        losses = F.softplus(gap) if self.smooth_loss else F.relu(gap)
        return {"loss": {"losses": losses, "indices": triplets, "reduction_type": "triplet"}}


class MarginLoss(OfTriplets, library.MarginLoss):
    """Margin loss with a boundary that may be learned, one for all or one a class: fused by labels and of listed
    triplets."""

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        x, positives, negatives = given.batch.x, given.positives, given.negatives
        beta = self.of_anchors(labels, x)
        metric, (boundary,) = given.compared.metric(beta)
        pos, neg = (ops.of("sum", "sum", margin=m) for m in (-self.margin, self.margin))
        far, too_far, near, too_near = ops.fold(
            given.batch, "linear_contrastive", metric, pos=pos, neg=neg, offsets=-boundary.expand(x.shape[0]),
            offsets_of="rows",
        )  # fmt: skip
        # A pair is in as many triplets as its anchor has pairs of the other kind.
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
        """The boundary, [1] or one an anchor [N]."""
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


class NCALoss(Fused, library.NCALoss):
    """NCA: fused by labels, with weights of an indices_tuple or without, for every reducer.

    A batch without any positive pair costs 0; the library's loss of it is NaN. An anchor whose chance is below the
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
        listed = None if isinstance(indices, AllPairs) else indices  # of which every anchor has as many
        return self.neighbours(embeddings, ref_emb, labels, ref_labels, listed)

    def neighbours(
        self, embeddings: Tensor, refs: Tensor, labels: Tensor, ref_labels: Tensor, indices: Indices | None
    ) -> Losses:  # fmt: skip
        c = compared(self.distance, embeddings, refs)
        given = ByLabels(c, labels, ref_labels, 0 if c.y is None else None)
        terms, counts = softmax.nca_terms(given.fold, c.sign * self.softmax_scale)
        weights = lmu.convert_to_weights(indices, labels, dtype=terms.dtype, using_ref=c.y is not None)
        counted = counts.nonzero()[:, 0]
        if not counted.shape[0]:
            return {"loss": zero()}
        return {"loss": elements((terms * weights)[counted].to(c.loss_dtype), counted)}


class SmoothAPLoss(Fused, library.SmoothAPLoss):
    """Smooth-AP, which counts an anchor among its own positives, as the library does.

    The rows of a class may stand anywhere. The library takes them for neighbours, and the number of classes for their
    size: its value is that of other classes unless there are as many as each has rows.
    """

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Losses:  # fmt: skip
        labels = of_batch(embeddings, labels, ref_emb, ref_labels)
        refuse_above_zero(self.reducer)
        if score_of(self.distance) != "similarity":
            raise NotFused("a distance that is no cosine")
        if labels.unique(return_counts=True)[1].unique().shape[0] != 1:
            raise NotFused("classes of different sizes")
        terms = smooth_ap_loss(
            embeddings, labels, embeddings, labels, temperature=float(self.temperature), reduction="none"
        )  # fmt: skip
        return {"ap_loss": elements(terms * lmu.convert_to_weights(indices, labels, dtype=terms.dtype))}


def of_batch(x: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None) -> Tensor:
    """The labels of a loss that takes no references."""
    if labels is None or ref_emb is not x or ref_labels is not labels:
        raise NotFused("no labels, or references")
    return labels
