"""The losses of classes and proxies. A weight is [D, C], as the library keeps it, and keeps its dtype."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pytorch_metric_learning import losses as library
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ... import checks, ops
from ...checks import Batch
from ...losses.classes import arcface_loss, cosface_loss, normalized_softmax_loss
from ...losses.reduce import softplus
from ..calls import NotFused
from .compared import compared
from .fused import Fused, Losses, of_batch, of_cosines, refuse_above_zero
from .neighbour_losses import NCALoss
from .reducing import elements


class OfClasses(Fused):
    """A loss of rows and of a weight per class: one value per row, for every reducer and regulariser."""

    W: Tensor

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Losses:  # fmt: skip
        labels = of_cosines(self, embeddings, labels, ref_emb, ref_labels)
        weight = moved(self.W, embeddings).t()
        in_range(labels, weight.shape[0] // getattr(self, "sub_centers", 1))
        losses = self.of_rows(embeddings, weight.to(embeddings.dtype), labels)
        weights = lmu.convert_to_weights(indices, labels, dtype=losses.dtype)
        found = {"loss": elements(losses * weights)}
        self.add_weight_regularization_to_loss_dict(found, weight)  # type: ignore[attr-defined]
        return found

    @abstractmethod
    def of_rows(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor: ...


def moved(parameter: Tensor, x: Tensor) -> Tensor:
    """The parameter, which stays on the device of x from now on."""
    if parameter.device != x.device:
        parameter.data = parameter.data.to(x.device)
    return parameter


class ArcFaceLoss(OfClasses, library.ArcFaceLoss):
    """ArcFace, with the margin in degrees as in the library.

    Gradients are finite where a cosine is exactly 1; the library's are NaN there.
    """

    def of_rows(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return arcface_loss(
            x, weight, labels, margin=float(self.margin), scale=float(self.scale), reduction="none"
        )  # fmt: skip


class SubCenterArcFaceLoss(ArcFaceLoss, library.SubCenterArcFaceLoss):
    """Sub-center ArcFace, fused for up to 8 sub-centers."""

    def of_rows(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        K = self.sub_centers
        return arcface_loss(
            x, weight if K == 1 else weight.unflatten(0, (-1, K)), labels, margin=float(self.margin),
            scale=float(self.scale), sub_centers=K, reduction="none",
        )  # fmt: skip


class CosFaceLoss(OfClasses, library.CosFaceLoss):
    """CosFace."""

    def of_rows(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return cosface_loss(
            x, weight, labels, margin=float(self.margin), scale=float(self.scale), reduction="none"
        )  # fmt: skip


class NormalizedSoftmaxLoss(OfClasses, library.NormalizedSoftmaxLoss):
    """Normalised softmax."""

    def of_rows(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return normalized_softmax_loss(x, weight, labels, temperature=float(self.temperature), reduction="none")


class ProxyNCALoss(NCALoss, library.ProxyNCALoss):
    """ProxyNCA. A row whose probability is below the smallest float counts here; the library leaves it out."""

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Losses:  # fmt: skip
        labels = of_batch(embeddings, labels, ref_emb, ref_labels)
        refuse_above_zero(self.reducer)
        proxies = moved(self.proxies, embeddings)
        classes = self.proxy_labels.to(labels.device)
        found = self.neighbours(embeddings, proxies.to(embeddings.dtype), labels, classes, indices)
        self.add_weight_regularization_to_loss_dict(found, proxies)
        return found


class ProxyAnchorLoss(Fused, library.ProxyAnchorLoss):
    """Proxy anchor: one value per proxy, for every reducer."""

    def fused(
        self, embeddings: Tensor, labels: Tensor | None, indices: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Losses:  # fmt: skip
        labels = of_batch(embeddings, labels, ref_emb, ref_labels).long()
        refuse_above_zero(self.reducer)
        if self.alpha <= 0:
            raise NotFused("alpha that is not above 0")
        proxies = moved(self.proxies, embeddings)
        c = compared(self.distance, embeddings, proxies.to(embeddings.dtype))
        assert c.y is not None
        in_range(labels, self.num_classes)
        classes = torch.arange(self.num_classes, device=labels.device)
        batch, alpha = Batch(c.y, c.x, classes, labels, None), c.sign * self.alpha
        bias = alpha * self.margin
        pos, neg = ops.of("lse", scale=-alpha, bias=bias), ops.of("lse", scale=alpha, bias=bias)
        if indices is None:
            pull, push = ops.fold(batch, "softmax", c.score, pos=pos, neg=neg)
        else:  # the weights of the rows are added to their logits
            shift = (lmu.convert_to_weights(indices, labels, dtype=c.loss_dtype) - 1) / alpha
            (pull,) = ops.fold(batch, "softmax", c.score, pos=pos, offsets=-shift)
            (push,) = ops.fold(batch, "softmax", c.score, neg=neg, offsets=shift)
        present = (pull.detach() > -torch.inf).sum()
        pull, push = (softplus(state).to(c.loss_dtype) for state in (pull, push))
        found = {
            "pos_loss": elements(pull, divisor=present),
            "neg_loss": elements(push, divisor=self.num_classes),
        }
        self.add_weight_regularization_to_loss_dict(found, proxies)
        return found


def in_range(labels: Tensor, C: int) -> None:
    """Leave labels out of range to the library, which refuses them; checked only where that needs no sync."""
    if checks.readable(labels) and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < C:
        raise NotFused("labels that are no classes")
