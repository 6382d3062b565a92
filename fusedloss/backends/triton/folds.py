"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...kernels import configs, engine, folds, losses
from ...kernels.folds import KINDS
from ..dtypes import state_dtype
from ..request import NO_OTHERS, PIECES, Block, Fold, FoldGrad, Others, States
from . import panels
from .launch import (
    SCORES,
    Launch,
    Plan,
    Side,
    cdiv,
    merge,
    met,
    numbers,
    on_chip,
    optional,
    padded,
    plan,
    reorder,
    side,
    sides,
    total,
)
from .panels import NOTHING, Found, Wanted


def planned(kernel: str, f: Fold, x: Side, y: Side) -> tuple[Plan, tuple[engine.Terms, engine.Terms], dict[str, Any]]:
    """The plan of a kernel, what it folds over positives and over negatives, and its pieces; for a gradient that is not
    on chip, the plan of its panels."""
    terms = "" if PIECES[f.loss].sparse else "exp"
    costly = PIECES[f.loss].costly or f.group > 1
    terms = "costly" if costly else "lifted" if x.rows.offsets and y.rows.offsets else terms
    kernel = "panel" if kernel == "grad" and not on_chip(terms, x) else kernel
    pos = engine.Terms(tuple(map(KINDS.__getitem__, f.pos)), numbers(f.numbers[0]))
    neg = engine.Terms(tuple(map(KINDS.__getitem__, f.neg)), numbers(f.numbers[1]))
    options = dict(SCORE=SCORES[f.metric], LOSS=getattr(losses, f.loss))
    return plan(kernel, terms, f"{f.loss} {f.metric} {'+'.join(f.pos)}/{'+'.join(f.neg)}", x), (pos, neg), options


def folded_sides(f: Fold, box: tuple[Tensor, ...] = ()) -> tuple[Side, Side]:
    """Both sides, with their offsets, weights and groups."""
    x, y = sides(f.batch, f.metric, box=box)
    if f.offsets is None and f.weights is None and f.group == 1:
        return x, y
    both = []
    for given, offsets, weights in zip((x, y), f.split_offsets, (None, f.weights), strict=True):
        of_weights = () if weights is None else (reorder(weights, given.order),)
        moved = shifted(given, offsets)
        both.append(moved._replace(rows=moved.rows._replace(weights=of_weights)))
    group = ((),) * (f.group.bit_length() - 1)
    return both[0], both[1]._replace(rows=both[1].rows._replace(group=group))


def shifted(x: Side, offsets: Tensor | None) -> Side:
    """A side with the offsets of its rows, if there are any."""
    of_rows = () if offsets is None else (reorder(offsets, x.order),)
    return x._replace(rows=x.rows._replace(offsets=of_rows))


def facing(f: Fold, x: Side, others: Others) -> Iterator[tuple[Block, Side, Side]]:
    """Every other block: the block, and the rows and its columns as sides that meet, with their offsets."""
    for block in others.blocks:
        y = side(block.y, block.labels, False, x.keys is not None, f.batch.ignored, f.metric, others.box)
        yield block, *met(x, shifted(y, block.offsets))


def fold(f: Fold, others: Others = NO_OTHERS) -> Tensor:
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    xs, ys = folded_sides(f, others.box)
    chosen, (pos, neg), options = planned("fold", f, xs, ys)
    kinds, dtype, device = (*pos.kinds, *neg.kinds), state_dtype(f.batch.x), f.batch.x.device

    def states(x: Side, y: Side, by_column: Tensor | None, offset: int | None) -> Tensor:
        out = torch.empty(chosen.splits(x.n, y.n), len(kinds), x.n, dtype=dtype, device=device)
        columns = out if by_column is None else by_column
        args = (x.rows, y.rows, pos, neg, out, columns, optional(offset), x.n, y.n, x.D)
        given = options | chosen.options | dict(COLUMNS=by_column is not None)
        Launch(engine.fold, (cdiv(x.n, chosen.tile.BM), len(out)), args, given, chosen.key).run()
        return merge(out, kinds)

    offset = f.batch.ref_offset
    if not f.columns:
        found = states(xs, ys, None, offset)
        for _, x, y in facing(f, xs, others):
            found = merge(torch.stack([found, states(x, y, None, None)]), kinds)
        return found
    blocks = cdiv(xs.n, chosen.tile.BM)
    unseen = blocks == 0 or f.batch.ignored is not None  # no tile has all columns
    if unseen or blocks * len(kinds) * ys.n * 8 > configs.WORKSPACE:  # compute the scores again, with the sides swapped
        back = None if offset is None else -offset
        return torch.cat([states(xs, ys, None, offset), states(ys, xs, None, back)], 1)
    by_column = torch.empty(blocks, len(kinds), ys.n, dtype=dtype, device=device)
    return torch.cat([states(xs, ys, by_column, offset), merge(by_column, kinds)], 1)


def anchors(of: States, kinds: tuple[Any, ...], x: Side) -> Side:
    """A side whose rows are anchors."""
    prepared = torch.empty(2, len(kinds), padded(x.n), dtype=torch.float32, device=of.states.device)
    args = (of.states.contiguous(), of.dstates.contiguous(), x.rows.order, prepared, kinds, x.n)
    options = dict(BLOCK=configs.ANCHORS, num_warps=4)
    Launch(folds.prepare_anchors, (cdiv(x.n, configs.ANCHORS), len(kinds)), args, options).run()
    return x._replace(anchors=engine.Anchors(*prepared))


def fold_grad(g: FoldGrad, others: Others = NO_OTHERS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, b = g.fold, g.fold.batch
    xs, ys = folded_sides(f, others.box)
    kinds = tuple(KINDS[fold] for fold in (*f.pos, *f.neg))
    of_rows, of_columns = g.of_sides
    xs = xs if of_rows is None else anchors(of_rows, kinds, xs)
    if b.y is None:
        ys = xs
    elif of_columns is not None:
        ys = anchors(of_columns, kinds, ys)
    chosen, (pos, neg), options = planned("grad", f, xs, ys)
    by_rows, by_columns = g.want_x_offsets and bool(xs.rows.offsets), g.want_y_offsets and bool(ys.rows.offsets)

    def gradient(x: Side, y: Side, role: str, offset: int | None, by_numbers: bool, dtype: torch.dtype) -> Found:
        parts, precise = chosen.splits(x.n, y.n), torch.float32
        rows = torch.empty(parts, x.n, x.D, dtype=dtype if parts == 1 else precise, device=b.x.device)
        sums = torch.empty(parts, f.numbers.numel() * by_numbers + 1, x.n, dtype=precise, device=b.x.device)
        args = (x.rows, y.rows, pos, neg, x.anchors, y.anchors, engine.Gradients(rows, sums), optional(offset))
        grid = (cdiv(x.n, chosen.tile.BM), parts, cdiv(x.D, chosen.tile.BD) if x.precision == "manhattan" else 1)
        given = options | chosen.options | dict(SKIP=PIECES[f.loss].sparse, BY_NUMBERS=by_numbers)
        given |= dict(ROW_SHARE=f.metric not in ("dot", "manhattan"))
        Launch(engine.grad, grid, (*args, x.n, y.n, x.D), given, chosen.key, role).run()
        summed = by_numbers or (by_columns if role == "y" else by_rows)
        of_rows = total(sums) if summed else sums[0]
        return Found(total(rows, dtype), of_rows[:-1], of_rows[-1])

    def on_panels(x: Side, y: Side, offset: int | None, of_y: Wanted) -> tuple[Found, Found]:
        of_x = Wanted(dtype if g.want_x else None, by_rows, f.numbers.numel() if g.want_numbers else 0)
        return panels.gradients(panels.Request(chosen, (pos, neg), options, f.metric, x, y, offset), of_x, of_y)

    offset, back = b.ref_offset, None if b.ref_offset is None else -b.ref_offset
    dtype = b.x.dtype if others is NO_OTHERS else torch.float32
    with_y = b.y is not None and (g.want_y or by_columns)
    with_x = g.want_x or by_rows or (g.want_numbers and not with_y)
    of_x = of_y = None
    if chosen.key.work.kernel == "panel":
        wanted = Wanted(b.x.dtype if g.want_y else None, by_columns) if with_y else NOTHING
        of_x, of_y = on_panels(xs, ys, offset, wanted)
    else:
        if with_x:
            of_x = gradient(xs, ys, "self" if b.y is None else "x", offset, g.want_numbers, dtype)
        if b.y is not None and with_y:
            of_y = gradient(ys, xs, "y", back, g.want_numbers and not with_x, b.y.dtype)
    for block, x, y in facing(f, xs, others):
        y = y if block.states is None else anchors(block.states, kinds, y)
        if chosen.key.work.kernel == "panel":
            part, _ = on_panels(x, y, None, NOTHING)
        else:
            part = gradient(x, y, "x", None, g.want_numbers, torch.float32)
        of_x = part if of_x is None else Found(*map(torch.add, of_x, part))

    none = b.x.new_empty
    either = of_x or of_y
    by_numbers = none(0)
    if g.want_numbers and either is not None:
        twice = 2 if b.y is None else 1  # without y every pair was seen from both of its rows
        summed = either.by_numbers.sum(1, dtype=state_dtype(b.x)) / twice
        by_numbers = summed.view_as(f.numbers).to(f.numbers)
    shifts = [of_x.by_offset] if of_x is not None and by_rows else []
    shifts += [of_y.by_offset] if of_y is not None and by_columns else []
    return (
        of_x.rows.to(b.x.dtype) if of_x is not None and g.want_x else none(0),
        of_y.rows if of_y is not None and g.want_y else none(0),
        by_numbers,
        torch.cat(shifts) if shifts else none(0),
    )
