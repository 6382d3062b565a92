"""All triplets of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends import resolve_backend
from ..backends.triplet_requests import STORED, RankingGrad, Triplets, TripletsGrad
from ..checks import Batch
from . import direct
from .folds import as_tensor
from .registration import Operation
from .shared import gathered, group_of


def grad_fake(g: TripletsGrad | RankingGrad) -> tuple[Tensor, Tensor]:
    x, y = g.forward.batch.x, g.forward.batch.y
    dy = x.new_empty(0) if y is None or not g.want_y else y.new_empty(y.shape)
    return x.new_empty(x.shape if g.want_x else 0), dy


fold_triplets_grad_op = Operation("fold_triplets_grad", TripletsGrad, "(Tensor, Tensor)", grad_fake)


def _backward(t: Triplets, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    """Only the sums of the terms have a derivative."""
    (states, places, kept), dsums = outputs, derivatives[0][0]
    dx, dy = fold_triplets_grad_op(TripletsGrad(t, places, kept, dsums, wanted.batch.x, wanted.batch.y), backend)
    found = {"x": dx, "y": dy}
    if wanted.margin:
        found["margin"] = t.by_margin(states, dsums)
    return found


def _fake(t: Triplets) -> tuple[Tensor, Tensor, Tensor]:
    return t.new_states(), t.new_places(), t.new_kept()


fold_triplets_op = Operation("fold_triplets", Triplets, "(Tensor, Tensor, Tensor)", _fake, _backward)


def fold_triplets(
    batch: Batch, margin: float | Tensor, metric: str, triplets: str, soft: bool = False, counted: str = "none"
) -> tuple[Tensor, Tensor]:
    """For every anchor, the sum of its triplets' terms, and how many are counted: the "chosen" ones, the "active" ones,
    whose terms are above 0, or "none". [N] each

    The sums are differentiable by x, y and the margin.

    triplets: "all"; the "hard", "semihard" or "easy" ones; or "nearest": one for each positive, with the nearest
        negative that is farther, else the farthest.
    """
    group = group_of(batch)
    batch = batch if group is None else gathered(batch, group)
    backend = resolve_backend(batch.x)
    stored = STORED[backend, "nearest" if triplets == "nearest" else "all"]
    request = Triplets(batch, as_tensor([margin], batch.x), metric, triplets, soft, counted, stored)
    if direct.possible(direct.tensors_in(request), backend, "triplets"):
        states = direct.apply(request, backend)
    else:
        states, *_ = fold_triplets_op(request, backend)
    return states[0], states[1]
