"""In which dtypes a loss is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import WITHOUT_FLOAT64


def loss_dtype(x: Tensor) -> torch.dtype:
    """Of a loss of rows x, and of distances: float32, or float64 for float64 rows."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def state_dtype(x: Tensor) -> torch.dtype:
    """Of the row states: float64, so that a loss is the exact difference of large states, where the device has it."""
    return loss_dtype(x) if x.device.type in WITHOUT_FLOAT64 else torch.float64
