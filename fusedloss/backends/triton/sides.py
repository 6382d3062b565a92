"""The sides of the score matrix: rows in their compute format and in the order of the kernels, and what faces them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...checks import Batch
from ...kernels import configs, scores, tiles
from ..moving import box as box_of
from .launch import Launch, architecture, cdiv, padded

SCORES = {
    name: getattr(scores, name)
    for name in ("euclidean", "sqeuclidean", "cosine", "manhattan", "dot", "similarity", "chord")
}
UNIT = ("cosine", "similarity", "chord")  # scores of rows scaled to length 1


class Side(NamedTuple):
    """One side of the score matrix: the arguments of the kernels, and what the host knows of it."""

    rows: tiles.Rows
    precision: str  # the input_precision of its products, or "manhattan"
    n: int
    D: int
    order: Tensor | None  # the order of the rows
    keys: Tensor | None = None  # the keys of sorted rows, see `in_order`
    anchors: tuple[Any, ...] = ()  # `folds.Anchors`, in the backward of rows that are anchors

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """t, which is in the side's order, in the order of the inputs."""
        return t if self.order is None else torch.empty_like(t).index_copy_(dim, self.order, t)


class Arranged(NamedTuple):
    """The rows of a side as they are given, and the order in which kernels are to have them."""

    given: Tensor
    rows: tiles.Rows  # what is known before `prepare`
    order: Tensor | None = None
    keys: Tensor | None = None


def sides(
    b: Batch, metric: str, *, sort: bool | None = None, box: tuple[Tensor, ...] = ()
) -> tuple[Side, Side]:  # fmt: skip
    """Both sides (one and the same if there is no y), either sorted by label with ignored rows last, or as they are.
    All rows are moved by a corner of their box, or of a given box around more rows.

    sort: None if the kernels do not need sorted rows; then batches of few pairs are not sorted.
    """
    if sort is None:
        sort = b.ignored is not None or b.x.shape[0] * b.y_labels.shape[0] > configs.SORT_FROM
    both = [arranged(b.x, b.x_labels, b.x_sorted, sort, b.ignored)]
    if b.y is not None:
        both.append(arranged(b.y, b.y_labels, b.y_sorted, sort, b.ignored))
    found = prepare(both, metric, box or box_of(b, metric))
    return met(found[0], found[-1])


def side(
    rows: Tensor, labels: Tensor, known: bool, sort: bool, ignored: int | None, metric: str, box: tuple[Tensor, ...]
) -> Side:
    """A side alone, see `arranged`."""
    return prepare([arranged(rows, labels, known, sort, ignored)], metric, box)[0]


def arranged(rows: Tensor, labels: Tensor, known: bool, sort: bool, ignored: int | None) -> Arranged:
    """Rows in the order of their labels, if they are to be sorted; the labels may be known to ascend."""
    if not sort:
        return Arranged(rows, tiles.Rows((), (), labels))
    keys, order = in_order(labels, known, ignored)
    # Reading how many rows come before the ignored ones would be a sync.
    counted = () if ignored is None else (torch.searchsorted(keys, LAST, out_int32=True),)
    return Arranged(rows, tiles.Rows((), (), (), counted=counted), order, keys)


def met(x: Side, y: Side) -> tuple[Side, Side]:
    """Two sides, sorted or not, prepared to meet. The first column with a label stands for the label, so that kernels
    compare int32, whatever the dtype of the labels."""
    x_keys, y_keys = x.keys, y.keys
    if x_keys is None or y_keys is None:
        return x, y
    near = spans(x_keys, y_keys)
    if x is y:
        x = x._replace(rows=x.rows._replace(labels=near[0], near=near))
        return x, x
    of_rows = x.rows._replace(labels=torch.where(near[0] < near[1], near[0], -1), near=near)
    first = torch.searchsorted(y_keys, y_keys, out_int32=True)
    of_columns = y.rows._replace(labels=first, near=spans(y_keys, x_keys))
    return x._replace(rows=of_rows), y._replace(rows=of_columns)


LAST = torch.iinfo(torch.int64).max


def in_order(labels: Tensor, known: bool, ignored: int | None) -> tuple[Tensor, Tensor | None]:
    """Ascending keys, equal for equal labels and `LAST` for ignored rows, and the order of the rows."""
    if ignored is not None:
        labels = labels - ignored + LAST  # wraps around: all others are less
    elif known:
        return labels, None
    keys, order = labels.sort(stable=True)
    return keys, order


def spans(keys: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ascending keys, the place of the first equal one among others, and the place after the last equal
    one. [n] int32 each"""
    first = torch.searchsorted(others, keys, out_int32=True)
    return first, torch.searchsorted(others, keys, right=True, out_int32=True)


def prepare(both: Sequence[Arranged], metric: str, box: tuple[Tensor, ...] = ()) -> list[Side]:
    """One or two sides in their compute format, in one launch."""
    first = both[0].given
    rounding, precision = ("", "manhattan") if metric == "manhattan" else compute_format(first)
    if (box or any(of.order is not None for of in both)) and not rounding:
        rounding = "exact"
    dtype = torch.bfloat16 if rounding == "bf16" else first.dtype
    made, D = [], first.shape[1]
    for of in both:
        norms = torch.empty(2, padded(len(of.given)), dtype=torch.float32, device=first.device)
        rounded = torch.empty_like(of.given, dtype=dtype) if rounding else of.given
        order = () if of.order is None else (of.order.int(),)
        made.append(tiles.Given(of.given, order, of.rows.counted, rounded, norms))
    BM, most = configs.ROWS_PER_PROGRAM, max(len(of.given) for of in both)
    options = dict(ROUND=rounding, UNIT=metric in UNIT, BM=BM, BD=configs.ROW_CHUNK, num_warps=4)
    args = (made[0], made[1] if len(made) > 1 else (), box, len(both[0].given), len(both[-1].given), D)
    Launch(tiles.prepare, (cdiv(most, BM), len(made)), args, options).run()
    found = []
    for of, side in zip(both, made, strict=True):
        rows = side.rounded.t().contiguous() if metric == "manhattan" else side.rounded
        known = of.rows._replace(rows=rows, norms=side.norms, order=side.order)
        found.append(Side(known, precision, len(of.given), D, of.order, of.keys))
    return found


def compute_format(x: Tensor) -> tuple[str, str]:
    """How `prepare` rounds rows, and the input_precision of products; float32 follows torch's matmul precision."""
    if x.dtype != torch.float32:
        return "", "ieee"
    mode = torch.get_float32_matmul_precision()
    if mode == "medium":
        return "bf16", "ieee"
    if tiles.INTERPRETED or not architecture().startswith("sm_") or x.device.type == "xpu":
        return ("tf32", "tf32") if mode == "high" and tiles.INTERPRETED else ("", "ieee")
    return ("tf32", "tf32") if mode == "high" else ("", "tf32x3")


def on_chip(terms: str, side: Side) -> bool:
    """Whether programs of the kernel `grad` hold all dimensions of their rows; of manhattan they hold a chunk."""
    work = configs.Work("grad", terms, side.rows.rows.element_size())
    return side.precision == "manhattan" or configs.on_chip(work, side.D, architecture())


def reorder(t: Tensor, order: Tensor | None) -> Tensor:
    """t [..., n] in an order."""
    return t if order is None else t.index_select(-1, order)
