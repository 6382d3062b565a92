"""The floor of a loss: the time of one matrix product of all its pairs, at the rate that this device reaches."""

from __future__ import annotations

import torch

from fusedloss.tools.measure import Run

from .forms import GIVEN_LOGITS, PAIRED, WITH_CLASSES

TWO_TOWERS = tuple(loss for loss in PAIRED if loss != "nt_xent_loss")  # whose two views are one batch


def sides(loss: str, n: int, classes: int) -> tuple[int, int] | None:
    """N and M of the matrix of a batch of n rows; None where the logits are given, which is no product."""
    if loss in GIVEN_LOGITS:
        return None
    if loss in TWO_TOWERS:
        return n // 2, n // 2
    return n, classes if loss in WITH_CLASSES else n


def product_flop(loss: str, n: int, d: int, classes: int) -> float | None:
    """2 N M D FLOP"""
    matrix = sides(loss, n, classes)
    return matrix and 2 * matrix[0] * matrix[1] * d


def square_product(n: int) -> Run:
    """Maker for `fusedloss.tools.measure`: 2 n³ FLOP in float32."""
    a, b = torch.randn(2, n, n)
    return lambda: a @ b
