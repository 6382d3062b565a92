"""The scores of a tile, and the parts of their gradients.

For "cosine", "similarity" and "chord" the rows are scaled to length 1 first; the scores are then 1 - <x, y>, <x, y> and
|x - y|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import state_dtype

SCALED = ("cosine", "similarity", "chord")
SQUARED = ("euclidean", "sqeuclidean", "chord")  # metrics that take squared lengths


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to length 1, and the scale 1 / max(|x|, 1e-8). [N, D], [N, 1]"""
    # in float64, since an error here affects all scores of the row
    scale = x.square().sum(1, keepdim=True, dtype=state_dtype(x)).clamp_(min=1e-16).rsqrt_().to(x.dtype)
    return x * scale, scale


def unit_grad(d: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient by rows from the gradient by the scaled rows x; a clamped norm counts as a constant."""
    along = (d * x).sum(1, keepdim=True).where(scale < 9.9e7, d.new_zeros(()))
    return d.addcmul_(x, along, value=-1).mul_(scale)


def score(x: Tensor, y: Tensor, own: Tensor | None, other: Tensor | None, metric: str) -> Tensor:
    """The scores of a tile from rows x and y and, for `SQUARED` metrics, their squared lengths. [BM, BN]"""
    if metric == "manhattan":
        return torch.cdist(x, y, p=1.0)
    if metric in ("dot", "similarity"):
        return x @ y.T
    if metric == "cosine":
        return (x @ y.T).neg_().add_(1)
    assert own is not None and other is not None
    s = torch.addmm(other, x, y.T, alpha=-2).add_(own[:, None]).clamp_(min=0)
    return s if metric == "sqeuclidean" else s.sqrt_()


def pull(g: Tensor, s: Tensor, metric: str) -> tuple[Tensor, float]:
    """w [BM, BN] and a for g = dL/ds, with dx_i = a sum_j w_ij (y_j - x_i), or a sum_j w_ij y_j if s is a product.

    g is overwritten.
    """
    if metric in ("dot", "similarity"):
        return g, 1.0
    if metric == "cosine":
        return g, -1.0
    if metric == "sqeuclidean":
        return g, -2.0
    return g.div_(s.masked_fill(s == 0, torch.inf)), -1.0  # the gradient of a distance at 0 is 0


def manhattan_grad(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_j g_ij sign(x_i - y_j), computed one dimension at a time. [BM, D]"""
    columns = [(g * (a[:, None] - b).sign_()).sum(1) for a, b in zip(x.unbind(1), y.unbind(1), strict=True)]
    return torch.stack(columns, 1)
