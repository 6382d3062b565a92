"""Every loss as an `nn.Module`: the constructor takes the function's keyword arguments, `forward` its tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .losses import catalog, centers, classes, logits, pairs, softmax, structured, triplets


class LossModule(nn.Module):
    """A loss function with its options.

    An option that is an `nn.Parameter` (a margin) is trained and saved with the module, any other tensor (the weights
    of classes) is saved and moved with it.
    """

    function: ClassVar[Callable[..., Any]]
    options: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if function is None:
            return
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
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *tensors: Any, **named: Any) -> Any:
        return self.function(*tensors, **({name: getattr(self, name) for name in self.options} | named))

    def extra_repr(self) -> str:
        saved = self._parameters.keys() | self._buffers.keys()
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options if name not in saved)


class ClassLossModule(LossModule):
    """A loss of embeddings and one row a class, which the module owns and trains, [num_classes, dim].

    The parameter keeps its dtype: embeddings in another one are compared with a copy in theirs.
    """

    rows: ClassVar[str]  # the parameter's name

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(function, **kwargs)
        if function is None:
            return
        [cls.rows] = catalog.CATALOG[function.__name__].named(catalog.Role.CLASSES)
        own = inspect.signature(ClassLossModule.__init__).parameters
        options = cls.__signature__.parameters.values()  # type: ignore[attr-defined]
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [own["num_classes"], own["dim"], *options, own["device"], own["dtype"]]
        )
        own_rows = f"`{cls.rows}` is its parameter, [num_classes, dim], of rows that begin with length about 1."
        if "bias" in cls.options:
            own_rows += " With `bias=True` it has a parameter for that too, [num_classes], which begins with 0."
        cls.__doc__ = (cls.__doc__ or "").replace(" as a module.", f" as a module. {own_rows}", 1)

    def __init__(
        self, num_classes: int, dim: int, *, device: Any = None, dtype: torch.dtype | None = None, **options: Any
    ) -> None:
        made: dict[str, Any] = dict(device=device, dtype=dtype)
        if options.get("bias") is not None and not isinstance(options["bias"], Tensor):
            options["bias"] = nn.Parameter(torch.zeros(num_classes, **made)) if options["bias"] else None
        super().__init__(**options)
        setattr(self, self.rows, nn.Parameter(torch.empty(num_classes, dim, **made)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        rows = getattr(self, self.rows)
        nn.init.normal_(rows, std=rows.shape[1] ** -0.5)

    def forward(self, embeddings: Any, target: Any, **named: Any) -> Any:
        rows = getattr(self, self.rows)
        rows = rows.to(embeddings.dtype) if isinstance(embeddings, Tensor) else rows
        return super().forward(embeddings, rows, target, **named)

    def extra_repr(self) -> str:
        num_classes, dim = getattr(self, self.rows).shape
        return f"{num_classes}, {dim}, {super().extra_repr()}"


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


class CrossEntropyLoss(LossModule, function=logits.cross_entropy_loss): ...


class FocalLoss(LossModule, function=logits.focal_loss): ...


class BinaryCrossEntropyLoss(LossModule, function=logits.binary_cross_entropy_loss): ...


class SigmoidFocalLoss(LossModule, function=logits.sigmoid_focal_loss): ...


class LinearCrossEntropyLoss(ClassLossModule, function=classes.linear_cross_entropy_loss): ...


class ArcFaceLoss(ClassLossModule, function=classes.arcface_loss): ...


class CosFaceLoss(ClassLossModule, function=classes.cosface_loss): ...


class NormalizedSoftmaxLoss(ClassLossModule, function=classes.normalized_softmax_loss): ...


class ProxyNCALoss(ClassLossModule, function=classes.proxy_nca_loss): ...


class ProxyAnchorLoss(ClassLossModule, function=classes.proxy_anchor_loss): ...


class CenterLoss(ClassLossModule, function=centers.center_loss): ...


class IslandLoss(ClassLossModule, function=centers.island_loss): ...
