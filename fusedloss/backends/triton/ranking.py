"""Ranks of an anchor's positives among its other rows, without a triple in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import configs, losses, tiles
from ...kernels import ranking as kernels
from ..dtypes import state_dtype
from ..triplet_requests import Ranking, RankingGrad
from .launch import Launch, Plan, cdiv, total
from .sides import reorder
from .sorted import Sorted
from .triplet_grads import Gradients


def launch(
    s: Sorted, q: Ranking, chosen: Plan, shares: int, outs: kernels.Terms | kernels.Weights, first: int, last: int
) -> Launch:
    options = chosen.options | dict(PIECE=getattr(losses, q.piece), TERMS=q.terms, K=configs.POSITIVES)
    sizes = (s.x.n, s.y.n, s.x.D, first, last)
    args = (s.x.rows, s.y.rows, s.ranges, outs, q.scale, tuple(q.numbers), *sizes)
    return Launch(kernels.rank, (cdiv(s.x.n, chosen.tile.BM), shares), args, options, chosen.key)


def rank(q: Ranking) -> Tensor:
    s = Sorted.of(q)
    (N, M, _), chosen = s.sizes, s.plan("rank")
    parts = torch.empty(chosen.splits(N, M), q.terms, N, dtype=state_dtype(q.batch.x), device=q.batch.x.device)
    launch(s, q, chosen, len(parts), kernels.Terms(parts), 0, M).run()
    start, stop, ref_column = s.ranges
    positives = stop - start - (ref_column >= 0).int()
    return s.x.restore(torch.cat([total(parts), positives[None].to(parts.dtype)]), 1)


def rank_grad(g: RankingGrad) -> tuple[Tensor, Tensor]:
    """In turns, as for triplets."""
    q = g.forward
    s = Sorted.of(q)
    (N, M, _), chosen = s.sizes, s.plan("rank")
    grads, dstates = Gradients(g, s, "rank"), reorder(g.dstates, s.x.order).float()
    width = max(1, min(M, configs.WORKSPACE // (16 * max(1, N))))
    weights = dstates.new_empty(4, width, N)
    outs, ranked = kernels.Weights(dstates, weights), kernels.Ranked(*s.ranges, weights)
    options = dict(KIND="rank", SOFT=False, PUSH=kernels.push_ranks, PULL=kernels.pull_ranks)
    for first in range(0, M, width):
        launch(s, q, chosen, chosen.splits(N, M), outs, first, first + width).run()
        grads.add(ranked, tiles.Numbers((q.scale,), ()), options, first, width)
    return grads.of_sides()
