"""The types of the sharded losses, written by `python -m tests.stubs`."""

from typing import Any

import torch
from torch import Tensor

from .. import modules
from .shard_module import ShardedLoss

class ShardedArcFaceLoss(ShardedLoss, modules.ArcFaceLoss):
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
        group: Any = None,
        sample_rate: float = 1.0,
        even: bool = False,
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

class ShardedCosFaceLoss(ShardedLoss, modules.CosFaceLoss):
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
        group: Any = None,
        sample_rate: float = 1.0,
        even: bool = False,
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

class ShardedNormalizedSoftmaxLoss(ShardedLoss, modules.NormalizedSoftmaxLoss):
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
        group: Any = None,
        sample_rate: float = 1.0,
        even: bool = False,
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

class ShardedLinearCrossEntropyLoss(ShardedLoss, modules.LinearCrossEntropyLoss):
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
        group: Any = None,
        sample_rate: float = 1.0,
        even: bool = False,
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

class ShardedProxyNCALoss(ShardedLoss, modules.ProxyNCALoss):
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
        group: Any = None,
        sample_rate: float = 1.0,
        even: bool = False,
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

class ShardedProxyAnchorLoss(ShardedLoss, modules.ProxyAnchorLoss):
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
        group: Any = None,
        sample_rate: float = 1.0,
        even: bool = False,
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
