"""Every loss as an `nn.Module`: the constructor takes the function's keyword arguments, `forward` its tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from .losses import pairs, softmax, structured, triplets


class LossModule(nn.Module):
    """A loss function with its options. An option that is an `nn.Parameter` (a margin) is trained and saved with it."""

    function: ClassVar[Callable[..., Any]]
    options: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, function: Callable[..., Any], **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(function).parameters.values()
        cls.function = staticmethod(function)
        cls.options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        )
        cls.__doc__ = f"`{function.__name__}` as a module.\n\n{inspect.getdoc(function)}"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name in options.keys() - self.options.keys():
            raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(self.options)}")
        for name, value in (self.options | options).items():
            setattr(self, name, value)

    def forward(self, *tensors: Tensor | None, **named: Tensor | None) -> Any:
        return self.function(*tensors, **({name: getattr(self, name) for name in self.options} | named))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options if name not in self._parameters)


class ContrastiveLoss(LossModule, function=pairs.contrastive_loss): ...


class EuclideanDistanceLoss(LossModule, function=pairs.euclidean_distance_loss): ...


class CosineSimilarityLoss(LossModule, function=pairs.cosine_similarity_loss): ...


class CosineEmbeddingLoss(LossModule, function=pairs.cosine_embedding_loss): ...


class PairwiseContrastiveLoss(LossModule, function=pairs.pairwise_contrastive_loss): ...


class TripletMarginLoss(LossModule, function=triplets.triplet_margin_loss): ...


class BatchHardTripletLoss(LossModule, function=triplets.batch_hard_triplet_loss): ...


class BatchAllTripletLoss(LossModule, function=triplets.batch_all_triplet_loss): ...


class BatchSemihardTripletLoss(LossModule, function=triplets.batch_semihard_triplet_loss): ...


class InfoNCELoss(LossModule, function=softmax.info_nce_loss): ...


class NTXentLoss(LossModule, function=softmax.nt_xent_loss): ...


class ClipLoss(LossModule, function=softmax.clip_loss): ...


class SigLipLoss(LossModule, function=softmax.siglip_loss): ...


class SupConLoss(LossModule, function=softmax.supcon_loss): ...


class NPairLoss(LossModule, function=softmax.n_pair_loss): ...


class MultiSimilarityLoss(LossModule, function=structured.multi_similarity_loss): ...


class CircleLoss(LossModule, function=structured.circle_loss): ...


class GeneralizedLiftedStructureLoss(LossModule, function=structured.generalized_lifted_structure_loss): ...


class LiftedStructureLoss(LossModule, function=structured.lifted_structure_loss): ...
