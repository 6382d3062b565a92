"""Triplets of a batch: each anchor's positives against its negatives, without a triplet in memory.

The scores of an anchor's positives, sorted, are thresholds. The place of a negative among them (`searchsorted`) is the
number of triplets in which it costs something, and prefix sums of these places give that number for every positive. So
N^3 triplets take O(N^2 log N) time; only the soft margin, for which every triplet counts, looks at each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checks import Batch
from ..triplet_requests import RankingGrad, Triplets, TripletsGrad
from .mining import FIRST, keep_best
from .parallel import Tasks, single_threaded, spread
from .tiles import Gradient, Side, Tile, add_tile, all_zero, row_tiles, scores, sides, within


class Positives(NamedTuple):
    """The positives of a block of anchors in the order of their scores; -inf where there is none. [B, P] each"""

    s: Tensor
    number: Tensor  # which of the anchor's positives
    column: Tensor
    present: Tensor


class Sorted(NamedTuple):
    """Both sides sorted by label, and where each anchor's positives begin and end in y. Its own row is not one."""

    x: Side
    y: Side
    metric: str
    starts: Tensor
    ends: Tensor
    ref_column: Tensor  # where in y the anchor itself is, or -1

    @staticmethod
    def of(b: Batch, metric: str) -> Sorted:
        xs, ys = sides(b, metric, sort=True)
        starts, ends = (torch.searchsorted(ys.labels, xs.labels, right=right) for right in (False, True))
        if b.y is None:
            ref_column = torch.arange(len(starts), device=starts.device)
        else:
            ref_column = torch.full_like(starts, -1) if xs.ref_column is None else xs.ref_column
        if xs.ignored is not None:
            counts = xs.labels != xs.ignored
            ends, ref_column = torch.where(counts, ends, starts), torch.where(counts, ref_column, -1)
        return Sorted(xs, ys, metric, starts, ends, ref_column).fitting()

    def fitting(self) -> Sorted:
        """The same with fewer rows and more columns per tile, if the positives of a block would not fit in a tile."""
        if self.starts.device.type != "cpu" or not self.x.blocks:
            return self
        whole = self.x.blocks[0].stop
        rows = within(whole, self.most(slice(None)))
        if rows == whole:
            return self
        return self._replace(x=self.x.cut(rows), y=self.y.cut(within(len(self.y.rows), rows)))

    def tiles(self, i: int) -> Iterator[Tile]:
        return row_tiles(self.x, self.y, self.metric, i)

    def scores(self, r: slice, c: slice) -> Tensor:
        return scores(self.x, self.y, self.metric, r, c)

    def most(self, r: slice) -> int:
        """The most positives of an anchor, its own row included; the number of all rows where reading is a sync."""
        if self.starts.device.type != "cpu":
            return len(self.y.rows)
        return int((self.ends[r] - self.starts[r]).max())

    def spans(self, r: slice) -> Iterator[tuple[slice, slice]]:
        """The anchors of a block in parts with neighbouring labels, and the columns of each part's positives."""
        if self.starts.device.type != "cpu":
            yield r, slice(0, len(self.y.rows))
            return
        span = slice(int(self.starts[r].min()), int(self.ends[r].max()))
        rows = r.stop - r.start
        if rows == within(rows, span.stop - span.start):
            yield r, span
            return
        middle = r.start + rows // 2
        yield from self.spans(slice(r.start, middle))
        yield from self.spans(slice(middle, r.stop))

    def positives(self, r: slice) -> Positives:
        starts, ends = self.starts[r, None], self.ends[r, None]
        column = starts + torch.arange(self.most(r), device=starts.device)
        present = (column < ends) & (column != self.ref_column[r, None])
        column.clamp_(max=max(len(self.y.rows) - 1, 0))
        s = self.x.rows.new_empty(column.shape)
        for part, span in self.spans(r):
            at = slice(part.start - r.start, part.stop - r.start)
            if span.stop > span.start:
                s[at] = self.scores(part, span).gather(1, inside(column[at], span))
        s, number = s.masked_fill_(~present, -torch.inf).sort(1)
        return Positives(s, number, column.gather(1, number), present.gather(1, number))

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positives and negatives each anchor has; an ignored anchor has no positives. [N]"""
        same = self.ends - self.starts
        others = len(self.y.rows) if self.y.ignored is None else (self.y.labels != self.y.ignored).sum()
        return same - (self.ref_column >= 0).to(same.dtype), others - same


def inside(column: Tensor, span: slice) -> Tensor:
    """The places of columns in a span; those behind the span get the last place."""
    return (column - span.start).clamp_(max=span.stop - span.start - 1)


# ------------------------------------------------------------------------------------------------- which triplets


def above(thresholds: Tensor, s: Tensor, *, strictly: bool) -> Tensor:
    """How many of the anchor's ascending thresholds are above (or, if not `strictly`, not below) each score. [B, BN]"""
    return thresholds.shape[1] - torch.searchsorted(thresholds, s.contiguous(), right=strictly)


def negatives_of(t: Tile, places: Tensor) -> Tensor:
    """The places, with 0 for pairs that are not negative. [B, BN]"""
    return places if t.neg is None else places.masked_fill_(~t.neg, 0)


def chosen(p: Positives, t: Tile, margin: Any, triplets: str) -> Tensor:
    """How many triplets of the kind each anchor has with the tile's negatives. [B]"""
    if triplets == "hard":
        return negatives_of(t, above(p.s, t.s, strictly=False)).sum(1)
    near = above(p.s + margin, t.s, strictly=False)
    if triplets == "semihard":
        return negatives_of(t, near - above(p.s, t.s, strictly=False)).sum(1)
    far = p.present.sum(1, keepdim=True) - near
    return negatives_of(t, far).sum(1)


def hinge_slopes(p: Positives, t: Tile, margin: Any, triplets: str, reached: Tensor) -> Tensor:
    """In how many triplets that cost something each negative of a tile is. [B, BN]

    Counted from the farthest positive, a negative is in a triplet with each positive up to its place `high`; the first
    `hard` of these are hard triplets. The number of negatives at each place is added to `reached` [B, P + 1].
    """
    if triplets == "easy":
        return torch.zeros_like(t.s)
    places = high = negatives_of(t, above(p.s + margin, t.s, strictly=True))
    if triplets != "all":
        hard = torch.minimum(high, above(p.s, t.s, strictly=False))
        places = hard if triplets == "hard" else high - hard
    one = reached.new_ones(()).expand(high.shape)
    reached.scatter_add_(1, hard if triplets == "hard" else high, one)
    if triplets == "semihard":
        reached.scatter_add_(1, hard, -one)
    return places.to(t.s.dtype)


def soft_triplets(p: Positives, t: Tile, margin: Any, triplets: str) -> Iterator[Tensor]:
    """For each positive in turn, d(a, p) - d(a, n) + margin; -inf if it is not a triplet of the kind. [B, BN] each"""
    for k in range(p.s.shape[1]):
        gap = p.s[:, k, None] - t.s
        mask = p.present[:, k, None].expand(gap.shape)
        mask = mask if t.neg is None else mask & t.neg
        if triplets != "all":
            bands = {"hard": gap >= 0, "semihard": (gap < 0) & (gap >= -margin), "easy": gap < -margin}
            mask = mask & bands[triplets]
        yield gap.add_(margin).masked_fill_(~mask, -torch.inf)


def soft_slopes(p: Positives, t: Tile, margin: Any, triplets: str, reached: Tensor) -> Tensor:
    """`hinge_slopes` for log(1 + exp(gap + margin)), with sums of the triplets' slopes in place of numbers."""
    places = torch.zeros_like(t.s)
    for k, h in enumerate(soft_triplets(p, t, margin, triplets), 1):
        slope = h.sigmoid_()
        places += slope
        reached[:, k] += slope.sum(1)
    return places


def by_positive(reached: Tensor, soft: bool) -> Tensor:
    """The slopes of each positive's triplets, summed. [B, P]"""
    return reached[:, 1:] if soft else reached[:, 1:].flip(1).cumsum(1)


# ------------------------------------------------------------------------------------------------------------ semi-hard


def nearest(b: Sorted, i: int, p: Positives) -> tuple[Tensor, Tensor]:
    """The distance and the column of each positive's negative: the nearest that is farther, else the farthest one.

    The place of a negative among the positives says which of them it is farther than. So the nearest negative of each
    place is kept, and a positive takes the minimum over the places from its own on. [B, P] each
    """
    most, M = p.s.shape[1], len(b.y.rows)
    value = p.s.new_full((len(p.s), most + 2), torch.inf)  # place `most + 1` is for negatives that are dropped
    index = torch.full_like(value, M, dtype=torch.int64)
    far = p.s.new_full((len(p.s),), FIRST["farthest"])
    far_index = torch.full_like(far, -1, dtype=torch.int64)
    for t in b.tiles(i):
        column = torch.arange(t.c.start, t.c.start + t.s.shape[1], device=far.device).expand(t.s.shape)
        negative = torch.ones_like(t.s, dtype=torch.bool) if t.neg is None else t.neg
        s = t.s.masked_fill(~negative, torch.inf)
        place = torch.searchsorted(p.s, s)
        before = value.gather(1, place)
        value.scatter_reduce_(1, place, s, "amin")
        nearer = (s < before) & (s == value.gather(1, place))
        place = place.masked_fill_(~nearer, most + 1)
        index.scatter_(1, place, M).scatter_reduce_(1, place, column, "amin")
        keep_best(far, far_index, t.s, negative, "farthest", t.c.start)
    value, place = value[:, 1 : most + 1].flip(1).cummin(1)
    value, index = value.flip(1), index[:, 1 : most + 1].flip(1).gather(1, place).flip(1)
    none = value == torch.inf
    return torch.where(none, far[:, None], value), torch.where(none, far_index[:, None], index)


def semihard(b: Sorted, i: int, p: Positives, margin: Any) -> tuple[Tensor, Tensor]:
    """The terms of a block's positives, and the columns of their negatives, -1 for a term of 0. [B, P] each"""
    distance, index = nearest(b, i, p)
    terms = F.relu(p.s - distance + margin).masked_fill_(~p.present | (index < 0), 0.0)
    return terms, index.masked_fill_(terms == 0, -1)


def times(columns: Tensor, t: Tile) -> Tensor:
    """How many of the anchor's positives have taken each negative of a tile. [B, BN]"""
    width = t.s.shape[1]
    place = columns - t.c.start
    place = place.where(place >= 0, width).clamp_(max=width)  # the last place is for columns of other tiles
    found = t.s.new_zeros(len(columns), width + 1)
    return found.scatter_add_(1, place, found.new_ones(()).expand(place.shape))[:, :width].contiguous()


# -------------------------------------------------------------------------------------------------------------- the ops


POSITIVES = -1  # the place of all positives, for `Tasks.turn`


class Gradients:
    """dx and dy, added up separately for the columns of negatives, the columns of positives, and the rows.

    The costs of a row's positives are known only after its last tile, so blocks that add positives in their order would
    wait for each other's last tiles.
    """

    def __init__(self, b: Sorted, g: TripletsGrad | RankingGrad) -> None:
        self.b, self.x, self.y = b, g.forward.batch.x, g.forward.batch.y
        self.of_x = Gradient(b.x, g.want_x)
        of_y = (Gradient(b.y, g.want_x if self.y is None else g.want_y) for _ in range(2))
        self.of_negatives, self.of_positives = of_y
        self.tasks = Tasks()

    def run(self, of_rows: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """The gradients that the blocks of rows add up to, all negatives first."""
        self.tasks.run(len(self.b.x.blocks), of_rows)
        self.of_negatives.join(self.of_positives)
        if self.y is None:
            self.of_x.join(self.of_negatives)
        dy = self.x.new_empty(0) if self.y is None else self.of_negatives.finish(self.y)
        return self.of_x.finish(self.x), dy

    def add_negatives(self, i: int, t: Tile, weights: Tensor | None) -> None:
        """Add a tile of row block i with weights dL/ds, which are overwritten; None stands for 0."""
        with self.tasks.turn(t.j, i):
            if weights is not None:
                add_tile(self.of_x, self.of_negatives, t.r, t.c, weights, t.s, self.b.metric)

    def add_positives(self, i: int, p: Positives, weights: Tensor) -> None:
        """Add the positives [B, P] of row block i with weights dL/ds, 0 where there is none."""
        b, r = self.b, self.b.x.blocks[i]
        with self.tasks.turn(POSITIVES, i):
            for part, span in b.spans(r):
                at = slice(part.start - r.start, part.stop - r.start)
                near = weights.new_zeros(part.stop - part.start, span.stop - span.start)
                if span.stop > span.start and not all_zero(weights[at]):
                    near.scatter_add_(1, inside(p.column[at], span), weights[at])
                    add_tile(self.of_x, self.of_positives, part, span, near, b.scores(part, span), b.metric)


def of_request(t: Triplets) -> tuple[Sorted, Any, str, bool]:
    """The sides, the margin (a tensor where reading it would be a sync), the kind of triplets, and whether they are
    soft."""
    margin = t.margin.item() if t.margin.device.type == "cpu" else t.margin[0]
    return Sorted.of(t.batch, t.metric), margin, t.triplets, t.soft


@single_threaded(lambda t: t.batch)
def fold_triplets(request: Triplets) -> tuple[Tensor, Tensor, Tensor]:
    b, m, triplets, soft = of_request(request)
    out, index, counted = request.new_states(), request.new_places(), request.counted
    positives, negatives = b.counts
    if counted == "chosen" and triplets in ("all", "nearest"):
        out[1] = positives * (negatives if triplets == "all" else negatives.clamp(max=1))

    def of_rows(i: int) -> None:
        r = b.x.blocks[i]
        p = b.positives(r)
        if triplets == "nearest":
            terms, columns = semihard(b, i, p, m)
            out[0, r], out[2, r] = terms.sum(1), (terms > 0).sum(1)
            width = max(p.s.shape[1], len(index))
            by_number = columns.new_full((len(columns), width), -1).scatter_(1, p.number, columns)
            index[:, r] = by_number[:, : len(index)].T.to(index.dtype)
            return
        reached = p.s.new_zeros(len(p.s), p.s.shape[1] + 1)
        for t in b.tiles(i):
            if counted == "chosen" and triplets != "all":
                out[1, r] += chosen(p, t, m, triplets)
            if soft:
                for h in soft_triplets(p, t, m, triplets):
                    out[2, r] += h.sigmoid().sum(1)
                    terms = F.logsigmoid(h.neg_()).neg_()  # unlike softplus it is exact for every gap
                    out[0, r] += terms.sum(1)
                    if counted == "active":
                        out[1, r] += (terms > 0).sum(1)
            else:
                places = hinge_slopes(p, t, m, triplets, reached).to(out.dtype)
                out[2, r] += places.sum(1)
                out[0, r] -= places.mul_(t.s.clamp_(max=torch.finfo(t.s.dtype).max)).sum(1)
        if not soft:
            slopes = by_positive(reached, soft).to(out.dtype)
            out[0, r] += slopes.mul_(p.s.to(out.dtype) + m).masked_fill_(~p.present, 0.0).sum(1)

    spread(len(b.x.blocks), of_rows)
    if counted == "active" and not soft:
        out[1] = out[2]
    return b.x.restore(out, 1), index, request.new_kept()


@single_threaded(lambda g: g.forward.batch)
def fold_triplets_grad(g: TripletsGrad) -> tuple[Tensor, Tensor]:
    (b, m, triplets, soft), index = of_request(g.forward), g.places
    grads = Gradients(b, g)
    d = b.x.ordered(g.dsums)[:, None].to(b.x.rows.dtype)

    def of_rows(i: int) -> None:
        r = b.x.blocks[i]
        p = b.positives(r)
        most = p.s.shape[1]
        if triplets == "nearest":
            stored = index[:most, r].T.long().gather(1, p.number) if most <= len(index) else None
            columns = semihard(b, i, p, m)[1] if stored is None else stored
            slopes = (columns >= 0).to(d.dtype)
        else:
            reached = p.s.new_zeros(len(p.s), most + 1)
        for t in b.tiles(i):
            if triplets == "nearest":
                places = times(columns, t)
            else:
                places = (soft_slopes if soft else hinge_slopes)(p, t, m, triplets, reached)
            grads.add_negatives(i, t, None if all_zero(places) else places.mul_(-d[r]))
        if triplets != "nearest":
            slopes = by_positive(reached, soft)
        grads.add_positives(i, p, slopes.masked_fill(~p.present, 0.0) * d[r])

    return grads.run(of_rows)
