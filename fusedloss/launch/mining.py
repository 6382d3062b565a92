"""Mining: the extreme positive and negative of every anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import mining
from .common import SCORES, Launch, Side, cdiv, pick, prepare, splits

SIGNS = {"farthest": 1, "nearest": -1, "beyond": -2, "": 0}


def mine_launch(
    x: Side, y: Side, floor: Tensor, best: Tensor, index: Tensor, D: int, metric: str, precision: str,
    positives: str, negatives: str, own: bool,
) -> Launch:  # fmt: skip
    """own: without the pairs (i, i)."""
    tile, key, options = pick("mine", metric, x, precision, D)
    N, M = len(x.labels), len(y.labels)
    options |= dict(SCORE=SCORES[metric], POSITIVE=SIGNS[positives], NEGATIVE=SIGNS[negatives], SELF=own)
    args = (x.argument, y.argument, floor, best, index, N, M, D)
    return Launch(mining.mine, (cdiv(N, tile.BM), len(best)), args, options, key)


def mine(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, metric: str, positives: str, negatives: str,
    own: bool,
) -> Tensor:  # fmt: skip
    """Index of every anchor's positive and negative, -1 where there is none. [2, N] int64"""
    metric = "sqeuclidean" if metric == "euclidean" else metric  # the same order, no root
    xs, precision = prepare(x, x_labels, metric)
    ys = xs if y is None else prepare(y, y_labels, metric)[0]
    N, M, D = len(x), len(ys.labels), x.shape[1]
    parts = splits(N, M, pick("mine", metric, xs, precision, D).tile)

    def select(floor: Tensor, positives: str, negatives: str) -> tuple[Tensor, Tensor]:
        best = torch.empty(parts, 2, N, dtype=torch.float32, device=x.device)
        index = torch.empty(parts, 2, N, dtype=torch.int32, device=x.device)
        mine_launch(xs, ys, floor, best, index, D, metric, precision, positives, negatives, own or y is None).run()
        if parts == 1:
            return best[0], index[0]
        first = best.argmax(0, keepdim=True)  # the first split on ties, so the lowest index
        return best.gather(0, first)[0], index.gather(0, first)[0]

    if N == 0 or M == 0:
        return torch.full((2, N), -1, dtype=torch.int64, device=x.device)
    if negatives != "beyond":
        return select(xs.norms, positives, negatives)[1].long()
    best, index = select(xs.norms, positives, "")
    _, beyond = select(best[0] * SIGNS[positives], "", negatives)
    return torch.stack([index[0], torch.where(index[0] >= 0, beyond[1], -1)]).long()
