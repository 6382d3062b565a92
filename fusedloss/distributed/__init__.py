"""Losses over the processes of a `torch.distributed` group."""

from .group_loss import GroupLoss

__all__ = ["GroupLoss"]
