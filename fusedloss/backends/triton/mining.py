"""Mining: the extreme positive and negative of every anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import mining
from ..request import Mining
from .launch import Launch, cdiv, optional, plan
from .sides import SCORES, sides

SIGNS = {"farthest": 1, "nearest": -1, "beyond": -2, "": 0}


def mine(m: Mining) -> Tensor:
    metric = "sqeuclidean" if m.metric == "euclidean" else m.metric  # the same order without square roots
    xs, ys = sides(m.batch, metric)
    chosen, N, device = plan("mine", "", metric, xs), xs.n, m.batch.x.device
    parts = chosen.splits(N, ys.n)

    def select(floor: Tensor, positives: str, negatives: str) -> tuple[Tensor, Tensor]:
        best = torch.empty(parts, 2, N, dtype=torch.float32, device=device)
        index = torch.empty(parts, 2, N, dtype=torch.int32, device=device)
        args = (xs.rows, ys.rows, floor, best, index, optional(m.batch.ref_offset), N, ys.n, xs.D)
        pieces = dict(SCORE=SCORES[metric], POSITIVE=SIGNS[positives], NEGATIVE=SIGNS[negatives])
        grid = (cdiv(N, chosen.tile.BM), parts)
        Launch(mining.mine, grid, args, chosen.options | pieces, chosen.key).run()
        if parts == 1:
            return best[0], index[0]
        most = best.amax(0)
        there = (best == most) & (index >= 0)
        lowest = torch.where(there, index, mining.NO_PLACE.value).amin(0)  # the lowest index among equal ones
        return most, torch.where(there.any(0), lowest, -1)

    if N == 0 or ys.n == 0:
        return torch.full((2, N), -1, dtype=torch.int64, device=device)
    if m.negatives != "beyond":
        return select(xs.rows.norms[0], m.positives, m.negatives)[1].long()
    best, index = select(xs.rows.norms[0], m.positives, "")
    _, beyond = select(best[0] * SIGNS[m.positives], "", m.negatives)
    return torch.stack([index[0], torch.where(index[0] >= 0, beyond[1], -1)]).long()
