"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import configs, semihard
from ...kernels import triplet_grads as kernels_of_grad
from ...kernels import triplets as kernels
from ..dtypes import state_dtype
from ..request import Wants
from ..triplet_requests import Triplets, TripletsGrad
from .launch import Launch, cdiv, numbers
from .sides import Side, reorder
from .sorted import Sorted
from .triplet_grads import Gradients


def terms_of(t: Triplets) -> str:
    """The terms as `configs.Work` names them; choosing triplets of a kind takes as many registers as an exponential."""
    return "nearest" if t.triplets == "nearest" else "exp" if t.soft or t.triplets != "all" else ""


def fold(s: Sorted, t: Triplets, places: Tensor, kept: Tensor) -> Tensor:
    """The states of all triplets."""
    chosen, (thresholds, slopes), (N, _, _) = s.plan("fold_triplets", terms_of(t)), kept, s.sizes
    states = torch.empty(len(slopes), 3, N, dtype=state_dtype(t.batch.x), device=t.batch.x.device)
    options = chosen.options | dict(KIND=t.triplets, SOFT=t.soft, COUNT=t.counted, K=configs.POSITIVES)
    outs = kernels.Kept(thresholds, places, slopes)
    args = (s.x.rows, s.y.rows, s.ranges, outs, states, numbers(t.margin), *s.sizes, t.width)
    Launch(kernels.fold_triplets, (cdiv(N, chosen.tile.BM), len(slopes)), args, options, chosen.key).run()
    return states.sum(0) if len(slopes) > 1 else states[0]


def mine(s: Sorted, t: Triplets, splits: int, negatives: Tensor, first: int, last: int) -> Tensor:
    """The states of the semi-hard triplets of positives number `first` to `last`, of which the negatives of as many as
    there is room for are written."""
    chosen, (N, M, _), width = s.plan("mine_semihard"), s.sizes, len(negatives)
    room = max(1, min(M, configs.ROOM, configs.WORKSPACE // (56 * N * splits)))
    near = negatives.new_empty(splits, room, t.lanes, dtype=torch.float32)
    far = negatives.new_empty(splits, t.lanes, dtype=torch.float32)
    ranks, columns = (torch.empty_like(near, dtype=dtype) for dtype in (torch.int16, torch.int32))
    far_columns = torch.empty_like(far, dtype=torch.int32)
    known = semihard.Known(torch.empty_like(near), ranks, near, columns, far, far_columns)
    outs = semihard.Outcome(negatives.new_empty(3, N, dtype=state_dtype(t.batch.x)), negatives)
    options = chosen.options | dict(COUNT=t.counted, K=configs.POSITIVES)
    margin = numbers(t.margin)
    args = (s.x.rows, s.y.rows, s.ranges, known, outs, margin, *s.sizes, first, last, width, room)
    Launch(semihard.mine_semihard, (cdiv(N, chosen.tile.BM), splits), args, options, chosen.key).run()
    if splits > 1:
        BLOCK = configs.SETTLED
        given = (s.x.rows, s.ranges, known, outs, margin, N, width, room, splits)
        options = dict(COUNT=t.counted, BLOCK=BLOCK, num_warps=4)
        Launch(semihard.settle_semihard, (cdiv(N, BLOCK),), given, options).run()
    return outs.states


def fold_triplets(t: Triplets) -> tuple[Tensor, Tensor, Tensor]:
    return of_sorted(Sorted.of(t), t)


def of_sorted(s: Sorted, t: Triplets) -> tuple[Tensor, Tensor, Tensor]:
    places, kept = t.new_places(), t.new_kept()
    if s.x.n == 0 or s.y.n == 0:
        return t.new_states(), places, kept
    if t.triplets == "nearest":
        return mine(s, t, t.splits, places, 0, s.y.n), places, kept
    return fold(s, t, places, kept), places, kept


Saved = tuple[Side, Side, kernels.Ranges, Tensor, Tensor, Tensor]  # what the backward need not compute again


def keep_triplets(t: Triplets, _wants: Wants) -> tuple[Tensor, Saved]:
    """The states, and what the backward needs."""
    s = Sorted.of(t)
    states, *found = of_sorted(s, t)
    return states, (s.x, s.y, s.ranges, states, *found)  # type: ignore[return-value]


def kept_triplets_grad(t: Triplets, saved: Saved, derivative: Tensor, wants: Wants) -> tuple[Tensor | None, ...]:
    """dx, dy, and the derivatives by the margin and by no offsets."""
    x, y, ranges, states, places, kept = saved
    dx, dy = gradient(TripletsGrad(t, places, kept, derivative[0], wants.x, wants.y), Sorted(t, x, y, ranges))
    return dx, dy, t.by_margin(states, derivative[0]) if wants.numbers else None, None


def fold_triplets_grad(g: TripletsGrad) -> tuple[Tensor, Tensor]:
    return gradient(g, Sorted.of(g.forward))


def gradient(g: TripletsGrad, s: Sorted) -> tuple[Tensor, Tensor]:
    """First through the positives of which something was kept, then through the others.

    How large classes are is not read, which would be a sync: the kernels for the others find nothing to do.
    """
    t, margin = g.forward, numbers(g.forward.margin)
    grads = Gradients(g, s, terms_of(t))
    du, (start, stop, _) = reorder(g.dsums, s.x.order).float(), s.ranges
    options = dict(KIND=t.triplets, SOFT=t.soft)
    if t.triplets != "nearest":
        thresholds, slopes = g.kept
        anchors = kernels_of_grad.Anchors(start, stop, du, thresholds, g.places, slopes)
        options |= dict(PUSH=kernels_of_grad.push_triplets, PULL=kernels_of_grad.pull_triplets)
        grads.add(anchors, margin, options, 0, t.width, len(slopes))
        return grads.with_tail(t, s.ranges, du, margin)
    options |= dict(PUSH=kernels_of_grad.push_mined, PULL=kernels_of_grad.pull_mined)
    negatives = g.places
    for first in range(0, s.y.n, max(1, t.width)):
        if first > 0:
            negatives = torch.empty_like(g.places) if first == t.width else negatives
            mine(s, t, 1, negatives, first, first + t.width)
        grads.add(kernels_of_grad.Mined(start, stop, du, negatives), margin, options, first, t.width)
    return grads.of_sides()
