"""Mining: the extreme positive and negative of every anchor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, mining
from ..request import Mining
from .launch import Launch, cdiv, optional, plan
from .sides import SCORES, sides

SIGNS = {"farthest": 1, "nearest": -1, "beyond": -2}


class Mined(NamedTuple):
    """The best positive and negative that each program has found in its part of the columns. [parts, 2, N]"""

    best: Tensor
    places: Tensor


def mine_parts(m: Mining) -> Mined:
    metric = "sqeuclidean" if m.metric == "euclidean" else m.metric  # the same order without square roots
    xs, ys = sides(m.batch, metric)
    chosen, device = plan("mine", "", metric, xs), m.batch.x.device
    shape = (chosen.splits(xs.n, ys.n) if ys.n else 0, 2, xs.n)
    found = Mined(*(torch.empty(shape, dtype=dtype, device=device) for dtype in (torch.float32, torch.int32)))
    args = (xs.rows, ys.rows, *found, optional(m.batch.ref_offset), xs.n, ys.n, xs.D)
    negative = SIGNS[m.negatives]
    for wanted in (0, negative) if m.negatives == "beyond" else (negative,):  # first the positives, then what is beyond
        pieces = dict(SCORE=SCORES[metric], POSITIVE=SIGNS[m.positives], NEGATIVE=wanted)
        grid = (cdiv(xs.n, chosen.tile.BM), shape[0])
        Launch(mining.mine, grid, args, chosen.options | pieces, chosen.key).run()
    return found


def mine(m: Mining) -> Tensor:
    found, N = mine_parts(m), m.batch.x.shape[0]
    index = torch.empty(2, N, dtype=torch.int64, device=m.batch.x.device)
    options = dict(BEYOND=m.negatives == "beyond", BM=configs.MERGED, BP=configs.PARTS, num_warps=4)
    args = (*found, index, N, found.places.shape[0])
    Launch(mining.merge_mined, (cdiv(N, configs.MERGED),), args, options).run()
    return index
