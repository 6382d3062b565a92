"""Scores of a tile, and what their gradients are made of."""

from __future__ import annotations

import torch
from torch import Tensor

SCALED = ("cosine", "similarity", "chord")  # scores of rows scaled to length 1: their norms are inverse


def score(x: Tensor, y: Tensor, own: Tensor, other: Tensor, metric: str) -> Tensor:
    """Scores of a tile from rows x, y and their norms. [BM, BN]"""
    if metric == "manhattan":
        return torch.cdist(x, y, p=1.0)
    if metric == "dot":
        return x @ y.T
    if metric in SCALED:
        cos = (x @ y.T).mul_(own[:, None]).mul_(other)
        if metric == "similarity":
            return cos
        if metric == "cosine":
            return cos.neg_().add_(1)
        return cos.mul_(-2).add_(scaled_square(own)[:, None]).add_(scaled_square(other)).clamp_(min=0).sqrt_()
    s = torch.addmm(other, x, y.T, alpha=-2).add_(own[:, None]).clamp_(min=0)
    return s.sqrt_() if metric == "euclidean" else s


def score_norms(x: Tensor, metric: str) -> Tensor:
    """|x|^2, or 1 / max(|x|, 1e-8) for scaled rows. [N]"""
    norms = x.square().sum(1)
    return norms.clamp_(min=1e-16).rsqrt_() if metric in SCALED else norms


def scaled_square(norms: Tensor) -> Tensor:
    """The squared length of scaled rows: 1, and 0 of a row of length 0."""
    return (norms < 9.9e7).to(norms.dtype)


def pull(g: Tensor, s: Tensor, own: Tensor, other: Tensor, metric: str) -> tuple[Tensor, Tensor | None]:
    """w and u for g = dL/ds, where dx_i = sum_j w_ij y_j + own_factor_i x_i sum_j u_ij. Overwrites g. [BM, BN]"""
    if metric == "dot":
        return g, None
    if metric == "sqeuclidean":
        return g * -2, g
    if metric == "euclidean":
        w = over(g, s).neg_()
        return w, w
    if metric == "similarity":
        return (g * own[:, None]).mul_(other), g.mul_(s).neg_()
    if metric == "cosine":
        return (g * own[:, None]).mul_(other).neg_(), g.mul_(1 - s)
    g = over(g, s)  # of the chord: minus its derivative by the cosine
    twice_cos = scaled_square(own)[:, None] + scaled_square(other) - s.square()
    return (g * own[:, None]).mul_(other).neg_(), twice_cos.mul_(0.5).mul_(g)


def over(g: Tensor, s: Tensor) -> Tensor:
    """g / s; the gradient of a distance at 0 is 0. Overwrites g."""
    return g.mul_(s.reciprocal().nan_to_num_(nan=float("nan"), posinf=0.0))


def own_factor(norms: Tensor, metric: str) -> Tensor | float:
    if metric in SCALED:
        return norms.square().where(norms < 9.9e7, norms.new_zeros(()))  # a clamped norm is a constant
    return 2.0 if metric == "sqeuclidean" else -1.0


def manhattan_grad(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_j g_ij sign(x_i - y_j), a dimension at a time. [BM, D]"""
    columns = [(g * (a[:, None] - b).sign_()).sum(1) for a, b in zip(x.unbind(1), y.unbind(1), strict=True)]
    return torch.stack(columns, 1)
