"""open_clip.loss with the losses of fusedloss under the library's names; everything else is the library's own.

The library gathers or exchanges the features of other processes; what is computed from them is fused.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip import loss as _library
from torch import Tensor, nn

from ... import checks
from ...backends.dtypes import loss_dtype
from ...losses.logits import cross_entropy_loss
from ...losses.towers import clip_loss, siglip_loss
from ..calls import NotFused, attempt, unchanged
from ..library import handed_through

__all__ = ["ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss"]
__getattr__, __dir__ = handed_through(_library, __all__)

Scale = float | Tensor
Losses = Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]


class Gathered(NamedTuple):
    """The features of this process, and those of all processes, in which row i is row offset + i."""

    image: Tensor
    text: Tensor
    all_image: Tensor
    all_text: Tensor
    offset: int

    @property
    def sides(self) -> list[tuple[Tensor, Tensor]]:
        """The pairs of tensors whose rows are compared."""
        return [(self.image, self.all_text), (self.text, self.all_image)]


class ClipLoss(_library.ClipLoss):
    """The library's `ClipLoss`, fused in every mode.

    A softmax does not depend on `logit_bias`: its gradient is exactly 0, where the library's is a rounding error.
    """

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scale, logit_bias: Scale | None = None,
        output_dict: bool = False,
    ) -> Losses:  # fmt: skip
        library = super().forward

        def ours() -> Losses:
            unchanged(self, _library, "get_logits", "get_ground_truth")
            loss = contrastive(gathered(self, image_features, text_features), logit_scale, logit_bias)
            return {"contrastive_loss": loss} if output_dict else loss

        def theirs() -> Losses:
            found: Losses = library(image_features, text_features, logit_scale, logit_bias, output_dict)
            return found

        return attempt(type(self).__name__, ours, theirs)


class CaptionLoss(nn.CrossEntropyLoss):
    """The cross entropy of captions in `CoCaLoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        library = super().forward

        def ours() -> Tensor:
            return cross_entropy_loss(
                input, target, weight=self.weight, ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing, reduction=self.reduction,
            )  # fmt: skip

        return attempt("CoCaLoss.caption_loss", ours, lambda: library(input, target))


class CoCaLoss(_library.CoCaLoss, ClipLoss):
    """The library's `CoCaLoss`, both parts fused.

    If all captions are padding, their part of the loss is 0 with gradient 0, where the library's is NaN.
    """

    caption_loss: nn.CrossEntropyLoss

    @wraps(_library.CoCaLoss.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.caption_loss = CaptionLoss(ignore_index=self.caption_loss.ignore_index)


class DistillClipLoss(_library.DistillClipLoss, ClipLoss):
    """The library's `DistillClipLoss`, both parts fused.

    Every row of the teacher's softmax weighs the student's features in a mean. This is an attention, for which torch
    has kernels that need no tensor of all pairs.
    """

    def forward(  # type: ignore[override]
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scale, dist_image_features: Tensor,
        dist_text_features: Tensor, dist_logit_scale: Scale, output_dict: bool = False,
    ) -> Losses:  # fmt: skip
        library: Any = super().forward

        def ours() -> Losses:
            unchanged(self, _library, "get_logits", "get_ground_truth", "dist_loss")
            checks.same_kind("image_features", image_features, "dist_image_features", dist_image_features)
            if len(dist_image_features) != len(image_features):
                raise NotFused("the teacher has another number of rows")
            student = gathered(self, image_features, text_features)
            teacher = gathered(self, dist_image_features, dist_text_features)
            loss = contrastive(student, logit_scale)
            distill = loss + lag(student, teacher, logit_scale, dist_logit_scale)
            return {"contrastive_loss": loss, "distill_loss": distill} if output_dict else (loss, distill)

        def theirs() -> Losses:
            found: Losses = library(
                image_features, text_features, logit_scale, dist_image_features, dist_text_features, dist_logit_scale,
                output_dict,
            )  # fmt: skip
            return found

        return attempt(type(self).__name__, ours, theirs)


class SigLipLoss(_library.SigLipLoss):
    """The library's `SigLipLoss`, fused for every `dist_impl`. The texts of each process are one call."""

    def _loss(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scale, logit_bias: Scale | None = None,
        negative_only: bool = False,
    ) -> Tensor:  # fmt: skip
        library = super()._loss

        def ours() -> Tensor:
            unchanged(self, _library, "get_logits", "get_ground_truth")
            comparable(image_features, text_features)
            offset, bias = None if negative_only else 0, 0.0 if logit_bias is None else logit_bias
            return siglip_loss(image_features, text_features, logit_scale, bias, offset=offset)

        def theirs() -> Tensor:
            found: Tensor = library(image_features, text_features, logit_scale, logit_bias, negative_only)
            return found

        return attempt(type(self).__name__, ours, theirs)


def comparable(image: Tensor, text: Tensor) -> None:
    checks.same_rows(("image_features", "text_features"), (image, text))
    if not len(image):
        raise NotFused("a batch without rows, whose mean is NaN there")


def gathered(loss: _library.ClipLoss, image: Tensor, text: Tensor) -> Gathered:
    """The features that a loss compares, as the library gathers them."""
    comparable(image, text)
    if loss.world_size <= 1:
        return Gathered(image, text, image, text, 0)
    all_image, all_text = _library.gather_features(
        image, text, loss.local_loss, loss.gather_with_grad, loss.rank, loss.world_size, loss.use_horovod
    )
    if loss.local_loss:
        return Gathered(image, text, all_image, all_text, loss.rank * len(image))
    return Gathered(all_image, all_text, all_image, all_text, 0)


def contrastive(features: Gathered, scale: Scale, bias: Scale | None = None) -> Tensor:
    """The contrastive loss, the mean over the pairs and over both directions."""
    if len(features.image) == len(features.all_text):
        return clip_loss(features.image, features.text, scale, logit_bias=bias)
    images, texts = (clip_loss(*side, scale, logit_bias=bias, offset=features.offset) for side in features.sides)
    return (images + texts) / 2


def lag(student: Gathered, teacher: Gathered, scale: Scale, teacher_scale: Scale) -> Tensor:
    """The cross entropy with the teacher's softmax less that with the own pairs. The log sum exp of a row's logits
    cancels, and the mean of the logits under the teacher's softmax needs only a mean of the other side's features."""
    scale, teacher_scale = (
        checks.number(name, value, low=-torch.inf, learnable=True)
        for name, value in (("logit_scale", scale), ("dist_logit_scale", teacher_scale))
    )
    found = []
    for (x, y), (u, v) in zip(student.sides, teacher.sides, strict=True):
        own = y[student.offset : student.offset + len(x)]
        found.append((x.to(loss_dtype(x)) * (own - attention(teacher_scale * u, v, y))).sum(1))
    return scale * torch.cat(found).mean()


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query keyᵀ) value, padded to one width, a multiple of 8, as torch's kernels need it."""
    width = max(query.shape[1], value.shape[1])
    q, k, v = (F.pad(t, (0, width - t.shape[1] + -width % 8))[None, None] for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0, :, : value.shape[1]]
