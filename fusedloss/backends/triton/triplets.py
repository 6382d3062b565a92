"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, tiles
from ...kernels import triplets as kernels
from ..dtypes import state_dtype
from ..request import Ranking, RankingGrad, Triplets, TripletsGrad
from .launch import Launch, Plan, cdiv, numbers, plan, total
from .sides import SCORES, Side, reorder, sides


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
    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positives and negatives each anchor has; an ignored anchor has no positives. [N]"""
        start, stop, ref_column = (t.long() for t in self.ranges)
        others = self.y.rows.counted[0] if self.y.rows.counted else self.y.n
        return stop - start - (ref_column >= 0).long(), others - (stop - start)

    def plan(self, kernel: str, terms: str = "") -> Plan:
        found = plan(kernel, terms, self.request.use, self.x)
        return found._replace(options=found.options | dict(SCORE=SCORES[self.request.metric]))


def fold_launch(s: Sorted, t: Triplets, chosen: Plan, splits: int, outs: Any, first: int, last: int) -> Launch:
    options = chosen.options | dict(KIND=t.triplets, SOFT=t.soft, SLOPED=t.sloped, K=configs.POSITIVES)
    args = (s.x.rows, s.y.rows, s.ranges, outs, numbers(t.margin), s.x.n, s.y.n, s.x.D, first, last)
    return Launch(kernels.fold_triplets, (cdiv(s.x.n, chosen.tile.BM), splits), args, options, chosen.key)


def semihard_launch(s: Sorted, t: Triplets, chosen: Plan, outs: kernels.Semihard, first: int, last: int) -> Launch:
    sizes = (s.x.n, s.y.n, s.x.D, first, last, len(outs.columns))
    args = (s.x.rows, s.y.rows, s.ranges, outs, numbers(t.margin), *sizes)
    options = chosen.options | dict(K=configs.POSITIVES)
    return Launch(kernels.mine_semihard, (cdiv(s.x.n, chosen.tile.BM),), args, options, chosen.key)


def fold_triplets(t: Triplets) -> tuple[Tensor, Tensor]:
    s = Sorted.of(t)
    N, M, dtype, device = s.x.n, s.y.n, state_dtype(t.batch.x), t.batch.x.device
    index, planned = t.new_negatives(), s.plan("fold_triplets")
    positives, negatives = s.counts
    if t.triplets == "nearest":
        found = torch.empty(2, N, dtype=dtype, device=device)
        semihard_launch(s, t, planned, kernels.Semihard(found, index), 0, M).run()
        cost, *active = found
        chosen = positives * negatives.clamp(max=1)
    else:
        parts = torch.empty(planned.splits(N, M), 3 + t.sloped, N, dtype=dtype, device=device)
        fold_launch(s, t, planned, len(parts), kernels.Sums(parts), 0, M).run()
        cost, chosen, *active = total(parts)  # with the slopes last
        chosen = positives * negatives if t.triplets == "all" else chosen
    return s.x.restore(torch.stack([cost, chosen.to(cost.dtype), *active]), 1), index


class Turn(NamedTuple):
    """The anchors' positives from number `first` on, `width` of them."""

    first: int
    width: int
    parts: int  # into how many parts the slopes are divided
    anchors: Any  # the anchors as the kernel takes them


def turns(s: Sorted, t: Triplets, du: Tensor, index: Tensor) -> Iterator[Turn]:
    """The positives of all anchors, in as many turns as a constant workspace needs: one, except for very large classes.

    The size of a class is not read, which would be a sync: the kernels of a turn that is not needed find nothing to do.
    """
    N, M = s.x.n, s.y.n
    start, stop, _ = s.ranges
    chosen = s.plan("fold_triplets")
    if t.triplets == "nearest":
        yield Turn(0, len(index), 1, kernels.Triplets(start, stop, du, index, index))
        width = min(M, max(1, configs.WORKSPACE // (4 * N)))
        found = torch.empty(width if len(index) < M else 0, N, dtype=index.dtype, device=du.device)
        states = torch.empty(2, N, dtype=state_dtype(t.batch.x), device=du.device)
        for first in range(len(index), M, width):
            semihard_launch(s, t, chosen, kernels.Semihard(states, found), first, first + width).run()
            yield Turn(first, width, 1, kernels.Triplets(start, stop, du, found, found))
        return
    parts = chosen.splits(N, M)
    width = min(M, max(1, configs.WORKSPACE // (4 * N * (1 + parts))))
    outs = kernels.Slopes(*(du.new_empty(*shape, width, N) for shape in ((), (parts,))))
    for first in range(0, M, width):
        fold_launch(s, t, chosen, parts, outs, first, first + width).run()
        yield Turn(first, width, parts, kernels.Triplets(start, stop, du, *outs))


def fold_triplets_grad(g: TripletsGrad) -> tuple[Tensor, Tensor]:
    t = g.forward
    s = Sorted.of(t)
    chosen = s.plan("triplets_grad", "nearest" if t.triplets == "nearest" else "exp" if t.soft else "")
    options = dict(ANCHORS=kernels.anchor_grad, KIND=t.triplets, SOFT=t.soft)
    all_turns = turns(s, t, reorder(g.dsums, s.x.order).float(), g.negatives)
    return gradients(g, s, all_turns, chosen, numbers(t.margin), options)


def gradients(
    g: TripletsGrad | RankingGrad, s: Sorted, all_turns: Iterator[Turn], chosen: Plan, number: tiles.Numbers,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dy, added up over the turns of the anchors' positives."""
    x, y = g.forward.batch.x, g.forward.batch.y
    runs = [(s.x, s.y, "self" if y is None else "x")] if g.want_x else []
    runs += [(s.y, s.x, "y")] if y is not None and g.want_y else []
    outs = [
        torch.zeros(chosen.splits(rows.n, others.n), rows.n, rows.D, dtype=torch.float32, device=x.device)
        for rows, others, _ in runs
    ]
    if s.x.n and s.y.n:
        longest = (s.ranges.stop - s.ranges.start).amax().reshape(1)
        for turn in all_turns:
            for (rows, others, role), out in zip(runs, outs, strict=True):
                anchors = [turn.anchors if role in of else () for of in (("x", "self"), ("y", "self"))]
                args = (rows.rows, others.rows, *anchors, out, number, longest, rows.n, others.n, rows.D)
                given = options | dict(ADD=turn.first > 0, SLAB=chosen.slab)
                grid = (cdiv(rows.n, chosen.tile.BM), len(out), cdiv(rows.D, chosen.slab * chosen.tile.BD))
                Launch(
                    kernels.triplets_grad, grid, (*args, turn.first, turn.width, turn.parts), chosen.options | given,
                    chosen.key, role,
                ).run()  # fmt: skip

    grads = [total(out, x.dtype) for out in outs]
    return grads[0] if g.want_x else x.new_empty(0), grads[-1] if y is not None and g.want_y else x.new_empty(0)
