"""The gradient of row folds whose rows are too wide for a program to hold: weights in a workspace, then products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, engine, panels
from .launch import SCORES, UNIT, Launch, Plan, Product, Side, cdiv, optional, padded


class Wanted(NamedTuple):
    """Which derivatives are wanted of one side."""

    rows: torch.dtype | None  # and in which dtype
    offsets: bool
    numbers: int = 0  # how many of the loss's numbers, for positives and negatives together


NOTHING = Wanted(None, False)


class Found(NamedTuple):
    """The gradient by the rows of one side, and derivatives that are summed per row."""

    rows: Tensor
    by_numbers: Tensor  # [numbers, n]
    by_offset: Tensor  # [n]


class Sums(NamedTuple):
    """What is added up over the panels for the rows of one side, in its order; what is not wanted has no rows."""

    products: Tensor  # of the weights with the rows of the other side [n, D]
    shares: Tensor  # of the weights [n]
    offsets: Tensor  # [n]
    numbers: Tensor  # [numbers, n]
    largest: Tensor  # weights, of which the maximum is kept [n]; for float16

    @staticmethod
    def of(side: Side, wanted: Wanted, metric: str) -> Sums:
        def zeros(needed: bool, *shape: int) -> Tensor:
            return torch.zeros(shape if needed else 0, dtype=torch.float32, device=side.rows.rows.device)

        rows = wanted.rows is not None
        return Sums(
            zeros(rows, side.n, side.D),
            zeros(rows and metric in ("euclidean", "sqeuclidean"), side.n),
            zeros(wanted.offsets, side.n),
            zeros(wanted.numbers > 0, wanted.numbers, side.n),
            zeros(rows and side.rows.rows.dtype == torch.float16, side.n),
        )

    def outputs(self, weights: Tensor, parts: int, n: int) -> panels.Outputs:
        """New parts of n rows for the sums; 0 where nothing is written, as for ignored rows."""

        def new(total: Tensor) -> tuple[Tensor, ...]:
            return (total.new_zeros(parts, *total.shape[:-1], n),) if total.numel() else ()

        return panels.Outputs(
            optional(weights if self.products.numel() else None), (), new(self.shares), new(self.offsets),
            new(self.numbers), optional(self.largest if self.largest.numel() else None),
        )  # fmt: skip

    def add(self, out: panels.Outputs, begin: int, end: int) -> None:
        """Add the parts of rows from `begin` to `end`."""
        for total, parts in zip(self[1:4], (out.sums, out.offsets, out.numbers), strict=True):
            for part in parts:
                total[..., begin:end] += part.sum(0)

    def keep_largest(self, out: panels.Outputs, begin: int, end: int) -> None:
        for part in out.maxima:
            torch.maximum(self.largest[begin:end], part.amax(0), out=self.largest[begin:end])

    def finished(self, side: Side, wanted: Wanted, metric: str) -> Found:
        rows = self.products
        if wanted.rows is not None and side.n:
            rows = torch.empty(side.n, side.D, dtype=wanted.rows, device=rows.device)
            sums, largest = (optional(t if t.numel() else None) for t in (self.shares, self.largest))
            options = dict(BM=configs.ROWS_PER_PROGRAM, BD=configs.ROW_CHUNK, num_warps=4)
            options |= dict(SCORE=SCORES[metric], UNIT=metric in UNIT)
            args = (side.rows, self.products, sums, largest, rows, side.n, side.D)
            Launch(panels.finish, (cdiv(side.n, configs.ROWS_PER_PROGRAM),), args, options).run()
        numbers, offsets = (side.restore(t, -1) if t.numel() else t for t in (self.numbers, self.offsets))
        return Found(rows, numbers, offsets)


def even(n: int, most: int, unit: int) -> list[tuple[int, int]]:
    """n divided into parts of at most `most`, all multiples of a unit but the last, and about equal: (begin, end)"""
    most = max(most // unit, 1) * unit
    step = cdiv(cdiv(n, max(cdiv(n, most), 1)), unit) * unit
    return [(begin, min(begin + step, n)) for begin in range(0, n, step)] if n else []


def cut(N: int, M: int, pairs: int, tile: configs.Tile, both: bool) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The rows and columns of every panel of at most so many pairs: all columns if few enough, and if products of `both`
    sides are added up, square, so that these sums are read and written least."""
    least = min(N, math.isqrt(pairs) if both else configs.PANEL_ROWS)
    columns = even(M, pairs // max(least, 1) // 16 * 16, tile.BN)
    width = padded(columns[0][1]) if columns else 1
    return [(rows, of) for rows in even(N, pairs // width, tile.BM) for of in columns]


def gradients(
    chosen: Plan, terms: tuple[engine.Terms, engine.Terms], options: dict[str, Any], metric: str, x: Side, y: Side,
    ref_offset: int | None, of_x: Wanted, of_y: Wanted,
) -> tuple[Found, Found]:  # fmt: skip
    """What is wanted of both sides, from the same weights. The sides have their anchors; they may be one and the same.

    chosen: the plan of `panels.panel`.
    options: its pieces.
    """
    tile, data = chosen.tile, x.rows.rows
    sums = Sums.of(x, of_x, metric), Sums.of(y, of_y, metric)
    apart = [s for s in sums if s.largest.numel()]  # weights of either side are scaled on their own
    scaled = data.dtype == torch.float16
    kinds = len(apart) if scaled else of_x.rows is not None or of_y.rows is not None
    pairs = configs.WORKSPACE // (data.element_size() * max(1, kinds))
    cuts = cut(x.n, y.n, pairs, tile, of_y.rows is not None)

    def run(rows: tuple[int, int], columns: tuple[int, int], outs: tuple[panels.Outputs, panels.Outputs]) -> None:
        (first, stop), (low, high) = rows, columns
        args = (x.rows, y.rows, *terms, (x.anchors, y.anchors), *outs, optional(ref_offset), first, low, high)
        grid = (cdiv(stop - first, tile.BM), chosen.splits(stop - first, high - low))
        Launch(panels.panel, grid, (*args, x.n, y.n, x.D), options | chosen.options, chosen.key).run()

    def parts(rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[tuple[Sums, tuple[int, int], int]]:
        """Either side's sums, its rows of a panel, and the number of their parts."""
        n, m = (end - begin for begin, end in (rows, columns))
        yield sums[0], rows, chosen.splits(n, m)
        yield sums[1], columns, cdiv(n, tile.BM)

    for rows, columns in cuts if apart else ():
        outs = tuple(
            panels.Outputs(maxima=(s.largest.new_zeros(count, end - begin),) if s.largest.numel() else ())
            for s, (begin, end), count in parts(rows, columns)
        )
        run(rows, columns, outs)
        for s, out, of in zip(sums, outs, (rows, columns), strict=True):
            s.keep_largest(out, *of)

    # Weights of ignored rows and columns are not written; they are to be finite.
    new = torch.zeros if x.rows.counted else torch.empty
    size = max(((stop - first) * padded(high - low) for (first, stop), (low, high) in cuts), default=0) if kinds else 0
    memory = [new(size, dtype=data.dtype, device=data.device) for _ in range(max(1, int(kinds)))]
    for rows, columns in cuts:
        (first, stop), (low, high) = rows, columns
        panel = [m[: (stop - first) * padded(high - low)].view(stop - first, -1) for m in memory] if kinds else memory
        of_rows, of_columns = panel[0], panel[-1]
        outs = tuple(
            s.outputs(weights, count, end - begin)
            for (s, (begin, end), count), weights in zip(parts(rows, columns), (of_rows, of_columns), strict=True)
        )
        run(rows, columns, outs)
        if of_x.rows is not None:
            Product(sums[0].products[first:stop], of_rows[:, : high - low], y.rows.rows[low:high]).run()
        if of_y.rows is not None:
            Product(sums[1].products[low:high], of_columns[:, : high - low].t(), x.rows.rows[first:stop]).run()
        for s, out, of in zip(sums, outs, (rows, columns), strict=True):
            s.add(out, *of)
    return sums[0].finished(x, of_x, metric), sums[1].finished(y, of_y, metric)
