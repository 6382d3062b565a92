"""The floor of a loss: the time of one matrix product of all its pairs, at the rate that this device reaches."""

from __future__ import annotations

import torch

from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.measure import Run


def sides(loss: str, n: int, classes: int) -> tuple[int, int] | None:
    """N and M of the score matrix for a batch of n rows (n / 2 on either side of pairs); None without a matrix."""
    known = CATALOG[loss]
    return known.sides(n // 2 if known.paired else n, classes) if known.products else None


def product_flop(loss: str, n: int, d: int, classes: int) -> float | None:
    """2 N M D FLOP"""
    matrix = sides(loss, n, classes)
    return matrix and 2 * matrix[0] * matrix[1] * d


def square_product(n: int) -> Run:
    """Maker for `fusedloss.tools.measure`: 2 n³ FLOP in float32."""
    a, b = torch.randn(2, n, n)
    return lambda: a @ b
