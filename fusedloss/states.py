"""What a backend keeps of the forward, and in which dtypes."""

from __future__ import annotations

import torch
from torch import Tensor


def loss_dtype(x: Tensor) -> torch.dtype:
    """Of a loss of rows x, and of distances: float32, or float64 for float64 rows."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def state_dtype(x: Tensor) -> torch.dtype:
    """Of the row states: float64, so that a loss is the exact difference of large states, where the device has it."""
    return loss_dtype(x) if x.device.type in ("mps", "xpu") else torch.float64


def split_offsets(offsets: Tensor | None, y: Tensor | None, M: int) -> tuple[Tensor | None, Tensor | None]:
    """Those of the rows and those of the M columns, from [N + M], [N] of a self batch, or [M] of the columns alone."""
    if offsets is None or y is None:
        return offsets, offsets
    N = len(offsets) - M
    return offsets[:N] if N else None, offsets[N:]


STORED = 32  # semi-hard negatives of an anchor that are kept for the backward, which mines any others again


def new_index(x: Tensor, M: int, triplets: str) -> Tensor:
    """For the rows of those negatives among M, -1 where there is none. [STORED, N]"""
    kept = min(STORED, M) if triplets == "nearest" else 0
    return torch.full((kept, len(x)), -1, dtype=torch.int32, device=x.device)
