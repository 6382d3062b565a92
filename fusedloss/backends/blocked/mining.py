"""Mining: the extreme positive and negative of every anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..request import Mining
from .parallel import single_threaded, spread
from .tiles import row_tiles, sides

FIRST = {"farthest": -torch.inf, "nearest": torch.inf}


@single_threaded(lambda m: m.batch)
def mine(m: Mining) -> Tensor:
    x, positives, negatives = m.batch.x, m.positives, m.negatives
    metric = "sqeuclidean" if m.metric == "euclidean" else m.metric  # the same order without square roots
    xs, ys = sides(m.batch, metric, sort=False)
    index = torch.full((2, len(x)), -1, dtype=torch.int64, device=x.device)
    pos_best = xs.rows.new_full((len(x),), FIRST[positives])
    neg_best = xs.rows.new_full((len(x),), FIRST["nearest" if negatives == "beyond" else negatives])

    def of_rows(i: int) -> None:
        r = xs.blocks[i]
        for t in row_tiles(xs, ys, metric, i):
            if negatives != "beyond":
                keep_best(neg_best[r], index[1, r], t.s, t.neg, negatives, t.c.start)
            keep_best(pos_best[r], index[0, r], t.s, t.pos, positives, t.c.start)
        if negatives == "beyond":
            for t in row_tiles(xs, ys, metric, i):
                beyond = (t.s <= pos_best[r, None]).logical_not_().logical_and_(t.neg)
                keep_best(neg_best[r], index[1, r], t.s, beyond, "nearest", t.c.start)

    spread(len(xs.blocks), of_rows)
    if negatives == "beyond":
        index[1].masked_fill_(index[0] < 0, -1)
    return index


def keep_best(best: Tensor, index: Tensor, s: Tensor, eligible: Tensor, wanted: str, first: int) -> None:
    """Update the running extreme of each row in place; ties go to the lowest index, and NaN wins so that it shows."""
    finite = torch.finfo(s.dtype)
    t = s.clamp_(min=finite.min, max=finite.max).masked_fill(~eligible, FIRST[wanted])
    value, at = t.max(1) if wanted == "farthest" else t.min(1)
    better = value > best if wanted == "farthest" else value < best
    better |= value.isnan() & ~best.isnan()
    best.copy_(torch.where(better, value, best))
    index.copy_(torch.where(better, at + first, index))
