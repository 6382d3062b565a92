"""Ranks of an anchor's positives among its other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..backends import resolve_backend
from ..backends.triplet_requests import Ranking, RankingGrad
from ..checks import Batch
from .registration import Operation
from .shared import gathered, group_of
from .triplets import grad_fake

rank_grad_op = Operation("rank_grad", RankingGrad, "(Tensor, Tensor)", grad_fake)


def _backward(q: Ranking, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    """Recomputes the tiles. The last state is a count and has no derivative."""
    dx, dy = rank_grad_op(RankingGrad(q, derivatives[0][:-1], wanted.batch.x, wanted.batch.y), backend)
    return {"x": dx, "y": dy}


rank_op = Operation("rank", Ranking, "Tensor", Ranking.new_states, _backward, saves_outputs=False)


def rank(batch: Batch, metric: str, scale: float, piece: str, numbers: Sequence[float] = ()) -> tuple[Tensor, ...]:
    """For every anchor, the sum over its positives of each term of a piece, and how many positives it has. [N] each

    The rank of a positive is 1 + the sum of logistic(scale (s - its own score)) over the anchor's other rows. The sums
    are differentiable by x and y.

    piece: "imprecision", without numbers; or "recall", whose numbers are a temperature, then every k.
    """
    group = group_of(batch)
    batch = batch if group is None else gathered(batch, group)
    request = Ranking(batch, metric, scale, piece, [*numbers], max(1, len(numbers) - 1))
    return rank_op(request, resolve_backend(batch.x)).unbind()
