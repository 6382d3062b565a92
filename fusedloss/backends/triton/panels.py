"""Gradients of row folds whose rows are too wide for a program to hold: panels of weights, then library products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, engine
from ...kernels import panels as kernels
from ...kernels.panels import Outputs
from .launch import Launch, Plan, Product, cdiv, optional, padded
from .sides import SCORES, UNIT, Side

Span = tuple[int, int]  # the first of some rows or columns, and the one after the last


class Wanted(NamedTuple):
    """Which derivatives are wanted of a side."""

    rows: torch.dtype | None  # and in which dtype
    offsets: bool
    numbers: int = 0  # how many numbers the loss has, for positives and negatives together


NOTHING = Wanted(None, False)


class Found(NamedTuple):
    """The gradient by the rows of one side, and derivatives that are summed per row."""

    rows: Tensor
    by_numbers: Tensor  # [numbers, n]
    by_offset: Tensor  # [n]


class Request(NamedTuple):
    """What all launches for a gradient have in common."""

    chosen: Plan
    terms: tuple[engine.Terms, engine.Terms]
    pieces: dict[str, Any]
    metric: str
    x: Side  # with their anchors; one and the same for a batch without y
    y: Side
    ref_offset: int | None
    scales: tuple[Any, ...]  # what multiplies dL/dstates, see `engine.Scales`

    def launch(self, rows: Span, columns: Span, of_x: Outputs, of_y: Outputs) -> None:
        x, y, chosen = self.x, self.y, self.chosen
        n, m = (end - begin for begin, end in (rows, columns))
        args = (x.rows, y.rows, *self.terms, (x.anchors, y.anchors), self.scales, of_x, of_y, optional(self.ref_offset))
        grid = (cdiv(n, chosen.tile.BM), chosen.splits(n, m))
        sizes = (rows[0], *columns, x.n, y.n, x.D)
        Launch(kernels.panel, grid, (*args, *sizes), self.pieces | chosen.options, chosen.key).run()

    def cuts(self, pairs: int, both: bool) -> list[tuple[Span, Span]]:
        """The rows and columns of every panel of at most so many pairs. They are wide, or square if products of `both`
        sides are added up, whose sums are then read and written least."""
        N, M, tile = self.x.n, self.y.n, self.chosen.tile
        if not N or not M:
            return []
        least = min(N, math.isqrt(pairs) if both else configs.PANEL_ROWS)
        columns = parted(M, pairs // max(least, 1), tile.BN)
        rows = parted(N, pairs // padded(columns[0][1]), tile.BM)
        return [(span, of) for span in rows for of in columns]


def parted(n: int, most: int, unit: int) -> list[Span]:
    """n in about equal parts of at most `most`, of which all but the last are multiples of a unit."""
    most = max(most // unit, 1) * unit
    step = cdiv(cdiv(n, cdiv(n, most)), unit) * unit
    return [(begin, min(begin + step, n)) for begin in range(0, n, step)]


class Sums(NamedTuple):
    """What is summed over the panels for the rows of a side, in its order. What is not wanted has no elements."""

    products: Tensor  # of the weights with the rows of the other side [n, D]
    weights: Tensor  # [n]
    offsets: Tensor  # dL by them [n]
    numbers: Tensor  # dL by them [numbers, n]
    largest: Tensor  # the largest weight, for float16 [n]

    @staticmethod
    def of(side: Side, wanted: Wanted, metric: str) -> Sums:
        def zeros(needed: bool, *shape: int) -> Tensor:
            return torch.zeros(shape if needed else (0,), dtype=torch.float32, device=side.rows.rows.device)

        rows, n = wanted.rows is not None, side.n
        return Sums(
            zeros(rows, n, side.D), zeros(rows and metric in ("euclidean", "sqeuclidean"), n),
            zeros(wanted.offsets, n), zeros(wanted.numbers > 0, wanted.numbers, n),
            zeros(rows and side.rows.rows.dtype == torch.float16, n),
        )  # fmt: skip

    def outputs(self, panel: Tensor, parts: int, n: int) -> Outputs:
        """Where n rows of a panel are written; 0 stays where nothing is, as for ignored rows."""

        def new(t: Tensor) -> tuple[Tensor, ...]:
            return (t.new_zeros(parts, *t.shape[:-1], n),) if t.numel() else ()

        return Outputs(
            (panel,) if self.products.numel() else (), (), new(self.weights), new(self.offsets), new(self.numbers),
            given(self.largest),
        )  # fmt: skip

    def add(self, out: Outputs, span: Span) -> None:
        for total, parts in zip(self[1:4], (out.sums, out.offsets, out.numbers), strict=True):
            for part in parts:
                total[..., slice(*span)] += part.sum(0)

    def finished(self, side: Side, wanted: Wanted, metric: str) -> Found:
        rows = self.products
        if rows.numel() and wanted.rows is not None:
            rows = torch.empty(side.n, side.D, dtype=wanted.rows, device=rows.device)
            args = (side.rows, self.products, given(self.weights), given(self.largest), rows, side.n, side.D)
            options = dict(SCORE=SCORES[metric], UNIT=metric in UNIT)
            options |= dict(BM=configs.ROWS_PER_PROGRAM, BD=configs.ROW_CHUNK, num_warps=4)
            Launch(kernels.finish_rows, (cdiv(side.n, configs.ROWS_PER_PROGRAM),), args, options).run()
        numbers, offsets = (side.restore(t, -1) if t.numel() else t for t in (self.numbers, self.offsets))
        return Found(rows, numbers, offsets)


def given(t: Tensor) -> tuple[Tensor, ...]:
    """An argument of a kernel that is absent if it has no elements."""
    return (t,) if t.numel() else ()


def gradients(r: Request, of_x: Wanted, of_y: Wanted) -> tuple[Found, Found]:
    """What is wanted of both sides, from the same weights."""
    x, y = r.x, r.y
    sums = Sums.of(x, of_x, r.metric), Sums.of(y, of_y, r.metric)
    largest = [s.largest for s in sums if s.largest.numel()]
    count = len(largest) or int(any(s.products.numel() for s in sums))  # of stored weights of a pair
    rows = x.rows.rows
    cuts = r.cuts(configs.WORKSPACE // (rows.element_size() * max(count, 1)), bool(sums[1].products.numel()))
    if largest:
        keep_largest(r, sums, cuts)
    for (of_rows, of_columns), panels in zip(cuts, weights(r, cuts, count), strict=True):
        n, m = (end - begin for begin, end in (of_rows, of_columns))
        outs = (
            sums[0].outputs(panels[0], r.chosen.splits(n, m), n),
            sums[1].outputs(panels[-1], cdiv(n, r.chosen.tile.BM), m),
        )
        r.launch(of_rows, of_columns, *outs)
        if sums[0].products.numel():
            Product(sums[0].products[slice(*of_rows)], panels[0][:, :m], y.rows.rows[slice(*of_columns)]).run()
        if sums[1].products.numel():
            Product(sums[1].products[slice(*of_columns)], panels[-1][:, :m].t(), rows[slice(*of_rows)]).run()
        sums[0].add(outs[0], of_rows)
        sums[1].add(outs[1], of_columns)
    return sums[0].finished(x, of_x, r.metric), sums[1].finished(y, of_y, r.metric)


def weights(r: Request, cuts: list[tuple[Span, Span]], count: int) -> Iterator[list[Tensor]]:
    """For every panel, memory for `count` weights of its pairs: always the same. [rows, padded columns] each"""
    shapes = [(n1 - n0, padded(m1 - m0)) for (n0, n1), (m0, m1) in cuts]
    # Weights of ignored rows and columns are not written. They meet rows of zeros, so they only have to be finite.
    new = torch.zeros if r.x.rows.counted else torch.empty
    size = max(map(math.prod, shapes), default=0)
    rows = r.x.rows.rows
    memory = [new(size, dtype=rows.dtype, device=rows.device) for _ in range(count)] or [rows.new_empty(0)]
    for shape in shapes:
        yield [m[: math.prod(shape)].view(shape) if count else m for m in memory]


def keep_largest(r: Request, sums: tuple[Sums, Sums], cuts: list[tuple[Span, Span]]) -> None:
    """The largest weight of every row, over all panels."""
    for of_rows, of_columns in cuts:
        n, m = (end - begin for begin, end in (of_rows, of_columns))
        sizes = ((r.chosen.splits(n, m), n), (cdiv(n, r.chosen.tile.BM), m))
        outs = [
            Outputs(maxima=(s.largest.new_zeros(size),) if s.largest.numel() else ())
            for s, size in zip(sums, sizes, strict=True)
        ]
        r.launch(of_rows, of_columns, *outs)
        for s, out, span in zip(sums, outs, (of_rows, of_columns), strict=True):
            for part in out.maxima:
                so_far = s.largest[slice(*span)]
                torch.maximum(so_far, part.amax(0), out=so_far)
