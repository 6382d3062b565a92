"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, engine, losses
from ...kernels.folds import KINDS
from ..dtypes import state_dtype
from ..request import Fold, FoldGrad
from .launch import SCORES, Launch, Plan, Side, cdiv, merge, numbers, optional, plan, reorder, sides, total


def planned(kernel: str, f: Fold, side: Side) -> Plan:
    terms = "lifted" if None not in f.split_offsets else "" if f.checked().sparse else "exp"
    return plan(kernel, terms, f"{f.loss} {f.metric} {'+'.join(f.pos)}/{'+'.join(f.neg)}", side)


def common(f: Fold) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What both kernels take of a request: pos and neg, and the pieces."""
    kinds = ((f.pos, f.numbers[0]), (f.neg, f.numbers[1]))
    terms = tuple(engine.Terms(tuple(KINDS[k] for k in folds), numbers(given)) for folds, given in kinds)
    branch = "zero" if f.checked().sparse else "near" if "lse" in f.pos else ""
    return terms, dict(SCORE=SCORES[f.metric], LOSS=getattr(losses, f.loss), BRANCH=branch)


def with_offsets(side: Side, offsets: Tensor | None) -> Side:
    if offsets is None:
        return side
    return side._replace(rows=side.rows._replace(offsets=(reorder(offsets, side.order),)))


def fold(f: Fold) -> Tensor:
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    xs, ys = sides(f.batch, f.metric)
    xs, ys = (with_offsets(side, offsets) for side, offsets in zip((xs, ys), f.split_offsets, strict=True))
    chosen, (terms, options) = planned("fold", f, xs), common(f)
    kinds, dtype, device = tuple(KINDS[k] for k in f.kinds), state_dtype(f.batch.x), f.batch.x.device

    def states(x: Side, y: Side, by_column: Tensor | None, offset: int | None) -> Tensor:
        out = torch.empty(chosen.splits(x.n, y.n), len(kinds), x.n, dtype=dtype, device=device)
        columns = out if by_column is None else by_column
        args = (x.rows, y.rows, *terms, out, columns, optional(offset), x.n, y.n, x.D)
        own = options | chosen.options | dict(COLUMNS=by_column is not None)
        Launch(engine.fold, (cdiv(x.n, chosen.tile.BM), len(out)), args, own, chosen.key).run()
        return merge(out, kinds)

    offset = f.batch.ref_offset
    if not f.columns:
        return states(xs, ys, None, offset)
    blocks = cdiv(xs.n, chosen.tile.BM)
    if blocks == 0 or blocks * len(kinds) * ys.n * 8 > configs.WORKSPACE:  # the other way round, the scores once more
        back = None if offset is None else -offset
        return torch.cat([states(xs, ys, None, offset), states(ys, xs, None, back)], 1)
    by_column = torch.empty(blocks, len(kinds), ys.n, dtype=dtype, device=device)
    return torch.cat([states(xs, ys, by_column, offset), merge(by_column, kinds)], 1)


class Found(NamedTuple):
    """A gradient by the rows of one side, in their dtype, and what is summed over each of them."""

    rows: Tensor
    by_numbers: Tensor  # [numbers, n]
    by_offset: Tensor  # [n]


def fold_grad(g: FoldGrad) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f, b, dstates, unit = g.fold, g.fold.batch, g.dstates, None
    if b.x.dtype == torch.float16 and dstates.numel():
        # The products take fp16 operands: bring the largest derivative near 1, and undo it after.
        unit = dstates.abs().amax().clamp_min(1e-30)
        dstates = dstates / unit
    # Sorted apart, the rows that are on both sides would no longer be in the same order.
    both = b.ref_offset is not None and b.y is not None
    sort = f.checked().sparse and len(b.x) * len(b.y_labels) > configs.SORT_FROM and not both
    xs, ys = sides(b, f.metric, sort=sort)

    def anchors(side: Side, first: int) -> Side:
        if g.states.shape[1] < first + side.n:  # its rows are no anchors
            return side
        parts = (t[:, first : first + side.n].contiguous() for t in (g.states, dstates))
        return side._replace(anchors=engine.Anchors(*(reorder(t, side.order, 1) for t in parts)))

    of_x, of_y = f.split_offsets
    xs = with_offsets(anchors(xs, 0), of_x)
    ys = xs if b.y is None else with_offsets(anchors(ys, xs.n), of_y)
    chosen, (terms, options) = planned("grad", f, xs), common(f)
    slab = chosen.slab(xs.D)
    options |= chosen.options | dict(ROW_SHARE=f.metric not in ("dot", "manhattan"), SLAB=slab)

    def gradient(x: Side, y: Side, like: Tensor, role: str, by_numbers: bool) -> Found:
        parts = chosen.splits(x.n, y.n)
        plain = parts == 1 and unit is None
        rows = torch.empty(parts, *like.shape, dtype=like.dtype if plain else torch.float32, device=like.device)
        sums = torch.empty(parts, f.numbers.numel() * by_numbers + 1, x.n, dtype=torch.float32, device=like.device)
        offset = b.ref_offset if role != "y" or b.ref_offset is None else -b.ref_offset
        outs = engine.Gradients(rows, sums)
        args = (x.rows, y.rows, *terms, x.anchors, y.anchors, outs, optional(offset), x.n, y.n, x.D)
        grid = (cdiv(x.n, chosen.tile.BM), parts, cdiv(x.D, slab * chosen.tile.BD))
        Launch(engine.grad, grid, args, options | dict(BY_NUMBERS=by_numbers), chosen.key, role).run()
        summed = by_numbers or (g.want_offsets and x.rows.offsets)
        of_rows = x.restore(total(sums, unit=unit), 1) if summed else sums[0]
        return Found(x.restore(total(rows, like.dtype, unit), 0), of_rows[:-1], of_rows[-1])

    by_rows, by_columns = (g.want_offsets and part is not None for part in f.split_offsets)
    with_y = b.y is not None and (g.want_y or by_columns)
    with_x = g.want_x or by_rows or (g.want_numbers and not with_y)
    found = {}
    if with_x:
        found["x"] = gradient(xs, ys, b.x, "self" if b.y is None else "x", g.want_numbers)
    if b.y is not None and with_y:
        found["y"] = gradient(ys, xs, b.y, "y", g.want_numbers and not with_x)
    twice = 2 if b.y is None else 1  # every pair of a self batch was seen from both of its rows
    none = b.x.new_empty
    by_numbers = next(iter(found.values())).by_numbers if found else f.numbers
    offsets = [
        found[name].by_offset for name, wanted in (("x", by_rows), ("y", by_columns)) if wanted and name in found
    ]
    return (
        found["x"].rows if g.want_x else none(0),
        found["y"].rows if g.want_y and "y" in found else none(0),
        (by_numbers.sum(1) / twice).view_as(f.numbers).to(f.numbers.device) if g.want_numbers else none(0),
        torch.cat(offsets) if g.want_offsets else none(0),
    )
