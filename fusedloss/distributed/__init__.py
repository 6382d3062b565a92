"""Losses over the processes of a `torch.distributed` group."""

from .group_loss import GroupLoss
from .sharded import (
    ShardedArcFaceLoss,
    ShardedCosFaceLoss,
    ShardedLinearCrossEntropyLoss,
    ShardedNormalizedSoftmaxLoss,
    ShardedProxyAnchorLoss,
    ShardedProxyNCALoss,
)

__all__ = [
    "GroupLoss",
    "ShardedArcFaceLoss",
    "ShardedCosFaceLoss",
    "ShardedLinearCrossEntropyLoss",
    "ShardedNormalizedSoftmaxLoss",
    "ShardedProxyAnchorLoss",
    "ShardedProxyNCALoss",
]
