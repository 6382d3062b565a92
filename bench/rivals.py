"""Exact triplet losses in plain PyTorch that sort rows instead of listing triplets, as rivals of the fused losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedloss.reference import pairwise_distance

PAIRS = 2**19  # pairs of a block


def batch_all_triplet_loss(
    x: Tensor, labels: Tensor, *, margin: float = 0.2, metric: str = "euclidean", reduction: str = "mean"
) -> Tensor:
    """All triplets, in O(N^2 log K) time for K positives per anchor, and in memory for a block of rows.

    A hinge is linear where it is active. So the loss is a weighted sum of distances: the weight of a positive is the
    number of negatives that are closer than its limit, d(a, p) + margin, and that of a negative is minus the number of
    limits above it. Both are found by searching each negative among its anchor's sorted limits, which are fewer than
    the negatives. The weights are also the gradient by the distances.
    """
    value: Tensor = AllTriplets.apply(x, labels, margin, metric, reduction)
    return value


class AllTriplets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, margin: float, metric: str, reduction: str) -> Tensor:
        y = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
        most = int(labels.unique(return_counts=True)[1].max()) - 1  # positives of an anchor
        total, triplets = y.new_zeros((), dtype=torch.float64), {"sum": 1, "mean": 0, "active": 0}
        gradient = torch.zeros_like(y)
        for rows in torch.arange(len(y), device=y.device).split(max(1, PAIRS // len(y))):
            with torch.enable_grad():
                d = pairwise_distance(y[rows], y, metric)  # [B, N]
            neg = labels[rows, None] != labels
            pos = ~neg
            pos[torch.arange(len(rows)), rows] = False
            weights, active = distance_weights(d.detach(), pos, neg, margin, most)
            total += (weights * d.detach()).sum(dtype=torch.float64) + margin * active
            gradient += torch.autograd.grad(d, y, weights)[0]
            triplets["active"] += active
            triplets["mean"] += (pos.sum(1) * neg.sum(1)).sum()
        count = torch.as_tensor(triplets[reduction], device=y.device).clamp_min(1)
        ctx.save_for_backward(gradient.div_(count).to(x.dtype))
        return (total / count).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (upstream[0] * gradient).to(gradient.dtype), None, None, None, None


def distance_weights(d: Tensor, pos: Tensor, neg: Tensor, margin: float, most: int) -> tuple[Tensor, Tensor]:
    """The derivative of the sum of hinges by the distances [B, N], and the number of active triplets."""
    limits, index = torch.where(pos, d + margin, -torch.inf).topk(most)  # [B, K], -inf for a positive that is missing
    limits, index = limits.flip(1), index.flip(1)
    passed = torch.searchsorted(limits, d, right=True).where(neg, most)  # limits that a negative is not below [B, N]
    histogram = passed.new_zeros(len(d), most + 1).scatter_add_(1, passed, torch.ones_like(passed))
    closer = histogram.cumsum(1)[:, :most]  # negatives below each limit [B, K]
    weights = (passed - most).to(d.dtype)
    return weights.scatter_add_(1, index, closer.to(d.dtype)), closer.sum()


def batch_semihard_triplet_loss(
    x: Tensor, labels: Tensor, *, margin: float = 0.2, metric: str = "sqeuclidean", reduction: str = "mean"
) -> Tensor:
    """FaceNet's online mining, in O(N^2 log N) time and O(N^2) memory: each positive is searched among the anchor's
    sorted negatives, as in sentence-transformers 6.2."""
    d = pairwise_distance(x, x, metric)
    neg = labels[:, None] != labels
    pos = ~neg
    pos.fill_diagonal_(False)
    ordered, order = d.detach().masked_fill(~neg, torch.inf).sort(dim=1, stable=True)
    place = torch.searchsorted(ordered, d.detach(), right=True)  # of the nearest beyond each distance
    nearest = order.gather(1, place.clamp_max(len(x) - 1))
    farthest = d.detach().masked_fill(~neg, -torch.inf).argmax(1, keepdim=True)
    negatives = neg.sum(1, keepdim=True)
    d_an = d.gather(1, torch.where(place < negatives, nearest, farthest))
    chosen = pos & (negatives > 0)
    terms = torch.relu(d - d_an + margin) * chosen
    count = {"sum": torch.ones_like(negatives[0]), "mean": chosen.sum(), "active": (terms > 0).sum()}[reduction]
    return terms.sum() / count.clamp_min(1).squeeze()
