"""The losses of pairs of a batch, by labels or as a miner listed them."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as library
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ... import ops
from ...losses import closings, softmax, structured
from ...losses.reduce import softplus
from ..calls import NotFused
from .compared import AllPairs, ByLabels, Indices, Listed, compared
from .fused import Fused, Losses, labelled, not_countable, refuse_above_zero
from .reducing import Sums, elements, reducer_of, summed, zero


class OfPairs(Fused):
    """A loss of pairs."""

    once = False  # whether a pair that is listed twice counts once

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Indices | AllPairs | None, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Losses:  # fmt: skip
        c = compared(self.distance, embeddings, ref_emb)
        listed = () if indices is None or isinstance(indices, AllPairs) else lmu.convert_to_pairs(indices, None)
        if not embeddings.shape[0] or (listed and all(len(index) <= 1 for index in listed)):
            return {name: zero() for name in self.parts()}  # the library's loss of a list of one pair is 0
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
    """A loss of pairs that has one value per anchor."""

    once = True

    def by_labels(self, given: ByLabels, labels: Tensor) -> Losses:
        return self.listed(given)

    def listed(self, given: ByLabels | Listed) -> Losses:
        return {"loss": elements(self.terms(given).to(given.compared.loss_dtype))}

    @abstractmethod
    def terms(self, given: ByLabels | Listed) -> Tensor: ...


class ContrastiveLoss(OfPairs, library.ContrastiveLoss):
    """Contrastive loss: fused by labels and for listed pairs."""

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
    """NT-Xent: fused by labels if the reducer needs only sums of pairs, and for listed pairs.

    The library's value is at most -log of the smallest float of the dtype, 87 in float32 and 9.7 in float16, and its
    gradient is 0 there; here both are right.
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


class SupConLoss(OfRows, library.SupConLoss):
    """Supervised contrastive loss: fused by labels and for listed pairs, for every reducer.

    An anchor whose loss is smaller than the rounding error of its logits is counted by the default reducer; the library
    counts it only if it is rounded upwards.
    """

    def terms(self, given: ByLabels | Listed) -> Tensor:
        folds = softmax.supcon_folds(given.compared.sign / self.temperature)
        ((terms, _),) = closings.supcon(given.fold("softmax", **folds))
        positives, negatives = given.counts
        return terms.where((positives > 0) & (negatives > 0), 0.0)


class MultiSimilarityLoss(OfRows, library.MultiSimilarityLoss):
    """Multi-similarity loss: fused by labels and for listed pairs, for every reducer."""

    def terms(self, given: ByLabels | Listed) -> Tensor:
        refuse_above_zero(self.reducer)
        if self.alpha <= 0 or self.beta <= 0:
            raise NotFused("alpha or beta that are not above 0")
        sign = given.compared.sign
        folds = structured.multi_similarity_folds(sign * self.alpha, sign * self.beta, self.base)
        ((terms, _),) = closings.multi_similarity(given.fold("softmax", **folds), self.alpha, self.beta)
        return terms


class CircleLoss(OfRows, library.CircleLoss):
    """Circle loss: fused by labels and for listed pairs, for every reducer."""

    def terms(self, given: ByLabels | Listed) -> Tensor:
        m = self.m
        if (self.op, self.on, self.delta_p, self.delta_n) != (1 + m, -m, 1 - m, m):
            raise NotFused("op, on, delta_p or delta_n of their own")
        ((terms, _),) = closings.circle(given.fold("circle", **structured.circle_folds(m, self.gamma)))
        return terms


class GeneralizedLiftedStructureLoss(OfRows, library.GeneralizedLiftedStructureLoss):
    """Generalised lifted structure loss: fused by labels and for listed pairs, for every reducer."""

    def terms(self, given: ByLabels | Listed) -> Tensor:
        folds = structured.generalized_lifted_folds(-given.compared.sign, self.pos_margin, self.neg_margin)
        ((terms, _),) = closings.lifted(given.fold("softmax", **folds))
        return terms


class LiftedStructureLoss(OfPairs, library.LiftedStructureLoss):
    """Lifted structure loss: fused by labels within a batch, and for listed pairs."""

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
    """log(exp(a) + exp(b)), with gradient 0 where both are -inf."""
    none = (a == -torch.inf) & (b == -torch.inf)
    return torch.logaddexp(a.masked_fill(none, 0.0), b.masked_fill(none, 0.0)).masked_fill(none, -torch.inf)
