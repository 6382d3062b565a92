"""Losses of mined pairs and triplets that a backend computes up to the mean, in a few launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import groups
from ..backends import resolve_backend
from ..backends.dtypes import loss_dtype
from ..backends.request import HardTriplets, MinedGrad, ToCenters
from ..checks import Batch
from .folds import as_tensor
from .registration import Operation


def closes(x: Tensor, reduction: str) -> bool:
    """Whether the functions below compute a loss of rows x. Otherwise it is composed of distances: where every row has
    its own value, over the processes of a group, and in the PyTorch backend."""
    return reduction != "none" and groups.current() is None and resolve_backend(x) == "triton"


def _grad_fake(g: MinedGrad) -> tuple[Tensor, Tensor]:
    dx = g.x.new_empty(g.x.shape if g.want_x else 0)
    return dx, g.x.new_empty(0) if g.y is None or not g.want_y else g.y.new_empty(g.y.shape)


mined_grad_op = Operation("mined_grad", MinedGrad, "(Tensor, Tensor)", _grad_fake)


def closed_fake(x: Tensor, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its factors and the slopes of so many pairs of each row."""
    loss, factors = (x.new_empty(shape, dtype=loss_dtype(x)) for shape in ((), (2,)))
    return loss, factors, x.new_empty(3, pairs, x.shape[0], dtype=torch.float32)


def _triplets_fake(t: HardTriplets) -> tuple[Tensor, ...]:
    loss, factors, slopes = closed_fake(t.batch.x, 2)
    return loss, factors, t.batch.x.new_empty(2, t.batch.x.shape[0], dtype=torch.int32), slopes


def _triplets_backward(
    t: HardTriplets, wanted: Any, backend: str, outputs: Any, derivatives: Any
) -> dict[str, Tensor]:  # fmt: skip
    (_, factors, index, slopes), dloss, b = outputs, derivatives[0], t.batch
    want_x, want_y = wanted.batch.x, bool(wanted.batch.y)
    found = {}
    if want_x or want_y:
        grad = MinedGrad(b.x, b.y, index, slopes, factors, dloss, t.metric, want_x, want_y)
        found["x"], found["y"] = mined_grad_op(grad, backend)
    if wanted.margin:
        found["margin"] = (dloss * factors[1]).reshape(1).to(t.margin)
    return found


hard_triplets_op = Operation(
    "hard_triplets", HardTriplets, "(Tensor, Tensor, Tensor, Tensor)", _triplets_fake, _triplets_backward
)  # fmt: skip


def hard_triplets(
    batch: Batch, metric: str, positives: str, negatives: str, margin: float | Tensor, soft: bool, reduction: str
) -> Tensor:  # fmt: skip
    """The triplet loss of every anchor's mined positive and negative, see `mine`: "mean", "sum" or "active". The terms
    are hinges, or if `soft` their smooth form. It is differentiable by x, y and the margin."""
    request = HardTriplets(batch, as_tensor([margin], batch.x), metric, positives, negatives, soft, reduction)
    return hard_triplets_op(request, resolve_backend(batch.x))[0]


def _centers_fake(t: ToCenters) -> tuple[Tensor, ...]:
    return closed_fake(t.x, 1)


def _centers_backward(
    t: ToCenters, wanted: Any, backend: str, outputs: Any, derivatives: Any
) -> dict[str, Tensor]:  # fmt: skip
    _, factors, slopes = outputs
    of = MinedGrad(
        t.x, t.centers, t.classes[None], slopes, factors, derivatives[0], "sqeuclidean", wanted.x, wanted.centers
    )
    dx, dcenters = mined_grad_op(of, backend)
    return {"x": dx, "centers": dcenters}


to_centers_op = Operation("to_centers", ToCenters, "(Tensor, Tensor, Tensor)", _centers_fake, _centers_backward)


def to_centers(x: Tensor, centers: Tensor, classes: Tensor, reduction: str) -> Tensor:
    """Half the squared distance of every row to the center of its class, "mean" or "sum" over the rows that have one;
    NaN if a class is `checks.WRONG`."""
    return to_centers_op(ToCenters(x, centers, classes, reduction), resolve_backend(x))[0]
