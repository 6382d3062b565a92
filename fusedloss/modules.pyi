"""The types of the modules, written by `python -m tests.stubs`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .loss_module import ClassLossModule, LossModule

class ContrastiveLoss(LossModule):
    def __init__(
        self,
        *,
        margin: float | Tensor = 1.0,
        metric: str = "euclidean",
        similar: int = 1,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        metric: str = ...,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        metric: str = ...,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class EuclideanDistanceLoss(LossModule):
    def __init__(self, *, margin: float | Tensor = 1.0, similar: int = 1, reduction: str = "mean") -> None: ...
    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CosineSimilarityLoss(LossModule):
    def __init__(self, *, similar: int = 1, reduction: str = "mean") -> None: ...
    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor | None = None,
        *,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor | None = None,
        *,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CosineEmbeddingLoss(LossModule):
    def __init__(self, margin: float | Tensor = 0.0, *, similar: int = 1, reduction: str = "mean") -> None: ...
    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        similar: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CoSENTLoss(LossModule):
    def __init__(self, *, scale: float | Tensor = 20.0) -> None: ...
    def forward(self, x1: Tensor, x2: Tensor, target: Tensor, *, scale: float | Tensor = ...) -> Tensor: ...
    def __call__(self, x1: Tensor, x2: Tensor, target: Tensor, *, scale: float | Tensor = ...) -> Tensor: ...

class PairwiseContrastiveLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        pos_margin: float | Tensor = 0.0,
        neg_margin: float | Tensor = 1.0,
        metric: str = "euclidean",
        power: int = 2,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        pos_margin: float | Tensor = ...,
        neg_margin: float | Tensor = ...,
        metric: str = ...,
        power: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        pos_margin: float | Tensor = ...,
        neg_margin: float | Tensor = ...,
        metric: str = ...,
        power: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class MarginLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        margin: float | Tensor = 0.2,
        beta: float | Tensor = 1.2,
        metric: str = "euclidean",
        reduction: str = "active",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor = ...,
        beta: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor = ...,
        beta: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class TripletMarginLoss(LossModule):
    def __init__(
        self,
        margin: float | Tensor | None = None,
        *,
        metric: str = "euclidean",
        swap: bool = False,
        soft_margin: bool = False,
        eps: float = 1e-06,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        negative: Tensor,
        *,
        margin: float | Tensor | None = ...,
        metric: str = ...,
        swap: bool = ...,
        soft_margin: bool = ...,
        eps: float = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        anchor: Tensor,
        positive: Tensor,
        negative: Tensor,
        *,
        margin: float | Tensor | None = ...,
        metric: str = ...,
        swap: bool = ...,
        soft_margin: bool = ...,
        eps: float = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class BatchHardTripletLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        margin: float | Tensor | None = None,
        metric: str = "euclidean",
        soft_margin: bool = False,
        positives: str = "hardest",
        negatives: str = "hardest",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor | None = ...,
        metric: str = ...,
        soft_margin: bool = ...,
        positives: str = ...,
        negatives: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor | None = ...,
        metric: str = ...,
        soft_margin: bool = ...,
        positives: str = ...,
        negatives: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class BatchAllTripletLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        margin: float | Tensor | None = None,
        metric: str = "euclidean",
        soft_margin: bool = False,
        triplets: str = "all",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor | None = ...,
        metric: str = ...,
        soft_margin: bool = ...,
        triplets: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor | None = ...,
        metric: str = ...,
        soft_margin: bool = ...,
        triplets: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class BatchSemihardTripletLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        margin: float | Tensor = 0.2,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class InfoNCELoss(LossModule):
    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.07,
        metric: str = "cosine",
        in_batch_negatives: bool = True,
        symmetric: bool = False,
        offset: int = 0,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        *,
        temperature: float | Tensor = ...,
        metric: str = ...,
        in_batch_negatives: bool = ...,
        symmetric: bool = ...,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        hard_negatives: Tensor | None = None,
        key_bias: Tensor | None = None,
        offset: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        *,
        temperature: float | Tensor = ...,
        metric: str = ...,
        in_batch_negatives: bool = ...,
        symmetric: bool = ...,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        hard_negatives: Tensor | None = None,
        key_bias: Tensor | None = None,
        offset: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class NTXentLoss(LossModule):
    def __init__(self, *, temperature: float | Tensor = 0.5, reduction: str = "mean") -> None: ...
    def forward(self, z1: Tensor, z2: Tensor, *, temperature: float | Tensor = ..., reduction: str = ...) -> Tensor: ...
    def __call__(
        self,
        z1: Tensor,
        z2: Tensor,
        *,
        temperature: float | Tensor = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class DecoupledContrastiveLoss(LossModule):
    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.1,
        sigma: float | None = None,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        z1: Tensor,
        z2: Tensor,
        *,
        temperature: float | Tensor = ...,
        sigma: float | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        z1: Tensor,
        z2: Tensor,
        *,
        temperature: float | Tensor = ...,
        sigma: float | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class ClipLoss(LossModule):
    def __init__(
        self,
        *,
        logit_scale: float | Tensor | None = None,
        logit_bias: float | Tensor | None = None,
        offset: int = 0,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor = ...,
        *,
        logit_bias: float | Tensor | None = ...,
        offset: int = ...,
        ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor = ...,
        *,
        logit_bias: float | Tensor | None = ...,
        offset: int = ...,
        ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        reduction: str = ...,
    ) -> Tensor: ...

class SigLipLoss(LossModule):
    def __init__(
        self,
        *,
        logit_scale: float | Tensor | None = None,
        logit_bias: float | Tensor | None = None,
        offset: int | None = 0,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor = ...,
        logit_bias: float | Tensor = ...,
        *,
        offset: int | None = ...,
        ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor = ...,
        logit_bias: float | Tensor = ...,
        *,
        offset: int | None = ...,
        ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        reduction: str = ...,
    ) -> Tensor: ...

class SupConLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        temperature: float | Tensor = 0.1,
        metric: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class NPairLoss(LossModule):
    def __init__(self, *, l2_reg: float = 0.0, reduction: str = "mean") -> None: ...
    def forward(self, anchor: Tensor, positive: Tensor, *, l2_reg: float = ..., reduction: str = ...) -> Tensor: ...
    def __call__(self, anchor: Tensor, positive: Tensor, *, l2_reg: float = ..., reduction: str = ...) -> Tensor: ...

class PairwiseNTXentLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        temperature: float | Tensor = 0.07,
        metric: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class NCALoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        temperature: float | Tensor = 1.0,
        metric: str = "sqeuclidean",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float | Tensor = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class MultiSimilarityLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        metric: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        alpha: float = ...,
        beta: float = ...,
        base: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        alpha: float = ...,
        beta: float = ...,
        base: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CircleLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        margin: float = 0.4,
        gamma: float = 80.0,
        metric: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float = ...,
        gamma: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        margin: float = ...,
        gamma: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class GeneralizedLiftedStructureLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        neg_margin: float = ...,
        pos_margin: float = ...,
        normalize: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        neg_margin: float = ...,
        pos_margin: float = ...,
        normalize: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class LiftedStructureLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        normalize: bool = True,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        neg_margin: float = ...,
        pos_margin: float = ...,
        normalize: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        neg_margin: float = ...,
        pos_margin: float = ...,
        normalize: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class SmoothAPLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        temperature: float = 0.01,
        metric: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        temperature: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class RecallAtKLoss(LossModule):
    def __init__(
        self,
        *,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
        k: Sequence[int] = (1, 2, 4, 8, 16),
        temperature: float = 0.01,
        k_temperature: float = 1.0,
        metric: str = "cosine",
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        k: Sequence[int] = ...,
        temperature: float = ...,
        k_temperature: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ref_offset: int | None = ...,
        ignore_index: int | None = ...,
        k: Sequence[int] = ...,
        temperature: float = ...,
        k_temperature: float = ...,
        metric: str = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CrossEntropyLoss(LossModule):
    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        overwrite_logits: bool = False,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = ...,
        ignore_index: int = ...,
        label_smoothing: float = ...,
        overwrite_logits: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = ...,
        ignore_index: int = ...,
        label_smoothing: float = ...,
        overwrite_logits: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class FocalLoss(LossModule):
    def __init__(
        self,
        *,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        overwrite_logits: bool = False,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        gamma: float = ...,
        weight: Tensor | None = ...,
        ignore_index: int = ...,
        overwrite_logits: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        gamma: float = ...,
        weight: Tensor | None = ...,
        ignore_index: int = ...,
        overwrite_logits: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class BinaryCrossEntropyLoss(LossModule):
    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        pos_weight: Tensor | None = None,
        overwrite_logits: bool = False,
        reduction: str = "mean",
    ) -> None: ...
    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = ...,
        pos_weight: Tensor | None = ...,
        overwrite_logits: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = ...,
        pos_weight: Tensor | None = ...,
        overwrite_logits: bool = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class SigmoidFocalLoss(LossModule):
    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        *,
        overwrite_logits: bool = False,
    ) -> None: ...
    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        alpha: float = ...,
        gamma: float = ...,
        reduction: str = ...,
        overwrite_logits: bool = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        alpha: float = ...,
        gamma: float = ...,
        reduction: str = ...,
        overwrite_logits: bool = ...,
    ) -> Tensor: ...

class LinearCrossEntropyLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        bias: bool | Tensor | None = None,
        gamma: float = 0.0,
        class_weight: Tensor | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        bias: Tensor | None = ...,
        gamma: float = ...,
        class_weight: Tensor | None = ...,
        z_loss: float = ...,
        softcap: float | None = ...,
        ignore_index: int = ...,
        label_smoothing: float = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        bias: Tensor | None = ...,
        gamma: float = ...,
        class_weight: Tensor | None = ...,
        z_loss: float = ...,
        softcap: float | None = ...,
        ignore_index: int = ...,
        label_smoothing: float = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class ArcFaceLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float | Tensor = 0.5,
        scale: float | Tensor = 64.0,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        sub_centers: int = 1,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        scale: float | Tensor = ...,
        ignore_index: int = ...,
        class_weight: Tensor | None = ...,
        label_smoothing: float = ...,
        sub_centers: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        scale: float | Tensor = ...,
        ignore_index: int = ...,
        class_weight: Tensor | None = ...,
        label_smoothing: float = ...,
        sub_centers: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CosFaceLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float | Tensor = 0.35,
        scale: float | Tensor = 64.0,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        sub_centers: int = 1,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        scale: float | Tensor = ...,
        ignore_index: int = ...,
        class_weight: Tensor | None = ...,
        label_smoothing: float = ...,
        sub_centers: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        scale: float | Tensor = ...,
        ignore_index: int = ...,
        class_weight: Tensor | None = ...,
        label_smoothing: float = ...,
        sub_centers: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class NormalizedSoftmaxLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        temperature: float | Tensor = 0.05,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        sub_centers: int = 1,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        temperature: float | Tensor = ...,
        ignore_index: int = ...,
        class_weight: Tensor | None = ...,
        label_smoothing: float = ...,
        sub_centers: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        temperature: float | Tensor = ...,
        ignore_index: int = ...,
        class_weight: Tensor | None = ...,
        label_smoothing: float = ...,
        sub_centers: int = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class ProxyNCALoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float | Tensor = 1.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        scale: float | Tensor = ...,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        scale: float | Tensor = ...,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class ProxyAnchorLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float | Tensor = 0.1,
        alpha: float | Tensor = 32.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        alpha: float | Tensor = ...,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        margin: float | Tensor = ...,
        alpha: float | Tensor = ...,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class CenterLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        ignore_index: int | None = None,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...

class IslandLoss(ClassLossModule):
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        weight: float = 10.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    def forward(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        weight: float = ...,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        embeddings: Tensor,
        target: Tensor,
        *,
        weight: float = ...,
        ignore_index: int | None = ...,
        reduction: str = ...,
    ) -> Tensor: ...
