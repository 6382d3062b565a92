"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, semihard, triplet_grads
from ...kernels import triplets as kernels
from ..dtypes import state_dtype
from ..request import Ranking, Triplets, TripletsGrad
from .launch import SCORES, Launch, Plan, Side, cdiv, numbers, plan, reorder, sides
from .triplet_grads import Gradients


class Sorted(NamedTuple):
    """A request with both sides sorted by label; they are one and the same if there is no y."""

    request: Triplets | Ranking
    x: Side
    y: Side
    ranges: kernels.Ranges

    @staticmethod
    def of(t: Triplets | Ranking) -> Sorted:
        xs, ys = sides(t.batch, t.metric, sort=True)
        (start, stop), offset = xs.rows.near, t.batch.ref_offset
        places = torch.arange(ys.n, dtype=torch.int32, device=start.device)
        if t.batch.y is None:
            ref_column = places
        elif offset is None or xs.order is None:
            ref_column = places.new_full((xs.n,), -1)
        else:
            ref_column = ys.restore(places, 0)[xs.order + offset]
        if xs.rows.counted:
            counts = torch.arange(xs.n, device=start.device) < xs.rows.counted[0]
            stop, ref_column = torch.where(counts, stop, start), torch.where(counts, ref_column, -1)
        return Sorted(t, xs, ys, kernels.Ranges(start, stop, ref_column))

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.x.n, self.y.n, self.x.D

    def plan(self, kernel: str, terms: str = "") -> Plan:
        found = plan(kernel, terms, self.request.use, self.x)
        return found._replace(options=found.options | dict(SCORE=SCORES[self.request.metric]))


class Found(NamedTuple):
    """What was found of the anchors' positives number `first` to `first + width`, see `Triplets`."""

    index: Tensor
    kept: Tensor
    first: int
    width: int

    @property
    def splits(self) -> int:
        return self.kept.shape[1]


def fold(s: Sorted, t: Triplets, found: Found, last: int) -> Tensor:
    """The states of the triplets of positives number `found.first` to `last`; the first of them are written to
    `found`."""
    chosen, (N, _, _) = s.plan("fold_triplets", "exp" if t.soft else ""), s.sizes
    states = torch.empty(found.splits, 3, N, dtype=state_dtype(t.batch.x), device=t.batch.x.device)
    thresholds, slopes = found.kept
    kept = kernels.Kept(thresholds, found.index, slopes)
    options = chosen.options | dict(KIND=t.triplets, SOFT=t.soft, COUNT=t.counted, K=configs.POSITIVES)
    args = (s.x.rows, s.y.rows, s.ranges, kept, states, numbers(t.margin), *s.sizes, found.first, last, found.width)
    grid = (cdiv(N, chosen.tile.BM), found.splits)
    Launch(kernels.fold_triplets, grid, args, options, chosen.key).run()
    return states.sum(0) if found.splits > 1 else states[0]


def mine(s: Sorted, t: Triplets, splits: int, found: Found, last: int) -> Tensor:
    """The same for the nearest negatives."""
    chosen, (N, M, _), device = s.plan("mine_semihard"), s.sizes, t.batch.x.device
    room = max(1, min(M, configs.ROOM, configs.WORKSPACE // (28 * N * splits)))
    states = torch.empty(3, N, dtype=state_dtype(t.batch.x), device=device)
    near = torch.empty(splits, room, N, dtype=torch.float32, device=device)
    integers = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in (
        (near.shape, torch.int16), (near.shape, torch.int32), ((splits, N), torch.int32),
    )]  # fmt: skip
    ranks, columns, far_columns = integers
    known = semihard.Known(torch.empty_like(near), ranks, near, columns, near.new_empty(splits, N), far_columns)
    outs, margin = semihard.Outcome(states, found.index), numbers(t.margin)
    options = chosen.options | dict(COUNT=t.counted, K=configs.POSITIVES)
    args = (s.x.rows, s.y.rows, s.ranges, known, outs, margin, *s.sizes, found.first, last, found.width, room)
    Launch(semihard.mine_semihard, (cdiv(N, chosen.tile.BM), splits), args, options, chosen.key).run()
    if splits > 1:
        BLOCK = configs.SETTLED
        args = (s.x.rows, s.ranges, known, outs, margin, N, found.width, room, splits)
        options = dict(COUNT=t.counted, BLOCK=BLOCK, num_warps=4)
        Launch(semihard.settle_semihard, (cdiv(N, BLOCK),), args, options).run()
    return states


def fold_triplets(t: Triplets) -> tuple[Tensor, Tensor, Tensor]:
    s = Sorted.of(t)
    found = Found(t.new_index(), t.new_kept(), 0, t.width)
    if s.x.n == 0 or s.y.n == 0:
        return t.new_states(), found.index, found.kept
    states = mine(s, t, t.splits, found, s.y.n) if t.triplets == "nearest" else fold(s, t, found, s.y.n)
    return states, found.index, found.kept


def fold_triplets_grad(g: TripletsGrad) -> tuple[Tensor, Tensor]:
    """The positives of all anchors in turns as long as what was kept: one, except for very large classes.

    The size of a class is not read, which would be a sync: the kernels of a turn that is not needed find nothing to do.
    """
    t, nearest = g.forward, g.forward.triplets == "nearest"
    s = Sorted.of(t)
    grads = Gradients(g, s, "nearest" if nearest else "exp" if t.soft else "")
    du, (start, stop, _) = reorder(g.dsums, s.x.order).float(), s.ranges
    options = dict(KIND=t.triplets, SOFT=t.soft)
    push, pull = (triplet_grads.push_mined, triplet_grads.pull_mined) if nearest else (
        triplet_grads.push_triplets, triplet_grads.pull_triplets
    )  # fmt: skip
    for first in range(0, s.y.n, t.width):
        found = Found(g.index, g.kept, first, t.width)
        if first > 0:
            found = found._replace(index=torch.empty_like(g.index), kept=torch.empty_like(g.kept))
            last = first + t.width
            _ = mine(s, t, 1, found, last) if nearest else fold(s, t, found, last)
        if nearest:
            anchors = triplet_grads.Mined(start, stop, du, found.index)
        else:
            anchors = triplet_grads.Anchors(start, stop, du, found.kept[0], found.index, found.kept[1])
        grads.add(anchors, push, pull, numbers(t.margin), options, first, t.width, found.splits)
    return grads.of_sides()
