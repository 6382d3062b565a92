"""Given and mined pairs and triplets: exact distances, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..request import MinedDistances, MinedDistancesGrad, RowDistances, RowDistancesGrad
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


def row_distances(r: RowDistances) -> Tensor:
    ends = [widen(t) for t in (r.a, r.b, r.c) if t is not None]
    return torch.stack([pair_distance(ends[i], ends[j], r.metric, r.eps) for i, j in PAIRS[: r.pairs]])


def row_distances_grad(g: RowDistancesGrad) -> tuple[Tensor, ...]:
    a, b, c, metric, eps, pairs = g.forward
    ends = [widen(t) for t in (a, b, c) if t is not None]
    grads = [torch.zeros_like(t) for t in ends]
    for d, (i, j) in zip(g.ddistances, PAIRS[:pairs], strict=True):
        di, dj = pair_grad(ends[i], ends[j], d, metric, eps)
        grads[i] += di
        grads[j] += dj
    return *(d.to(a.dtype) for d in grads), *([a.new_empty(0)] if c is None else [])


def mined_distances(m: MinedDistances) -> Tensor:
    x, refs = widen(m.x), widen(m.x if m.y is None else m.y)
    if len(refs) == 0:
        return x.new_full(m.mined.shape, torch.nan)
    d = torch.stack([pair_distance(x, refs[i], m.metric, 0.0) for i in m.mined.clamp(min=0)])
    return d.masked_fill_(m.mined < 0, torch.nan)


def mined_distances_grad(g: MinedDistancesGrad) -> tuple[Tensor, Tensor]:
    x, y, index, metric = g.forward
    wide, refs = widen(x), widen(x if y is None else y)
    dx = torch.zeros_like(wide)
    dy = dx if y is None else torch.zeros_like(refs)
    for i, d in zip(index, g.ddistances.masked_fill(index < 0, 0.0), strict=True):
        if len(refs) == 0:
            break
        di, dj = pair_grad(wide, refs[i.clamp(min=0)], d, metric, 0.0)
        dx += di
        dy.index_put_(
            (i.clamp(min=0),), dj.masked_fill_(i[:, None] < 0, 0.0), accumulate=True
        )  # deterministic, unlike index_add_
    return dx.to(x.dtype), dy.to(y.dtype) if y is not None and g.want_y else x.new_empty(0)
