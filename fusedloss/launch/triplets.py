"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import configs
from ..kernels import triplets as kernels
from ..states import new_index, state_dtype
from .common import SCORES, Launch, Plan, Side, cdiv, listed, pick, prepare, reorder, splits, total


class Batch(NamedTuple):
    """Both sides sorted by label, the same one in a self batch; and where in y the positives of each anchor begin and
    end, and which row is the anchor itself, or -1. [N] int32 each"""

    x: Side
    y: Side
    ranges: tuple[Tensor, Tensor, Tensor]
    metric: str
    precision: str

    @staticmethod
    def of(x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, metric: str, own: bool) -> Batch:
        def side(rows: Tensor, labels: Tensor) -> tuple[Side, str]:
            order = labels.argsort(stable=True)
            prepared, precision = prepare(reorder(rows, order), reorder(labels, order), metric)
            return prepared._replace(order=order), precision

        xs, precision = side(x, x_labels)
        ys = xs if y is None else side(y, y_labels)[0]
        starts, ends = (torch.searchsorted(ys.labels, xs.labels, right=end, out_int32=True) for end in (False, True))
        places = torch.arange(len(ys.labels), dtype=torch.int32, device=x.device)
        itself = places if y is None else torch.full_like(starts, -1)
        if y is not None and own:
            itself = ys.restore(places, 0)[xs.order]
        return Batch(xs, ys, (starts, ends, itself), metric, precision)

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positives and negatives each anchor has. [N]"""
        starts, ends, itself = (t.long() for t in self.ranges)
        return ends - starts - (itself >= 0).long(), len(self.y.labels) - (ends - starts)

    def pick(self, kernel: str, D: int, margin: Tensor, triplets: str, soft: bool) -> Plan:
        use = f"{self.metric} {triplets}{' soft' if soft else ''}"
        plan = pick(kernel, use, self.x, self.precision, D)
        own = dict(SCORE=SCORES[self.metric], FROM_MEMORY=margin.device.type != "cpu")
        return plan._replace(options=plan.options | own)


def fold_launch(
    b: Batch, outs: tuple[Tensor, ...], margin: Tensor, D: int, first: int, last: int, triplets: str, soft: bool
) -> Launch:
    """Of the states [splits, 3, N], or of thresholds [last - first, N] and slopes [splits, last - first, N]."""
    tile, key, options = b.pick("triplets", D, margin, triplets, soft)
    options |= dict(KIND=triplets, SOFT=soft, SLOPES=len(outs) == 2, K=configs.POSITIVES)
    N, M = len(b.x.labels), len(b.y.labels)
    args = (b.x.argument, b.y.argument, b.ranges, outs, listed(margin), N, M, D, first, last)
    return Launch(kernels.fold_triplets, (cdiv(N, tile.BM), len(outs[-1])), args, options, key)


def semihard_launch(b: Batch, states: Tensor, index: Tensor, margin: Tensor, D: int, first: int, last: int) -> Launch:
    tile, key, options = b.pick("triplets", D, margin, "nearest", False)
    N, M = len(b.x.labels), len(b.y.labels)
    args = (b.x.argument, b.y.argument, b.ranges, (states, index), listed(margin), N, M, D, first, last, len(index))
    return Launch(kernels.mine_semihard, (cdiv(N, tile.BM),), args, options | dict(K=configs.POSITIVES), key)


def fold_triplets(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, margin: Tensor, metric: str, triplets: str,
    soft: bool, own: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """States of every anchor [3, N]: the sum of its triplets' terms, how many are chosen, how many cost something.

    For "nearest" (one triplet for each positive) also the row of the negative of the first positives of every anchor,
    -1 for those that cost nothing, in the order of the labels. [STORED, N]
    """
    b = Batch.of(x, y, x_labels, y_labels, metric, own)
    (N, D), M = x.shape, len(y_labels)
    index = new_index(x, M, triplets)
    positives, negatives = b.counts
    if triplets == "nearest":
        found = torch.empty(2, N, dtype=state_dtype(x), device=x.device)
        semihard_launch(b, found, index, margin, D, 0, M).run()
        cost, active = found
        chosen = positives * negatives.clamp(max=1)
    else:
        tile = b.pick("triplets", D, margin, triplets, soft).tile
        parts = torch.empty(splits(N, M, tile), 3, N, dtype=state_dtype(x), device=x.device)
        fold_launch(b, (parts,), margin, D, 0, M, triplets, soft).run()
        cost, chosen, active = total(parts)
        chosen = positives * negatives if triplets == "all" else chosen
    return b.x.restore(torch.stack([cost, chosen.to(cost.dtype), active]), 1), index


class Anchors(NamedTuple):
    """Of the anchors' positives from number `first` on, `width` of them, what the gradient kernel takes."""

    first: int
    width: int
    parts: int  # of the slopes
    argument: tuple[Tensor, ...]


def passes(b: Batch, du: Tensor, margin: Tensor, index: Tensor, D: int, triplets: str, soft: bool) -> Iterator[Anchors]:
    """The positives of all anchors in as many turns as a constant workspace takes: one, but for very large classes.

    No size of a class is read, which would be a sync: the kernels of a turn that is not needed find nothing to do.
    """
    N, M = len(b.x.labels), len(b.y.labels)
    ranges = b.ranges[:2]
    if triplets == "nearest":
        yield Anchors(0, len(index), 1, (*ranges, du, index, index))
        width = min(M, max(1, configs.WORKSPACE // (4 * N)))
        found = torch.empty(width if len(index) < M else 0, N, dtype=index.dtype, device=du.device)
        states = torch.empty(2, N, dtype=state_dtype(b.x.rows), device=du.device)
        for first in range(len(index), M, width):
            semihard_launch(b, states, found, margin, D, first, first + width).run()
            yield Anchors(first, width, 1, (*ranges, du, found, found))
        return
    parts = splits(N, M, b.pick("triplets", D, margin, triplets, soft).tile)
    width = min(M, max(1, configs.WORKSPACE // (4 * N * (1 + parts))))
    thresholds, slopes = (torch.empty(*shape, width, N, device=du.device) for shape in ((), (parts,)))
    for first in range(0, M, width):
        fold_launch(b, (thresholds, slopes), margin, D, first, first + width, triplets, soft).run()
        yield Anchors(first, width, parts, (*ranges, du, thresholds, slopes))


def grad_kernel(triplets: str, soft: bool) -> str:
    """What its tile is chosen by."""
    return "semihard grad" if triplets == "nearest" else "triplets grad exp" if soft else "triplets grad"


def grad_launch(
    b: Batch, x: Side, y: Side, anchors: Anchors, roles: str, out: Tensor, longest: Tensor, margin: Tensor,
    triplets: str, soft: bool,
) -> Launch:  # fmt: skip
    """dx of the rows of one side, by the anchors in their role: "x", "y" or "self"."""
    D = out.shape[2]
    tile, key, options = b.pick(grad_kernel(triplets, soft), D, margin, triplets, soft)
    slab = cdiv(min(tile.held, D), tile.BD)
    options |= dict(
        KIND=triplets, SOFT=soft, ANCHORS=roles, OWN=b.metric != "manhattan", ADD=anchors.first > 0, SLAB=slab
    )
    N, M = len(x.labels), len(y.labels)
    args = (
        x.argument, y.argument, anchors.argument, anchors.argument, out, listed(margin), longest, N, M, D,
        anchors.first, anchors.width, anchors.parts,
    )  # fmt: skip
    return Launch(kernels.triplets_grad, (cdiv(N, tile.BM), len(out), cdiv(D, slab * tile.BD)), args, options, key)


def fold_triplets_grad(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, margin: Tensor, index: Tensor, dsums: Tensor,
    metric: str, triplets: str, soft: bool, own: bool, want_x: bool, want_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dy for derivatives dsums [N] of the sums; empty tensors for those not wanted."""
    b = Batch.of(x, y, x_labels, y_labels, metric, own)
    D, M = x.shape[1], len(y_labels)
    du, unit = reorder(dsums, b.x.order).float(), None
    if x.dtype == torch.float16 and len(x):
        # The products take fp16 operands: a row may be in M triplets or in one, so bring the root of M near 1.
        unit = du.abs().amax().clamp_min(1e-30) * M**0.5
        du = du / unit
    tile = b.pick(grad_kernel(triplets, soft), D, margin, triplets, soft).tile

    runs = [(b.x, b.y, "self" if y is None else "x")] if want_x else []
    runs += [(b.y, b.x, "y")] if y is not None and want_y else []
    outs = [
        torch.zeros(splits(len(rows.labels), len(others.labels), tile), len(rows.labels), D, device=x.device)
        for rows, others, _ in runs
    ]
    if len(x) and M:
        longest = (b.ranges[1] - b.ranges[0]).amax().reshape(1)
        for anchors in passes(b, du, margin, index, D, triplets, soft):
            for (rows, others, roles), out in zip(runs, outs, strict=True):
                grad_launch(b, rows, others, anchors, roles, out, longest, margin, triplets, soft).run()

    grads = [rows.restore(total(out, x.dtype, unit), 0) for (rows, _, _), out in zip(runs, outs, strict=True)]
    return (
        grads[0] if want_x else x.new_empty(0),
        grads[-1] if y is not None and want_y else x.new_empty(0),
    )
