"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, engine, folds, losses
from ...kernels.folds import KINDS
from ..dtypes import state_dtype
from ..request import PIECES, Fold, FoldGrad
from .launch import SCORES, Launch, Plan, Side, cdiv, merge, numbers, optional, padded, plan, reorder, sides, total


def planned(kernel: str, f: Fold, x: Side, y: Side) -> tuple[Plan, tuple[engine.Terms, engine.Terms], dict[str, Any]]:
    """The plan of a kernel, what it folds of the positives and of the negatives, and its pieces."""
    terms = "" if PIECES[f.loss].sparse else "exp"
    costly = PIECES[f.loss].costly or f.group > 1
    terms = "costly" if costly else "lifted" if x.rows.offsets and y.rows.offsets else terms
    pos = engine.Terms(tuple(map(KINDS.__getitem__, f.pos)), numbers(f.numbers[0]))
    neg = engine.Terms(tuple(map(KINDS.__getitem__, f.neg)), numbers(f.numbers[1]))
    options = dict(SCORE=SCORES[f.metric], LOSS=getattr(losses, f.loss))
    return plan(kernel, terms, f"{f.loss} {f.metric} {'+'.join(f.pos)}/{'+'.join(f.neg)}", x), (pos, neg), options


def folded_sides(f: Fold) -> tuple[Side, Side]:
    """Both sides, with the offsets, weights and groups that they have."""
    x, y = sides(f.batch, f.metric)
    if f.offsets is None and f.weights is None and f.group == 1:
        return x, y
    both = []
    for side, offsets, weights in zip((x, y), f.split_offsets, (None, f.weights), strict=True):
        of_offsets, of_weights = (() if t is None else (reorder(t, side.order),) for t in (offsets, weights))
        both.append(side._replace(rows=side.rows._replace(offsets=of_offsets, weights=of_weights)))
    group = ((),) * (f.group.bit_length() - 1)
    return both[0], both[1]._replace(rows=both[1].rows._replace(group=group))


def fold(f: Fold) -> Tensor:
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    xs, ys = folded_sides(f)
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
        return states(xs, ys, None, offset)
    blocks = cdiv(xs.n, chosen.tile.BM)
    unseen = blocks == 0 or f.batch.ignored is not None  # no tile has all columns
    if unseen or blocks * len(kinds) * ys.n * 8 > configs.WORKSPACE:  # the other way round, the scores once more
        back = None if offset is None else -offset
        return torch.cat([states(xs, ys, None, offset), states(ys, xs, None, back)], 1)
    by_column = torch.empty(blocks, len(kinds), ys.n, dtype=dtype, device=device)
    return torch.cat([states(xs, ys, by_column, offset), merge(by_column, kinds)], 1)


class Found(NamedTuple):
    """A gradient by the rows of one side, in their dtype, and what is summed over each of them."""

    rows: Tensor
    by_numbers: Tensor  # [numbers, n]
    by_offset: Tensor  # [n]


def anchors(states: Tensor, dstates: Tensor, kinds: tuple[Any, ...], side: Side) -> engine.Anchors:
    """Of a side whose rows are anchors, in its order."""
    prepared = torch.empty(2, len(kinds), padded(side.n), dtype=torch.float32, device=states.device)
    args = (states.contiguous(), dstates.contiguous(), side.rows.order, prepared, kinds, side.n)
    options = dict(BLOCK=configs.ANCHORS, num_warps=4)
    Launch(folds.prepare_anchors, (cdiv(side.n, configs.ANCHORS), len(kinds)), args, options).run()
    return engine.Anchors(*prepared)


def fold_grad(g: FoldGrad) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, b, dstates = g.fold, g.fold.batch, g.dstates
    xs, ys = folded_sides(f)
    kinds = tuple(KINDS[fold] for fold in (*f.pos, *f.neg))
    xs = xs._replace(anchors=anchors(g.states[:, : xs.n], dstates[:, : xs.n], kinds, xs))
    if b.y is None:
        ys = xs
    elif g.states.shape[1] > xs.n:  # the columns are anchors too
        ys = ys._replace(anchors=anchors(g.states[:, xs.n :], dstates[:, xs.n :], kinds, ys))
    chosen, (pos, neg), options = planned("grad", f, xs, ys)
    options |= chosen.options | dict(SKIP=PIECES[f.loss].sparse, SLAB=chosen.slab)
    options |= dict(ROW_SHARE=f.metric not in ("dot", "manhattan"))

    def gradient(x: Side, y: Side, like: Tensor, role: str, by_numbers: bool) -> Found:
        parts = chosen.splits(x.n, y.n)
        dtype = like.dtype if parts == 1 else torch.float32
        rows = torch.empty(parts, *like.shape, dtype=dtype, device=like.device)
        sums = torch.empty(parts, f.numbers.numel() * by_numbers + 1, x.n, dtype=torch.float32, device=like.device)
        offset = b.ref_offset if role != "y" or b.ref_offset is None else -b.ref_offset
        outs = engine.Gradients(rows, sums)
        args = (x.rows, y.rows, pos, neg, x.anchors, y.anchors, outs, optional(offset), x.n, y.n, x.D)
        grid = (cdiv(x.n, chosen.tile.BM), parts, cdiv(x.D, chosen.slab * chosen.tile.BD))
        Launch(engine.grad, grid, args, options | dict(BY_NUMBERS=by_numbers), chosen.key, role).run()
        summed = by_numbers or (g.want_offsets and x.rows.offsets)
        of_rows = total(sums) if summed else sums[0]
        return Found(total(rows, like.dtype), of_rows[:-1], of_rows[-1])

    by_rows, by_columns = g.want_offsets and bool(xs.rows.offsets), g.want_offsets and bool(ys.rows.offsets)
    with_y = b.y is not None and (g.want_y or by_columns)
    with_x = g.want_x or by_rows or (g.want_numbers and not with_y)
    of_x = of_y = None
    if with_x:
        of_x = gradient(xs, ys, b.x, "self" if b.y is None else "x", g.want_numbers)
    if b.y is not None and with_y:
        of_y = gradient(ys, xs, b.y, "y", g.want_numbers and not with_x)

    none = b.x.new_empty
    either = of_x or of_y
    by_numbers = none(0)
    if g.want_numbers and either is not None:
        twice = 2 if b.y is None else 1  # every pair of a self batch was seen from both of its rows
        summed = either.by_numbers.sum(1, dtype=state_dtype(b.x)) / twice
        by_numbers = summed.view_as(f.numbers).to(f.numbers)
    of_rows = [of_x.by_offset] if of_x is not None and by_rows else []
    of_columns = [of_y.by_offset] if of_y is not None and by_columns else []
    return (
        of_x.rows if of_x is not None and g.want_x else none(0),
        of_y.rows if of_y is not None and g.want_y else none(0),
        by_numbers,
        torch.cat(of_rows + of_columns) if g.want_offsets else none(0),
    )
