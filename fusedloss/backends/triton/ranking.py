"""Ranks of an anchor's positives among its other rows, without a triple in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels import configs, losses, tiles
from ...kernels import ranking as kernels
from ..dtypes import state_dtype
from ..request import Ranking, RankingGrad
from .launch import Launch, Plan, cdiv, total
from .sides import reorder
from .triplets import Sorted, Turn, gradients


def launch(
    s: Sorted, q: Ranking, chosen: Plan, shares: int, outs: kernels.Terms | kernels.Weights, first: int, last: int
) -> Launch:
    options = chosen.options | dict(PIECE=getattr(losses, q.piece), TERMS=q.terms, K=configs.POSITIVES)
    sizes = (s.x.n, s.y.n, s.x.D, first, last)
    args = (s.x.rows, s.y.rows, s.ranges, outs, q.scale, tuple(q.numbers), *sizes)
    return Launch(kernels.rank, (cdiv(s.x.n, chosen.tile.BM), shares), args, options, chosen.key)


def rank(q: Ranking) -> Tensor:
    s = Sorted.of(q)
    N, M, chosen = s.x.n, s.y.n, s.plan("rank")
    parts = torch.empty(chosen.splits(N, M), q.terms, N, dtype=state_dtype(q.batch.x), device=q.batch.x.device)
    launch(s, q, chosen, len(parts), kernels.Terms(parts), 0, M).run()
    positives, _ = s.counts
    return s.x.restore(torch.cat([total(parts), positives[None].to(parts.dtype)]), 1)


def turns(s: Sorted, q: Ranking, dstates: Tensor) -> Iterator[Turn]:
    """The turns of the positives, as for triplets."""
    N, M, chosen = s.x.n, s.y.n, s.plan("rank")
    width = min(M, max(1, configs.WORKSPACE // (16 * N)))
    weights = dstates.new_empty(4, width, N)
    outs, ranked = kernels.Weights(dstates, weights), kernels.Ranked(*s.ranges, weights)
    for first in range(0, M, width):
        launch(s, q, chosen, chosen.splits(N, M), outs, first, first + width).run()
        yield Turn(first, width, 1, ranked)


def rank_grad(g: RankingGrad) -> tuple[Tensor, Tensor]:
    q = g.forward
    s = Sorted.of(q)
    all_turns = turns(s, q, reorder(g.dstates, s.x.order).float())
    options = dict(ANCHORS=kernels.rank_grad, KIND="rank", SOFT=False)
    return gradients(g, s, all_turns, s.plan("triplets_grad", "rank"), tiles.Numbers((q.scale,), ()), options)
