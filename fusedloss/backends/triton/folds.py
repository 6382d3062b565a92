"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, engine, folds, losses, scores, tiles
from ...kernels.folds import KINDS
from ..dtypes import state_dtype
from ..request import NO_OTHERS, PIECES, Block, Fold, FoldGrad, Others, States, Wants
from . import panels
from .launch import Launch, Plan, Total, cdiv, merge, merge_all, numbers, optional, padded, plan
from .sides import SCORES, Side, met, on_chip, reorder, side, sides


def planned(kernel: str, f: Fold, x: Side, y: Side) -> tuple[Plan, tuple[engine.Terms, engine.Terms], dict[str, Any]]:
    """The plan of a kernel, what it folds over positives and over negatives, and its pieces; for a gradient that is not
    on chip, the plan of its panels."""
    terms = terms_of(f, x, y)
    kernel = "panel" if kernel == "grad" and is_wide(f, x, y) else kernel
    pos = engine.Terms(tuple(map(KINDS.__getitem__, f.pos)), numbers(f.numbers[0]))
    neg = engine.Terms(tuple(map(KINDS.__getitem__, f.neg)), numbers(f.numbers[1]))
    options = dict(SCORE=SCORES[f.metric], LOSS=getattr(losses, f.loss))
    return plan(kernel, terms, f"{f.loss} {f.metric} {'+'.join(f.pos)}/{'+'.join(f.neg)}", x), (pos, neg), options


def terms_of(f: Fold, x: Side, y: Side) -> str:
    """The terms as `configs.Work` names them."""
    if PIECES[f.loss].costly or f.group > 1:
        return "costly"
    return "lifted" if x.rows.offsets and y.rows.offsets else "" if PIECES[f.loss].sparse else "exp"


def is_wide(f: Fold, x: Side, y: Side) -> bool:
    """Whether the gradient takes panels."""
    return not on_chip(terms_of(f, x, y), x)


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


def folded_parts(f: Fold, x: Side, y: Side) -> list[Tensor]:
    """The states of every row over parts of the columns [parts, folds, N]; and, if the columns are anchors too, theirs
    over parts of the rows [parts, folds, M]."""
    chosen, (pos, neg), options = planned("fold", f, x, y)
    count, dtype = len(f.pos) + len(f.neg), state_dtype(f.batch.x)

    def launched(x: Side, y: Side, columns: Tensor | None, offset: int | None) -> Tensor:
        out = torch.empty(chosen.splits(x.n, y.n), count, x.n, dtype=dtype, device=f.batch.x.device)
        args = (x.rows, y.rows, pos, neg, out, out if columns is None else columns, optional(offset), x.n, y.n, x.D)
        given = options | chosen.options | dict(COLUMNS=columns is not None)
        Launch(engine.fold, (cdiv(x.n, chosen.tile.BM), len(out)), args, given, chosen.key).run()
        return out

    offset = f.batch.ref_offset
    if not f.columns:
        return [launched(x, y, None, offset)]
    blocks = cdiv(x.n, chosen.tile.BM)
    unseen = blocks == 0 or f.batch.ignored is not None  # no tile has all columns
    if unseen or blocks * count * y.n * 8 > configs.WORKSPACE:  # compute the scores again, with the sides swapped
        back = None if offset is None else -offset
        return [launched(x, y, None, offset), launched(y, x, None, back)]
    columns = torch.empty(blocks, count, y.n, dtype=dtype, device=f.batch.x.device)
    return [launched(x, y, columns, offset), columns]


def fold(f: Fold, others: Others = NO_OTHERS) -> Tensor:
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    xs, ys = folded_sides(f, others.box)
    states, kinds = folded(f, xs, ys), kinds_of(f)
    one_by_one = f._replace(batch=f.batch._replace(ref_offset=None))
    for _, x, y in facing(f, xs, others):
        (parts_of_block,) = folded_parts(one_by_one, x, y)
        states = merge(torch.cat([states[None], parts_of_block]), kinds)
    return states


def folded(f: Fold, x: Side, y: Side) -> Tensor:
    """`fold` of prepared sides."""
    parts = folded_parts(f, x, y)
    found = merge_all(parts, kinds_of(f), [state_dtype(f.batch.x)] * len(parts))
    return torch.cat(found, 1) if f.columns else found[0]


def kinds_of(f: Fold) -> tuple[Any, ...]:
    return tuple(KINDS[fold] for fold in (*f.pos, *f.neg))


class Found(NamedTuple):
    """The derivatives by one side, and by the numbers of the loss; None where not wanted."""

    rows: Tensor
    numbers: Tensor | None = None  # [2, numbers]
    offsets: Tensor | None = None  # [n]


def gradients(
    f: Fold, x: Side, y: Side, wants: Wants, scales: engine.Scales, x_dtype: torch.dtype, loss: Tensor | None = None
) -> tuple[Found | None, Found | None]:
    """The derivatives by the rows and by the columns, through their anchors, in one launch.

    scales: what multiplies the derivatives, see `engine.grad`.
    loss: the sum of all states is stored in it, multiplied as the derivatives by numbers are. The derivatives by y
        then have x_dtype too, since they are rounded after dL/dloss is known.
    """
    chosen, (pos, neg), options = planned("grad", f, x, y)
    if chosen.key.work.kernel == "panel":
        factors = scales.states or scales.common
        shared = panels.Request(chosen, (pos, neg), options, f.metric, x, y, f.batch.ref_offset, factors)
        return wide_gradients(f, shared, wants, scales, x_dtype)
    apart = getattr(scores, f"{f.metric}_apart") if PIECES[f.loss].sparse and f.neg else None
    options |= chosen.options | dict(APART=apart, ROW_SHARE=has_row_share(f.metric))
    b, precise = f.batch, torch.float32
    of_y = b.y is not None and (wants.y or wants.y_offsets)
    of_x = wants.x or wants.x_offsets or not of_y
    dtypes = [x_dtype, x_dtype if b.y is None or loss is not None else b.y.dtype]

    def new(side: Side, facing: Side, offsets: bool, dtype: torch.dtype, first: bool) -> engine.Gradients:
        """The first side sees every pair, so it has what is summed over all pairs too."""
        parts, n = chosen.splits(side.n, facing.n), side.n

        def empty(wanted: bool, *shape: int, dtype: torch.dtype = precise) -> tuple[Tensor, ...]:
            return (torch.empty(parts, *shape, n, dtype=dtype, device=b.x.device),) if wanted else ()

        rows = torch.empty(parts, n, side.D, dtype=dtype if parts == 1 else precise, device=b.x.device)
        states = empty(first and loss is not None, len(f.pos) + len(f.neg), dtype=state_dtype(b.x))
        return engine.Gradients(rows, empty(first and wants.numbers, f.numbers.numel()), empty(offsets), states)

    outs = [
        new(x, y, wants.x_offsets, dtypes[0], True) if of_x else (),
        new(y, x, wants.y_offsets, dtypes[1], not of_x) if of_y else (),
    ]
    made = [out for out in outs if out]
    parts = [len(out.rows) if out else 0 for out in outs]
    sizes = [side.n for side, out in zip((x, y), outs, strict=True) if out]
    chunks = cdiv(x.D, chosen.tile.BD) if x.precision == "manhattan" else 1
    grid = (cdiv(max(sizes), chosen.tile.BM), max(parts), len(made) * chunks)
    args = (x.rows, y.rows, pos, neg, (x.anchors, y.anchors), tuple(outs), scales, optional(b.ref_offset))
    role = "self" if b.y is None else "x and y" if len(made) == 2 else "x" if of_x else "y"
    Launch(engine.grad, grid, (*args, x.n, y.n, x.D, *parts), options, chosen.key, role).run()

    flat = [out.rows.flatten(1).unsqueeze(1) for out in made]
    total = None if loss is None else Total(made[0].states[0], loss, of_sums(scales))
    rows = merge_all(flat, (KINDS["sum"],), [dtype for dtype, out in zip(dtypes, outs, strict=True) if out], total)
    found: list[Found | None] = []
    for out in outs:
        if not out:
            found.append(None)
            continue
        by_numbers = out.numbers[0].sum((0, 2), dtype=state_dtype(b.x)).view_as(f.numbers) if out.numbers else None
        by_offsets = out.offsets[0].sum(0) if out.offsets else None
        found.append(Found(rows.pop(0).view(out.rows.shape[1:]), by_numbers, by_offsets))
    return found[0], found[1]


def wide_gradients(
    f: Fold, shared: panels.Request, wants: Wants, scales: engine.Scales, x_dtype: torch.dtype
) -> tuple[Found | None, Found | None]:
    """`gradients` of rows that are not on chip, but without the sum of the states and a scale of dx and dy."""
    b, count = f.batch, f.numbers.numel() if wants.numbers else 0
    of_x = panels.Wanted(x_dtype if wants.x else None, wants.x_offsets, count)
    of_y = panels.NOTHING
    if b.y is not None:
        of_y = panels.Wanted(b.y.dtype if wants.y else None, wants.y_offsets)
    found = []
    for of in panels.gradients(shared, of_x, of_y):
        by_numbers = None
        if of.by_numbers.numel():
            by_numbers = of.by_numbers.sum(1, dtype=state_dtype(b.x)).view_as(f.numbers) * scales.sums.given[1]
        found.append(Found(of.rows, by_numbers, of.by_offset if of.by_offset.numel() else None))
    return found[0], found[1] if b.y is not None else None


def has_row_share(metric: str) -> bool:
    """Whether the gradient of a score includes a share of the row itself."""
    return metric not in ("dot", "manhattan")


def of_sums(scales: engine.Scales) -> tiles.Numbers:
    """What multiplies the derivatives by numbers."""
    given, pointers = scales.sums
    return tiles.Numbers(given[1:], pointers[1:])


def plain_scales(by_rows: float = 1.0, by_numbers: float = 1.0) -> engine.Scales:
    return engine.Scales(tiles.Numbers((by_rows, by_numbers), ()))


def anchored(of: States, kinds: tuple[Any, ...], x: Side) -> Side:
    """A side whose rows are anchors."""
    anchors = new_anchors(x, kinds, of.states.device)
    args = (of.states.contiguous(), of.dstates.contiguous(), x.rows.order, anchors, kinds, x.n)
    options = dict(BLOCK=configs.ANCHORS, num_warps=4)
    Launch(folds.prepare_anchors, (cdiv(x.n, configs.ANCHORS), len(kinds)), args, options).run()
    return x._replace(anchors=anchors)


def new_anchors(x: Side, kinds: tuple[Any, ...], device: torch.device) -> folds.Anchors:
    return folds.Anchors(*torch.empty(2, len(kinds), padded(x.n), dtype=torch.float32, device=device))


def fold_grad(
    g: FoldGrad, others: Others = NO_OTHERS, prepared: tuple[Side, Side] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives; sides that the forward has prepared are not prepared again."""
    f, b, kinds = g.fold, g.fold.batch, kinds_of(g.fold)
    xs, ys = prepared or folded_sides(f, others.box)
    of_rows, of_columns = g.of_sides
    xs = xs if of_rows is None else anchored(of_rows, kinds, xs)
    if b.y is None:
        ys = xs
    elif of_columns is not None:
        ys = anchored(of_columns, kinds, ys)
    of_offsets = g.want_x_offsets and bool(xs.rows.offsets), g.want_y_offsets and bool(ys.rows.offsets)
    wants = Wants(g.want_x, g.want_y, g.want_numbers, *of_offsets)
    # Without y every pair is seen from both of its rows.
    scales = plain_scales(by_numbers=0.5 if b.y is None else 1.0)
    of_x, of_y = gradients(f, xs, ys, wants, scales, b.x.dtype if others is NO_OTHERS else torch.float32)
    for block, x, y in facing(f, xs, others):
        y = y if block.states is None else anchored(block.states, kinds, y)
        one_side = f._replace(batch=b._replace(y=block.y, ref_offset=None))
        part, _ = gradients(one_side, x, y, wants._replace(y=False, y_offsets=False), scales, torch.float32)
        assert part is not None
        of_x = part if of_x is None else added(of_x, part)
    return results(b.x, wants, of_x, of_y, f.numbers)


def added(a: Found, b: Found) -> Found:
    return Found(*(None if p is None or q is None else p + q for p, q in zip(a, b, strict=True)))  # type: ignore[arg-type]


def results(
    like: Tensor, wants: Wants, of_x: Found | None, of_y: Found | None, numbers: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dy, and the derivatives by numbers and offsets; empty where not wanted."""
    none = [like.new_empty(0) for _ in range(4)]  # a custom op may not return one twice
    sides = [found for found in (of_x, of_y) if found is not None]
    by_numbers = [found.numbers for found in sides if found.numbers is not None]
    shifts = [found.offsets for found in sides if found.offsets is not None]
    return (
        of_x.rows.to(like.dtype) if of_x is not None and wants.x else none[0],
        of_y.rows if of_y is not None and wants.y else none[1],
        by_numbers[0].to(numbers) if by_numbers else none[2],
        shifts[0] if len(shifts) == 1 else torch.cat(shifts) if shifts else none[3],
    )
