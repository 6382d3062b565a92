"""Given and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from .tiles import widen


def inverse_norm(x: Tensor) -> Tensor:
    """1 / max(|x|, 1e-8). [N, 1]"""
    return x.square().sum(1, keepdim=True).clamp_(min=1e-16).rsqrt_()


def pair_distance(a: Tensor, b: Tensor, metric: str, eps: float) -> Tensor:
    """d(a_i, b_i), or their similarity. [N]"""
    if metric == "dot":
        return (a * b).sum(1)
    if metric in ("cosine", "similarity"):
        cos = (a * b).sum(1) * (inverse_norm(a) * inverse_norm(b))[:, 0]
        return cos if metric == "similarity" else 1 - cos
    diff = a - b + eps
    if metric == "manhattan":
        return diff.abs().sum(1)
    s = diff.square().sum(1)
    return s.sqrt() if metric == "euclidean" else s


def pair_grad(a: Tensor, b: Tensor, g: Tensor, metric: str, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i g_i d(a_i, b_i) by a and by b. [N, D]"""
    g = g[:, None]
    if metric == "dot":
        return g * b, g * a
    if metric in ("cosine", "similarity"):
        g = -g if metric == "similarity" else g
        ra, rb = inverse_norm(a), inverse_norm(b)
        cross = -g * (ra * rb)
        cos = (a * b).sum(1, keepdim=True) * (ra * rb)
        own_a, own_b = (g * cos * r.square().where(r < 9.9e7, r.new_zeros(())) for r in (ra, rb))
        return cross * b + own_a * a, cross * a + own_b * b
    diff = a - b + eps
    if metric == "manhattan":
        da = g * diff.sign()
    elif metric == "sqeuclidean":
        da = 2 * g * diff
    else:
        inverse = diff.square().sum(1, keepdim=True).rsqrt_().nan_to_num_(nan=float("nan"), posinf=0.0)
        da = g * inverse * diff
    return da, -da


PAIRS = [(0, 1), (0, 2), (1, 2)]  # the ends of each distance of (a, b, c)


def row_distances(a: Tensor, b: Tensor, c: Tensor | None, metric: str, eps: float, pairs: int) -> Tensor:
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N]"""
    ends = [widen(t) for t in (a, b, c) if t is not None]
    return torch.stack([pair_distance(ends[i], ends[j], metric, eps) for i, j in PAIRS[:pairs]])


def row_distances_grad(
    a: Tensor, b: Tensor, c: Tensor | None, dout: Tensor, metric: str, eps: float, pairs: int
) -> tuple[Tensor, ...]:
    """da, db, dc; dc is empty without c."""
    ends = [widen(t) for t in (a, b, c) if t is not None]
    grads = [torch.zeros_like(t) for t in ends]
    for g, (i, j) in zip(dout, PAIRS[:pairs], strict=True):
        di, dj = pair_grad(ends[i], ends[j], g, metric, eps)
        grads[i] += di
        grads[j] += dj
    return *(d.to(a.dtype) for d in grads), *([a.new_empty(0)] if c is None else [])


def mined_distances(x: Tensor, y: Tensor | None, index: Tensor, metric: str) -> Tensor:
    """Exact distances of x_i to its positive y[index[0, i]] and negative y[index[1, i]]; NaN for index -1. [2, N]"""
    x, refs = widen(x), widen(x if y is None else y)
    if len(refs) == 0:
        return x.new_full(index.shape, torch.nan)
    d = torch.stack([pair_distance(x, refs[i], metric, 0.0) for i in index.clamp(min=0)])
    return d.masked_fill_(index < 0, torch.nan)


def mined_distances_grad(
    x: Tensor, y: Tensor | None, index: Tensor, dout: Tensor, metric: str, want_y: bool
) -> tuple[Tensor, Tensor]:
    """dx, and dy if wanted."""
    wide, refs = widen(x), widen(x if y is None else y)
    dx = torch.zeros_like(wide)
    dy = dx if y is None else torch.zeros_like(refs)
    for i, g in zip(index, dout.masked_fill(index < 0, 0.0), strict=True):
        if len(refs) == 0:
            break
        di, dj = pair_grad(wide, refs[i.clamp(min=0)], g, metric, 0.0)
        dx += di
        dy.index_put_(
            (i.clamp(min=0),), dj.masked_fill_(i[:, None] < 0, 0.0), accumulate=True
        )  # deterministic, unlike index_add_
    return dx.to(x.dtype), dy.to(y.dtype) if y is not None and want_y else x.new_empty(0)
