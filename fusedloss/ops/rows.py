"""Mined, listed and given pairs: which they are, and their exact distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import resolve_backend
from ..backends.dtypes import loss_dtype
from ..backends.request import (
    ListedDistances,
    ListedDistancesGrad,
    Mining,
    RowDistances,
    RowDistancesGrad,
)
from ..checks import Batch
from . import shared
from .registration import Operation
from .shared import group_of


def _mine_fake(m: Mining) -> Tensor:
    return m.batch.x.new_empty(2, m.batch.x.shape[0], dtype=torch.int64)


mine_op = Operation("mine", Mining, "Tensor", _mine_fake)


def minable(batch: Batch, negatives: str) -> Batch:
    """The batch for `mine` and `mined_distances`. Over a group it has the rows of all processes if they come at once,
    as they must for negatives "beyond" the positive."""
    group = group_of(batch)
    if group is None or (group.mode == "ring" and negatives != "beyond"):
        return batch
    return shared.gathered(batch, group)


def mine(batch: Batch, metric: str, positives: str, negatives: str) -> Tensor:
    """The index of every anchor's positive and negative; -1 where there is none. [2, N] int64

    positives: "farthest" or "nearest".
    negatives: "farthest", "nearest", or "beyond": the nearest that is farther than the positive.
    """
    detached = batch._replace(x=batch.x.detach(), y=None if batch.y is None else batch.y.detach())
    request, backend, group = Mining(detached, metric, positives, negatives), resolve_backend(batch.x), group_of(batch)
    return mine_op(request, backend) if group is None else shared.mine(request, group, backend)


def _listed_grad_fake(g: ListedDistancesGrad) -> tuple[Tensor, Tensor]:
    x, y = g.forward.x, g.forward.y
    dx = x.new_empty(x.shape if g.want_x else 0)
    return dx, x.new_empty(0) if y is None or not g.want_y else y.new_empty(y.shape)


listed_distances_grad_op = Operation(
    "listed_distances_grad", ListedDistancesGrad, "(Tensor, Tensor)", _listed_grad_fake
)  # fmt: skip


def _listed_fake(of: ListedDistances) -> Tensor:
    return of.x.new_empty(of.others.shape, dtype=loss_dtype(of.x))


def _listed_backward(
    of: ListedDistances, wanted: Any, backend: str, outputs: Any, derivatives: Any
) -> dict[str, Tensor]:  # fmt: skip
    """Sums for every row over the pairs that it is in."""
    dx, dy = listed_distances_grad_op(ListedDistancesGrad(of, derivatives[0], wanted.x, bool(wanted.y)), backend)
    return {"x": dx, "y": dy}


listed_distances_op = Operation(
    "listed_distances", ListedDistances, "Tensor", _listed_fake, _listed_backward, saves_outputs=False
)  # fmt: skip


def listed_distances(x: Tensor, y: Tensor | None, anchors: Tensor, others: Tensor, metric: str) -> Tensor:
    """Exact distances of listed pairs: rows of x to rows of y (or of x if there is no y), both given by index. [P]

    Pairs may be listed in any order, and count as often as they are listed. Indices are not checked.
    """
    return listed_distances_op(ListedDistances(x, y, anchors, others[None], metric), resolve_backend(x))[0]


def mined_distances(batch: Batch, index: Tensor, metric: str) -> Tensor:
    """Exact distances of every anchor to its mined pairs, NaN where there is none. [2, N]"""
    x, group = batch.x, group_of(batch)
    if group is None:
        return listed_distances_op(ListedDistances(x, batch.y, None, index, metric), resolve_backend(x))
    rows, _ = shared.sizes(batch, group)
    of_positive, of_negative = shared.taken(x, index, group, rows).unbind()
    return row_distances(x, of_positive, of_negative, metric, pairs=2).masked_fill(index < 0, torch.nan)


def _row_grad_fake(g: RowDistancesGrad) -> tuple[Tensor, Tensor, Tensor]:
    a, c = g.forward.a, g.forward.c
    return a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(0 if c is None else a.shape)


row_distances_grad_op = Operation(
    "row_distances_grad", RowDistancesGrad, "(Tensor, Tensor, Tensor)", _row_grad_fake
)  # fmt: skip


def _row_fake(r: RowDistances) -> Tensor:
    return r.a.new_empty(r.pairs, r.a.shape[0], dtype=loss_dtype(r.a))


def _row_backward(
    r: RowDistances, wanted: Any, backend: str, outputs: Any, derivatives: Any
) -> dict[str, Tensor]:  # fmt: skip
    da, db, dc = row_distances_grad_op(RowDistancesGrad(r, derivatives[0]), backend)
    return {"a": da, "b": db, "c": dc}


row_distances_op = Operation("row_distances", RowDistances, "Tensor", _row_fake, _row_backward, saves_outputs=False)


def row_distances(a: Tensor, b: Tensor, c: Tensor | None, metric: str, eps: float = 0.0, pairs: int = 1) -> Tensor:
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N]"""
    return row_distances_op(RowDistances(a, b, c, metric, eps, pairs), resolve_backend(a))
