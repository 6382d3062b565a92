"""Row folds: the states of every anchor, and the gradient through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import configs, engine, losses
from ..states import split_offsets, state_dtype
from .common import SCORES, Launch, Side, cdiv, listed, merge, pick, prepare, reorder, splits, total


class Loss(NamedTuple):
    """A loss on a tile. `sparse`: most gradients of a trained model are exactly 0, so tiles of zeros are skipped."""

    terms: Any
    sparse: bool = False


LOSSES = {
    "contrastive": Loss(losses.contrastive, sparse=True),
    "linear_contrastive": Loss(losses.linear_contrastive, sparse=True),
    "softmax": Loss(losses.softmax),
    "sigmoid": Loss(losses.sigmoid),
    "circle": Loss(losses.circle),
}


class Spec(NamedTuple):
    """What is folded: a loss of scores with its numbers, and the folds of its positives and of its negatives."""

    loss: str
    metric: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    params: Tensor

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.pos + self.neg

    def kernel(self, name: str, x: Side, y: Side) -> str:
        """What the tile of a kernel is chosen by."""
        if x.offsets is not None and y.offsets is not None:
            return f"{name} lifted"
        return name if LOSSES[self.loss].sparse else f"{name} exp"

    @property
    def use(self) -> str:
        return f"{self.loss} {self.metric} {'+'.join(self.pos)}/{'+'.join(self.neg)}"

    @property
    def options(self) -> dict[str, Any]:
        pieces = dict(SCORE=SCORES[self.metric], LOSS=LOSSES[self.loss].terms)
        pieces |= dict(POS=encoded(self.pos), NEG=encoded(self.neg))
        branch = "zero" if LOSSES[self.loss].sparse else "near" if "lse" in self.pos else ""
        return pieces | dict(BRANCH=branch, FROM_MEMORY=self.params.device.type != "cpu")


def encoded(kinds: tuple[str, ...]) -> int:
    """Folds as the kernels take them: their number, and a bit for each that is a log sum exp."""
    return len(kinds) + sum(16 << k for k, kind in enumerate(kinds) if kind == "lse")


def fold_launch(
    x: Side, y: Side, out: Tensor, columns: Tensor | None, D: int, spec: Spec, precision: str, own: bool
) -> Launch:
    """Of a self batch if x is y; own: without the pairs (i, i)."""
    tile, key, options = pick(spec.kernel("fold", x, y), spec.use, x, precision, D)
    N, M = len(x.labels), len(y.labels)
    options |= spec.options | dict(SELF=own, COLUMNS=columns is not None)
    args = (x.argument, y.argument, out, out if columns is None else columns, listed(spec.params), N, M, D)
    return Launch(engine.fold, (cdiv(N, tile.BM), len(out)), args, options, key)


def fold(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, offsets: Tensor | None, loss: str,
    metric: str, pos: Sequence[str], neg: Sequence[str], own: bool, columns: bool,
) -> Tensor:  # fmt: skip
    """Row states of every anchor: [folds, N], or [folds, N + M] if the columns are anchors too."""
    spec = Spec(loss, metric, tuple(pos), tuple(neg), params)
    (N, D), folds = x.shape, len(spec.kinds)
    xs, precision = prepare(x, x_labels, metric)
    ys = xs if y is None else prepare(y, y_labels, metric)[0]
    of_x, of_y = split_offsets(offsets, y, len(y_labels))
    xs = xs._replace(offsets=of_x)
    ys = xs if y is None else ys._replace(offsets=of_y)
    tile = pick(spec.kernel("fold", xs, ys), spec.use, xs, precision, D).tile

    def states(x: Side, y: Side, by_column: Tensor | None = None) -> Tensor:
        n = len(x.labels)
        out = torch.empty(splits(n, len(y.labels), tile), folds, n, dtype=state_dtype(x.rows), device=x.rows.device)
        fold_launch(x, y, out, by_column, D, spec, precision, own or x is y).run()
        return merge(out, encoded(spec.kinds))

    if not columns:
        return states(xs, ys)
    blocks, M = cdiv(N, tile.BM), len(ys.labels)
    if blocks == 0 or blocks * folds * M * 8 > configs.WORKSPACE:  # the other way round, the scores once more
        return torch.cat([states(xs, ys), states(ys, xs)], 1)
    by_column = torch.empty(blocks, folds, M, dtype=state_dtype(x), device=x.device)
    return torch.cat([states(xs, ys, by_column), merge(by_column, encoded(spec.kinds))], 1)


def grad_launch(
    x: Side, y: Side, out: Tensor, sums: Tensor, spec: Spec, precision: str, own: bool, by_numbers: bool
) -> Launch:
    """Of a self batch if x is y; own: without the pairs (i, i)."""
    D = out.shape[2]
    tile, key, options = pick(spec.kernel("grad", x, y), spec.use, x, precision, D)
    slab = cdiv(min(tile.held, D), tile.BD)  # chunks of the gradient that one program owns
    N, M = len(x.labels), len(y.labels)
    anchors = "self" if x is y else "both" if x.states and y.states else "x" if x.states else "y"
    options |= spec.options | dict(ANCHORS=anchors, SELF=own, BY_NUMBERS=by_numbers, SLAB=slab)
    options |= dict(OWN=spec.metric not in ("dot", "manhattan"))
    grid = (cdiv(N, tile.BM), len(out), cdiv(D, slab * tile.BD))
    x_states, y_states = x.states or y.states, y.states or x.states
    args = (x.argument, y.argument, x_states, y_states, (out, sums), listed(spec.params), N, M, D)
    return Launch(engine.grad, grid, args, options, key)


def fold_grad(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, offsets: Tensor | None,
    states: Tensor, dstates: Tensor, loss: str, metric: str, pos: Sequence[str], neg: Sequence[str], own: bool,
    want_x: bool, want_y: bool, want_params: bool, want_offsets: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dy, dparams and doffsets for derivatives dstates of the states; empty tensors for those not wanted."""
    spec = Spec(loss, metric, tuple(pos), tuple(neg), params)
    N = len(x)
    unit = None
    if x.dtype == torch.float16 and dstates.numel():
        # The products take fp16 operands: bring the largest derivative near 1, and undo it after.
        unit = dstates.abs().amax().clamp_min(1e-30)
        dstates = dstates / unit
    # Sorted apart, the rows of x would no longer be the first of y.
    sort = LOSSES[loss].sparse and N * len(y_labels) > configs.SORT_FROM and not (own and y is not None)

    def side(x: Tensor, labels: Tensor, part: slice, offsets: Tensor | None) -> tuple[Side, str]:
        order = labels.argsort(stable=True) if sort else None
        prepared, precision = prepare(reorder(x, order), reorder(labels, order), metric)
        anchors = None
        if states.shape[1] >= (part.stop or N + len(x)):  # the rows are anchors
            anchors = (
                reorder(states[:, part].contiguous(), order, 1),
                reorder(dstates[:, part].contiguous(), order, 1),
            )
        own_offsets = None if offsets is None else reorder(offsets, order)
        return prepared._replace(offsets=own_offsets, states=anchors, order=order), precision

    of_x, of_y = split_offsets(offsets, y, len(y_labels))
    xs, precision = side(x, x_labels, slice(0, N), of_x)
    ys = xs if y is None else side(y, y_labels, slice(N, None), of_y)[0]

    def gradient(x: Side, y: Side, like: Tensor, by_numbers: bool) -> tuple[Tensor, Tensor]:
        """By the rows of x, in their dtype; and the sums over each row, by the numbers and by its offset [sums, n]."""
        n, D = like.shape
        tile = pick(spec.kernel("grad", x, y), spec.use, x, precision, D).tile
        parts = splits(n, len(y.labels), tile)
        plain = parts == 1 and unit is None
        out = torch.empty(parts, n, D, dtype=like.dtype if plain else torch.float32, device=like.device)
        sums = torch.empty(parts, len(params) * by_numbers + 1, n, dtype=torch.float32, device=like.device)
        grad_launch(x, y, out, sums, spec, precision, own or x is y, by_numbers).run()

        summed = by_numbers or (want_offsets and x.offsets is not None)
        return x.restore(total(out, like.dtype, unit), 0), x.restore(total(sums, unit=unit), 1) if summed else sums

    of_rows, of_columns = (want_offsets and v is not None for v in (of_x, of_y))
    with_y = y is not None and (want_y or of_columns)
    with_x = want_x or of_rows or (want_params and not with_y)
    runs = [(xs, ys, x)] if with_x else []
    if y is not None and with_y:
        runs.append((ys, xs, y))
    found = [gradient(*run, by_numbers=want_params and i == 0) for i, run in enumerate(runs)]
    twice = 2 if y is None else 1  # every pair of a self batch was seen from both of its rows
    return (
        found[0][0] if want_x else x.new_empty(0),
        found[-1][0] if want_y and y is not None else x.new_empty(0),
        (found[0][1][:-1].sum(1) / twice).to(params.device) if want_params else x.new_empty(0),
        torch.cat([f[1][-1] for f, run in zip(found, runs, strict=True) if run[0].offsets is not None])
        if want_offsets
        else x.new_empty(0),
    )
