"""Every loss with one row per class, sharded over processes; what they have in common is in `shard_module.py`."""

from .. import modules
from .shard_module import ShardedLoss


class ShardedArcFaceLoss(ShardedLoss, modules.ArcFaceLoss): ...


class ShardedCosFaceLoss(ShardedLoss, modules.CosFaceLoss): ...


class ShardedNormalizedSoftmaxLoss(ShardedLoss, modules.NormalizedSoftmaxLoss): ...


class ShardedLinearCrossEntropyLoss(ShardedLoss, modules.LinearCrossEntropyLoss): ...


class ShardedProxyNCALoss(ShardedLoss, modules.ProxyNCALoss): ...


class ShardedProxyAnchorLoss(ShardedLoss, modules.ProxyAnchorLoss): ...
