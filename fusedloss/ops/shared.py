"""The same functions for a batch that the processes of a group share: the own rows are anchors, compared with all rows.

The states of an anchor are complete in its own process. In the backward of a fold a block of columns brings along its
states and their derivatives, so that a process computes the whole gradient of its own rows, and no gradient is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends, groups
from ..backends.moving import MOVED, box
from ..backends.request import (
    NO_OTHERS,
    Block,
    Fold,
    FoldGrad,
    ListedDistances,
    Mining,
    Others,
    States,
)
from ..checks import Batch
from ..groups import Group
from .registration import flat, keep, kept, on_device_of, rebuilt

Sizes = Sequence[int]


def group_of(b: Batch) -> Group | None:
    """The group that shares a batch now."""
    return groups.current() if b.shared else None


def sizes(b: Batch, group: Group) -> tuple[Sizes, Sizes]:
    """How many rows, and how many columns, each process has of a batch."""
    rows, keys = ([n * b.shared for n in of] for of in (group.rows, group.keys))
    return rows, rows if b.y is None else keys


def gathered(b: Batch, group: Group) -> Batch:
    """The own rows, with the rows of all processes as references that receive their gradient; for a batch without y."""
    rows, _ = sizes(b, group)
    y, labels = group.rows_with_gradient(b.x, rows), group.gather(b.y_labels, rows)
    return b._replace(y=y, y_labels=labels, ref_offset=group.first(rows), y_sorted=b.x_sorted, shared=0)


# ------------------------------------------------------------------------------------------------------------ folds


def fold(f: Fold, group: Group, backend: str) -> Tensor:
    """Row states [folds, N] of the own rows over all columns, then those of the own columns if they are anchors."""
    return SharedFold.apply(f.batch.x, f.batch.y, f.numbers, f.offsets, f, group, backend)


def joined(of_x: Tensor | None, of_y: Tensor | None) -> tuple[Tensor | None, str]:
    """The joined offsets, and the sides that they are for."""
    if of_x is None or of_y is None:
        return (of_y, "columns") if of_x is None else (of_x, "rows")
    return torch.cat([of_x, of_y]), "both"


def flipped(f: Fold) -> Fold:
    """The same pairs, with rows and columns exchanged."""
    b, (of_x, of_y) = f.batch, f.split_offsets
    assert b.y is not None
    other = Batch(b.y, b.x, b.y_labels, b.x_labels, b.ref_offset, b.ignored, b.y_sorted, b.x_sorted, b.shared)
    offsets, whose = joined(of_y, of_x)
    return f._replace(batch=other, offsets=offsets, offsets_of=whose, columns=False)


class Way:
    """How the own rows meet the columns of all processes: all at once, or one process after the other.

    fold: the fold of the own rows over all columns if they come at once, else over the own columns; others follow.
    """

    def __init__(
        self, own: Fold, group: Group, columns: Sizes, extremes: tuple[Tensor, ...], fold: Fold | None = None
    ) -> None:
        self.own, self.group, self.columns, self.extremes = own, group, columns, extremes
        self.at_once = group.mode == "gather"
        self.fold = fold or (self.with_all_columns() if self.at_once else own)

    @property
    def own_columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        b = self.own.batch
        return b.x if b.y is None else b.y, b.y_labels, self.own.split_offsets[1]

    def with_all_columns(self) -> Fold:
        b, group = self.own.batch, self.group
        own_y, own_labels, of_y = self.own_columns
        y, labels = group.gather(own_y, self.columns), group.gather(own_labels, self.columns)
        of_y = None if of_y is None else group.gather(of_y, self.columns)
        place = None if b.ref_offset is None else group.first(self.columns)
        y_sorted = b.x_sorted if b.y is None else b.y_sorted
        offsets, whose = joined(self.own.split_offsets[0], of_y)
        whole = b._replace(y=y, y_labels=labels, ref_offset=place, y_sorted=y_sorted)
        return self.own._replace(batch=whole, offsets=offsets, offsets_of=whose, columns=False)

    def others(self, states: States | None = None) -> Others:
        """The blocks after the own columns, with the states of columns that are anchors."""
        if self.at_once:
            return NO_OTHERS
        return Others(self.blocks(None if states is None else packed(states)), self.extremes)

    def blocks(self, states: Tensor | None) -> Iterator[Block]:
        for _, (y, labels, offsets, of_anchors) in self.group.ring(self.columns, *self.own_columns, states):
            assert y is not None and labels is not None
            if y.shape[0]:
                yield Block(y, labels, offsets, None if of_anchors is None else unpacked(of_anchors))

    def gradient(
        self, rows: States | None, columns: States | None, backend: str, *wants: bool
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """dx of the own rows, and the derivatives by numbers and by the rows' offsets, for anchors among the rows and
        the columns of which this process has the states."""
        self_batch = self.own.batch.y is None
        others = self.others(columns)
        if self.at_once and columns is not None:
            columns = unpacked(self.group.gather(packed(columns), self.columns))
        if self_batch and not self.at_once:  # the own columns are the own rows
            columns = None
        sides = [of for of in (rows, columns) if of is not None]
        anchors = "both" if len(sides) == 2 else "columns" if rows is None else "rows"
        states, dstates = (torch.cat(parts, 1) for parts in zip(*sides, strict=True))
        want_x, want_numbers, want_offsets = wants
        request = FoldGrad(self.fold, states, dstates, want_x, False, want_numbers, want_offsets, False, anchors)
        dx, _, by_numbers, by_offsets = backends.module(backend).fold_grad(request, others)
        if self_batch and self.at_once:  # the other process of a pair counts it too
            by_numbers = by_numbers / 2
        return dx, by_numbers, by_offsets


def packed(of: States) -> Tensor:
    """States and their derivatives as they travel. [n, 2 folds]"""
    return torch.cat(of).T.contiguous()


def unpacked(t: Tensor) -> States:
    return States(*(part.contiguous() for part in t.T.chunk(2)))


def extremes(b: Batch, metric: str, group: Group) -> tuple[Tensor, ...]:
    """The box around the rows of all processes, so that all processes move their rows by the same vector."""
    if metric not in MOVED or group.mode == "gather":
        return ()
    own = box(b, metric) or (b.x.new_full(b.x.shape[1:], torch.inf), b.x.new_full(b.x.shape[1:], -torch.inf))
    low, high = group.most(torch.cat([-own[0], own[1]]).to(torch.promote_types(b.x.dtype, torch.float32))).chunk(2)
    return (-low).to(b.x.dtype), high.to(b.x.dtype)


class SharedFold(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, numbers: Tensor, offsets: Tensor | None, f: Fold, group: Group,
        backend: str,
    ) -> Tensor:  # fmt: skip
        f = rebuilt(Fold, [t.detach().contiguous() if isinstance(t, Tensor) else t for t in flat(f)])
        rows, columns = sizes(f.batch, group)
        module, moved = backends.module(backend), extremes(f.batch, f.metric, group)
        with on_device_of(x):
            ways = [Way(f._replace(columns=False), group, columns, moved)]
            if f.columns:
                ways.append(Way(flipped(f), group, rows, moved))
            states = torch.cat([module.fold(way.fold, way.others()) for way in ways], 1)
        ctx.group, ctx.backend, ctx.sizes, ctx.moved, ctx.columns = group, backend, (rows, columns), moved, f.columns
        keep(ctx, [leaf for fold in (f, *(way.fold for way in ways)) for leaf in flat(fold)], [states])
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dstates: Tensor) -> Any:
        leaves, (states,) = kept(ctx)
        count = len(leaves) // (3 if ctx.columns else 2)
        f, *folds = (rebuilt(Fold, leaves[i : i + count]) for i in range(0, len(leaves), count))
        b, group, (rows, columns), N = f.batch, ctx.group, ctx.sizes, f.batch.x.shape[0]
        want_x, want_y, want_numbers, want_offsets = ctx.needs_input_grad[:4]
        of_x, of_y = (t is not None and want_offsets for t in f.split_offsets)
        if b.y is None:
            of_y = False
        of_rows = States(states[:, :N], dstates[:, :N])
        of_columns = States(states[:, N:], dstates[:, N:]) if ctx.columns else of_rows if b.y is None else None
        dx = dy = by_numbers = None
        shifts: list[Tensor] = []

        with on_device_of(b.x):
            if want_x or want_numbers or of_x:
                first = Way(f._replace(columns=False), group, columns, ctx.moved, folds[0])
                dx, by_numbers, shift = first.gradient(of_rows, of_columns, ctx.backend, want_x, want_numbers, of_x)
                shifts += [shift] * of_x
            if b.y is not None and (want_y or of_y):
                second = Way(flipped(f), group, rows, ctx.moved, folds[1] if ctx.columns else None)
                dy, _, shift = second.gradient(of_columns, of_rows, ctx.backend, want_y, False, of_y)
                shifts += [shift] * of_y
        return (
            dx if want_x else None,
            dy if want_y else None,
            by_numbers if want_numbers else None,
            torch.cat(shifts) if shifts else None,
            None,
            None,
            None,
        )


# ------------------------------------------------------------------------------------------------------------ mined


def mine(m: Mining, group: Group, backend: str) -> Tensor:
    """The numbers, among the rows of all processes, of every own anchor's positive and negative. The rows come one
    process after the other. [2, N]"""
    b, module = m.batch, backends.module(backend)
    rows, _ = sizes(b, group)
    best = torch.full((2, b.x.shape[0]), torch.inf, dtype=torch.float64, device=b.x.device)
    number = torch.full_like(best, -1, dtype=torch.int64)
    signs = best.new_tensor([[-1.0 if of == "farthest" else 1.0] for of in (m.positives, m.negatives)])

    def consider(block: Batch, first: int) -> None:
        nonlocal best, number
        index = module.mine(m._replace(batch=block))
        cost = signs * module.listed_distances(ListedDistances(block.x, block.y, None, index, m.metric))
        cost = cost.masked_fill(cost.isnan(), -torch.inf)  # NaN wins so that it shows
        there = index + first
        better = (cost < best) | ((cost == best) & (there < number)) | (number < 0)
        better &= index >= 0
        best, number = torch.where(better, cost, best), torch.where(better, there, number)

    consider(b, group.first(rows))
    for rank, (other, of_other) in group.ring(rows, b.x, b.x_labels):
        if other is not None and of_other is not None and other.shape[0]:
            consider(b._replace(y=other, y_labels=of_other, ref_offset=None), sum(rows[:rank]))
    return number


def taken(x: Tensor, number: Tensor, group: Group, rows: Sizes) -> Tensor:
    """Rows by their numbers among those of all processes, the own row for -1, [K, N, D]. Their gradients go back to the
    processes that have these rows."""
    own = group.first(rows) + torch.arange(x.shape[0], device=x.device)
    return Taken.apply(x, torch.where(number < 0, own, number), group, rows)


class Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, number: Tensor, group: Group, rows: Sizes) -> Tensor:
        ctx.group, ctx.rows = group, rows
        ctx.save_for_backward(number)
        found = x.new_zeros(*number.shape, x.shape[1])
        for rank, (y,) in chain([(group.rank, (x,))], group.ring(rows, x)):
            if y is not None and y.shape[0]:
                at, here = placed(number, rank, rows)
                found = torch.where(here[..., None], y[at], found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        (number,), group, rows = ctx.saved_tensors, ctx.group, ctx.rows
        wide = torch.promote_types(d.dtype, torch.float32)
        dx = torch.zeros(rows[group.rank], d.shape[-1], dtype=wide, device=d.device)
        sent = number.T.contiguous(), d.transpose(0, 1).contiguous()  # [N, K], [N, K, D]
        for _, (numbers, ds) in chain([(group.rank, sent)], group.ring(rows, *sent)):
            if numbers is not None and ds is not None and dx.shape[0] and numbers.shape[0]:
                at, here = placed(numbers, group.rank, rows)
                dx.index_put_((at,), torch.where(here[..., None], ds, 0.0).to(wide), accumulate=True)
        return dx.to(d.dtype), None, None, None


def placed(number: Tensor, rank: int, rows: Sizes) -> tuple[Tensor, Tensor]:
    """The places that rows with these numbers have in a process, and which of the rows the process has."""
    at = number - sum(rows[:rank])
    here = (at >= 0) & (at < rows[rank])
    return at.where(here, 0), here
