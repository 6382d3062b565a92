"""The dtypes in which a loss is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import WITHOUT_FLOAT64


def loss_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a loss of rows x, and of distances: float32, or float64 for float64 rows."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of row states: float64 where the device has it, so that a difference of large states is exact."""
    return loss_dtype(x) if x.device.type in WITHOUT_FLOAT64 else torch.float64
