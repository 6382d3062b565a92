"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dtypes import state_dtype
from ..request import NO_OTHERS, PIECES, Block, Fold, FoldGrad, Others, States
from .losses import LOSSES, SYMMETRIC, Term
from .parallel import Tasks, single_threaded
from .tiles import (
    Gradient,
    Side,
    Tile,
    add_tile,
    all_negative,
    all_zero,
    gradients,
    leaders,
    masked,
    other_side,
    several,
    sides,
    tile,
)

EMPTY = {"sum": 0.0, "lse": -torch.inf}  # the fold over no pairs
SAFE = 10.0  # exponents this far apart lose no more than 5e-7 of their exponentials in float32 when shifted together


class Kind(NamedTuple):
    """What is folded over the positives of a tile, or over its negatives."""

    positive: bool
    mask: Tensor | None  # which pairs are of the kind; None: all
    first: int  # the number of the first fold's state
    folds: list[str]
    terms: list[Term]


def kinds(f: Fold, t: Tile, s: Tensor, numbers: Sequence[Any], weights: Tensor | None) -> list[Kind]:
    """The kinds of pairs that a tile has and that are folded, at most two."""
    found: list[Kind] = []
    for positive, folds, mask in ((True, f.pos, t.pos), (False, f.neg, t.neg)):
        if folds and (mask is not None or not positive):
            alike = found and f.loss in SYMMETRIC and numbers[0] == numbers[1]
            terms = found[0].terms if alike else list(LOSSES[f.loss](s, numbers[not positive], positive))
            if weights is not None and not positive:
                w = weights[t.c].expand(s.shape)
                terms = [weighed(x, w) if of == "sum" else x for of, x in zip(folds, terms, strict=False)]
            found.append(Kind(positive, mask, 0 if positive else len(f.pos), folds, terms))
    return found


def weighed(term: Term, w: Tensor) -> Term:
    """A term of negatives, multiplied by the weights of their columns [BM, BN]."""
    by_s = term.by_s
    return Term(
        lambda: term.value() * w,
        None if by_s is None else lambda: by_s() * w,
        lambda: [by * w for by in term.by_numbers()],
    )


def met(f: Fold, x: Side, y: Side, i: int, tasks: Tasks) -> Iterator[Tile]:
    """The tiles of a block of rows; without y, only those on and above the diagonal. Where only positives are folded,
    a tile without positives is skipped when its turn comes."""
    for j in range(i if x is y else 0, len(y.blocks)):
        if f.neg or not all_negative(x, y, i, j):
            yield tile(x, y, f.metric, i, j)
        else:
            with tasks.turn(j, i):
                pass


def listed(numbers: Tensor) -> Sequence[Any]:
    """A loss's numbers, as floats where reading them needs no sync."""
    return numbers.tolist() if numbers.device.type == "cpu" else [row.unbind() for row in numbers]


# ---------------------------------------------------------------------------------------------------------- forward


@single_threaded(lambda f: f.batch)
def fold(f: Fold, others: Others = NO_OTHERS) -> Tensor:
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    b = f.batch
    xs, ys = sides(b, f.metric, sort=several(b), group=f.group, box=others.box)
    v, w = walked(f, xs, ys)
    weights = None if f.weights is None else ys.ordered(f.weights)
    numbers = listed(f.numbers)
    by_row = empty_states(f, b.x)
    by_column = by_row if b.y is None else empty_states(f, b.y)

    def over(xs: Side, ys: Side, w: Tensor | None) -> None:
        tasks = Tasks(meeting=xs is ys or f.columns)

        def of_rows(i: int) -> None:
            for t in met(f, xs, ys, i, tasks):
                s, parts = shift(t, v, w)[0], []
                t = leaders(t, s, f.group)
                for kind in kinds(f, t, s, numbers, weights):
                    for k, (how, term) in enumerate(zip(kind.folds, kind.terms, strict=False), kind.first):
                        value = term.value() if kind.mask is None else torch.where(kind.mask, term.value(), EMPTY[how])
                        parts.append((k, how, *fold_tile(value, how, t.mirrored or f.columns)))
                with tasks.turn(t.j, i):
                    for k, how, rows, cols in parts:
                        add(by_row[k, t.r], rows, how)
                        if cols is not None:
                            add(by_column[k, t.c], cols, how)

        tasks.run(len(xs.blocks), of_rows)

    over(xs, ys, w)
    for _, rows, columns, offsets in facing(f, xs, others):
        over(rows, columns, offsets)
    found = xs.restore(by_row, 1)
    return torch.cat([found, ys.restore(by_column, 1)], 1) if f.columns else found


def facing(f: Fold, x: Side, others: Others) -> Iterator[tuple[Block, Side, Side, Tensor | None]]:
    """Every other block: the block, the rows and its columns as sides that meet, and its offsets in walking order."""
    for block in others.blocks:
        x, y = other_side(x, block.y, block.labels, f.metric)
        yield block, x, y, None if block.offsets is None else y.ordered(block.offsets)


def empty_states(f: Fold, x: Tensor) -> Tensor:
    """The states of rows x before any pair is folded. [folds, N]"""
    states = x.new_empty(len(f.pos) + len(f.neg), x.shape[0], dtype=state_dtype(x))
    for state, kind in zip(states, [*f.pos, *f.neg], strict=True):
        state.fill_(EMPTY[kind])
    return states


def fold_tile(term: Tensor, kind: str, columns: bool) -> tuple[Tensor, Tensor | None]:
    """A tile's contribution to the states of its rows and, if wanted, of its columns."""
    if kind == "sum":
        return term.sum(1), term.sum(0) if columns else None
    if term.device.type == "cpu" and columns:
        low, high = term.aminmax()
        if high - low < SAFE:  # one exponential serves both
            p = (term - high).exp_()
            return log_sum(p, high, 1), log_sum(p, high, 0)
    return log_sum_exp(term, 1), log_sum_exp(term, 0) if columns else None


def log_sum_exp(term: Tensor, dim: int) -> Tensor:
    high = highest(term, dim)
    return log_sum((term - high).exp_(), high.squeeze(dim), dim)


def highest(term: Tensor, dim: int) -> Tensor:
    """The maximum, by which exponents are shifted; 0 where it is -inf, since -inf - -inf is NaN."""
    return term.amax(dim, keepdim=True).nan_to_num_(neginf=0.0, posinf=torch.inf, nan=torch.nan)


def log_sum(p: Tensor, high: Tensor, dim: int) -> Tensor:
    """log(sum(p)) + high in float64: beside a logit of 10,000, float32 has no digits left for the logarithm."""
    dtype = state_dtype(p)
    return p.sum(dim).to(dtype).log_().add_(high)


def add(state: Tensor, part: Tensor, kind: str) -> None:
    if kind == "sum":
        state.add_(part)
    else:
        torch.logaddexp(state, part, out=state)


def walked(f: Fold, x: Side, y: Side) -> tuple[Tensor | None, Tensor | None]:
    """The offsets of the rows and of the columns in the walking order; None for a side without offsets."""
    of_x, of_y = f.split_offsets
    return None if of_x is None else x.ordered(of_x), None if of_y is None else y.ordered(of_y)


def shift(t: Tile, v: Tensor | None, w: Tensor | None) -> tuple[Tensor, Any]:
    """The scores plus the offsets v of the rows or w of the columns, or plus log(exp(v_i) + exp(w_j)) if both have
    offsets; and the share of the rows' offsets in the derivative. [BM, BN] each"""
    if v is None:
        return t.s if w is None else t.s + w[t.c], 0.0
    if w is None:
        return t.s + v[t.r, None], 1.0
    v, w = v[t.r, None], w[t.c]
    lift = torch.logaddexp(v, w)
    return t.s + lift, torch.where(v == w, 0.5, (v - lift).exp_())  # v == w covers two infinities


# --------------------------------------------------------------------------------------------------------- backward


class Anchors:
    """The anchors of a side in the walking order: their states, and dL/dstates. [folds, n]"""

    def __init__(self, side: Side, of: States, folds: Sequence[str]) -> None:
        self.states, self.dstates, dtype = side.ordered(of.states), side.ordered(of.dstates), side.rows.dtype
        self.rounded, self.bounds = self.states, []
        self.weights = self.dstates.to(dtype)
        if "lse" not in folds:
            return
        self.rounded = self.states.to(dtype)
        rest = (self.rounded - self.states).nan_to_num_(nan=0.0)  # not inf - inf
        self.of_lse = rest.exp_().mul_(self.dstates).to(dtype)
        if self.states.device.type == "cpu":  # elsewhere it takes a sync
            extremes = [self.rounded[:, block].aminmax(dim=1) for block in side.blocks]
            self.bounds = [list(zip(low.tolist(), high.tolist(), strict=True)) for low, high in extremes]


class Met(NamedTuple):
    """The anchors that a tile has as its rows or as its columns."""

    anchors: Anchors
    block: int
    at: tuple[Any, ...]


@single_threaded(lambda g: g.fold.batch)
def fold_grad(g: FoldGrad, others: Others = NO_OTHERS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b = g.fold.batch
    return derivatives(g, others, b.x, b.y)


def derivatives(
    g: FoldGrad, others: Others, like_x: Tensor, like_y: Tensor | None, total: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`fold_grad`, with dx and dy in the dtypes of the given tensors.

    total: the sum of all states, which are sums, is added to it.
    """
    f, b = g.fold, g.fold.batch
    numbers, folds = listed(f.numbers), [*f.pos, *f.neg]
    xs, ys = sides(b, f.metric, sort=several(b), group=f.group, box=others.box)
    v, w = walked(f, xs, ys)
    weights = None if f.weights is None else ys.ordered(f.weights)
    of_x, of_y = gradients(xs, ys, g.want_x, g.want_y)
    if g.want_x_offsets and v is not None:
        of_x.offsets = xs.rows.new_zeros(xs.rows.shape[0])
    if g.want_y_offsets and w is not None and xs is not ys:
        of_y.offsets = ys.rows.new_zeros(ys.rows.shape[0])
    by_numbers = torch.zeros(len(xs.blocks), *f.numbers.shape, dtype=f.numbers.dtype, device=f.numbers.device)
    sums = by_numbers.new_zeros(len(xs.blocks), dtype=state_dtype(b.x), device=b.x.device)
    sparse = PIECES[f.loss].sparse and several(b)
    of_rows, of_columns = g.of_sides
    rows = None if of_rows is None else Anchors(xs, of_rows, folds)

    def over(xs: Side, of_y: Gradient, w: Tensor | None, columns: Anchors | None, once: float) -> None:
        ys = of_y.side
        tasks = Tasks(meeting=xs is ys or of_y.wanted or of_y.offsets is not None)

        def task(i: int) -> None:
            for t in met(f, xs, ys, i, tasks):
                s, share = shift(t, v, w)
                t = leaders(t, s, f.group)
                anchors = [] if rows is None else [Met(rows, i, (t.r, None))]
                if columns is not None:
                    anchors.append(Met(columns, t.j, (t.c,)))
                parts: dict[bool, Tensor] = {}
                for kind in kinds(f, t, s, numbers, weights):
                    if total is not None:
                        sums[i] += summed(kind) * (1 + t.mirrored)
                    into = by_numbers[i, int(not kind.positive)] if g.want_numbers else None
                    part = kind_grad(kind, anchors, s, into, 0.5 * once if t.diagonal else once)
                    if part is not None:
                        parts[kind.positive] = part
                gradient = masked(t, parts.get(True), parts.get(False))
                if gradient is not None and sparse and all_zero(gradient):
                    gradient = None
                with tasks.turn(t.j, i):
                    if gradient is None:
                        continue
                    if of_x.offsets is not None:
                        of_x.offsets[t.r].add_((gradient * share).sum(1))
                    if of_y.offsets is not None and not t.diagonal:
                        of_y.offsets[t.c].add_((gradient * (1 - share)).sum(0))
                    add_tile(of_x, of_y, t.r, t.c, gradient, t.s, f.metric, columns=t.mirrored or b.y is not None)

        tasks.run(len(xs.blocks), task)

    columns = rows if b.y is None else None if of_columns is None else Anchors(ys, of_columns, folds)
    over(xs, of_y, w, columns, 1.0)
    for block, facing_it, side, offsets in facing(f, xs, others):
        columns = None if block.states is None else Anchors(side, block.states, folds)
        over(facing_it, Gradient(side, False), offsets, columns, 0.5 if b.y is None else 1.0)
    if total is not None:
        total += sums.sum()
    none = b.x.new_empty
    shifted = [of for of in ([of_x] if xs is ys else [of_x, of_y]) if of.offsets is not None]
    return (
        of_x.finish(like_x),
        none(0) if like_y is None else of_y.finish(like_y),
        by_numbers.sum(0) if g.want_numbers else none(0),
        torch.cat([of.side.restore(of.offsets, 0) for of in shifted]) if shifted else none(0),  # type: ignore[arg-type]
    )


def summed(kind: Kind) -> Tensor:
    """The sum of the terms of a tile."""
    terms = (term.value() for _, term in zip(kind.folds, kind.terms, strict=False))
    values = [value if kind.mask is None else torch.where(kind.mask, value, 0.0) for value in terms]
    return torch.stack([value.sum(1).to(torch.float64).sum() for value in values]).sum()


def kind_grad(kind: Kind, anchors: Sequence[Met], s: Tensor, by_numbers: Any, once: float) -> Tensor | None:
    """dL/ds for one kind of pairs, computed as if all pairs were of it: a tile or what broadcasts to one; None for 0.

    It also adds up the derivatives by the loss's numbers, if wanted, each pair of the tile weighted by `once`.
    """
    gradient = None
    for k, (how, term) in enumerate(zip(kind.folds, kind.terms, strict=False), kind.first):
        if term.by_s is None:
            continue
        value = term.value() if how == "lse" else None
        by_each = [] if by_numbers is None else term.by_numbers()
        slope: Any = term.by_s()  # called last, since it may overwrite the scores
        varies = isinstance(slope, Tensor) and slope.shape == s.shape
        weight = term_weight(value, k, anchors, 1.0 if varies or by_each else slope)
        for p, by in enumerate(by_each):
            part = weight * by
            part = part if kind.mask is None else torch.where(kind.mask, part, 0.0)
            rows = part.expand(s.shape).sum(1)  # row by row: one sum over all would depend on the number of threads
            by_numbers[p].add_(once * rows.to(by_numbers).sum())
        if varies or by_each:
            weight = slope.mul_(weight) if varies else weight * slope
        if gradient is None or gradient.shape != s.shape:
            gradient = weight if gradient is None else weight + gradient
        else:
            gradient.add_(weight)
    return gradient


def term_weight(value: Tensor | None, k: int, anchors: Sequence[Met], factor: Any) -> Tensor:
    """dL/dterm of a tile times a factor, summed over rows and columns that are anchors: for fold k, a sum (without a
    value) or a log sum exp of the value."""
    shift = None if value is None else common_shift(k, anchors)
    weights = []
    for of, _, at in anchors:
        if value is None:
            weight = of.weights[(k, *at)]
        elif shift is None:
            weight = of.of_lse[(k, *at)]
        else:
            weight = ((shift - of.states[(k, *at)]).exp_() * of.dstates[(k, *at)]).to(value.dtype)
        weight = weight * factor  # copies what may be a view
        if value is not None and shift is None:
            weight = (value - of.rounded[(k, *at)]).exp_().mul_(weight)
        weights.append(weight)
    weight = weights[0] if len(weights) == 1 else weights[0] + weights[1]
    return weight if value is None or shift is None else (value - shift).exp_().mul_(weight)


def common_shift(k: int, anchors: Sequence[Met]) -> float | None:
    """The highest state, if all are so close that one exponential serves them; None if not, or if looking is a sync."""
    bounds = [of.bounds[block][k] for of, block, _ in anchors if of.bounds]
    if not bounds:
        return None
    high = max(most for _, most in bounds)
    return high if high - min(least for least, _ in bounds) < SAFE else None


def exponential(term: Tensor, state: Tensor, dstate: Tensor, out: Tensor | None = None) -> Tensor:
    """dL/dterm of a log sum exp. The digits of the state beyond the tile's dtype become a factor of its derivative."""
    rounded = state.to(term.dtype)
    rest = torch.where(state == rounded, 0.0, state - rounded)  # not inf - inf
    return torch.sub(term, rounded, out=out).exp_().mul_((dstate * (-rest).exp()).to(term.dtype))
