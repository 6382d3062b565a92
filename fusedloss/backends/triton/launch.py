"""What the kernel families have in common: a launch, the choice of its tile, and one side of the score matrix."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...checks import Batch
from ...kernels import configs, folds, scores, tiles
from ..request import box as box_of
from . import tuning

SCORES = {
    name: getattr(scores, name)
    for name in ("euclidean", "sqeuclidean", "cosine", "manhattan", "dot", "similarity", "chord")
}
UNIT = ("cosine", "similarity", "chord")  # scores of rows scaled to length 1


class Launch(NamedTuple):
    """A complete kernel launch: `run` starts it, or `recording` keeps it, to be compiled even for an absent GPU."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]
    key: tuning.Key | None = None  # the key by which its tile was chosen
    role: str = ""  # the side whose gradient it computes, if a step has several

    def run(self) -> None:
        if 0 in self.grid:
            return
        if _recording is None:
            self.kernel[self.grid](*self.args, **self.options)
        else:
            _recording.append(self if _kept else self._replace(args=()))


class Product(NamedTuple):
    """out += a b, a product of PyTorch's library; `recording` keeps it too."""

    out: Tensor  # float32
    a: Tensor  # of these two, float32 ones are multiplied as precisely as PyTorch is told to
    b: Tensor

    def run(self) -> None:
        out, a, b = self
        if _recording is not None:
            if _kept:
                _recording.products.append(self)
            if not out.is_meta:  # where nothing is computed, but operators and their memory are counted
                return
        with torch.no_grad():
            if a.dtype == out.dtype:
                torch.addmm(out, a, b, out=out)
            elif (a.is_cuda or a.is_meta) and hasattr(torch.ops.aten.addmm, "dtype_out"):  # from PyTorch 2.8 on
                torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
            else:
                torch.addmm(out, a.to(out.dtype), b.to(out.dtype), out=out)


class Recorded(list[Launch]):
    """Launches in their order, and the products between them."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []


_recording: Recorded | None = None
_absent: str | None = None  # the architecture for which launches are recorded, if the device is absent
_kept = True  # whether recorded launches keep their tensors


@contextmanager
def recording(arch: str | None = None, *, kept: bool = True) -> Iterator[Recorded]:
    """Collect the launches of a block instead of starting them.

    There is no host sync, so no launch depends on results of another one, and the launches are those of a real run.
    Tensors on the device "meta" take no memory.

    arch: the architecture to record for, if its device is absent.
    kept: whether the launches keep their arguments; False where memory is watched.
    """
    global _recording, _absent, _kept
    before = _recording, _absent, _kept
    _recording, _absent, _kept = Recorded(), arch, kept
    try:
        yield _recording
    finally:
        _recording, _absent, _kept = before


def architecture() -> str:
    """The name of the GPU's architecture, for example sm_90 or gfx942; sm_90 without a GPU (the interpreter)."""
    return _absent or present_architecture()


@functools.cache
def present_architecture() -> str:
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


class Side(NamedTuple):
    """One side of the score matrix: the arguments of the kernels, and what the host knows of it."""

    rows: tiles.Rows
    precision: str  # the input_precision of its products, or "manhattan"
    n: int
    D: int
    order: Tensor | None  # the order of the rows
    keys: Tensor | None = None  # the keys of sorted rows, see `in_order`
    anchors: tuple[Any, ...] = ()  # `engine.Anchors`, in the backward of rows that are anchors

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """t, which is in the side's order, in the order of the inputs."""
        return t if self.order is None else torch.empty_like(t).index_copy_(dim, self.order, t)


def sides(
    b: Batch, metric: str, *, sort: bool | None = None, box: tuple[Tensor, ...] = ()
) -> tuple[Side, Side]:  # fmt: skip
    """Both sides (one and the same if there is no y), either sorted by label with ignored rows last, or as they are.
    All rows are moved by a corner of their box, or of a given box around more rows.

    sort: None if the kernels do not need sorted rows; then batches of few pairs are not sorted.
    """
    if sort is None:
        sort = b.ignored is not None or len(b.x) * len(b.y_labels) > configs.SORT_FROM
    given = (sort, b.ignored, metric, box or box_of(b, metric))
    x = side(b.x, b.x_labels, b.x_sorted, *given)
    return met(x, x if b.y is None else side(b.y, b.y_labels, b.y_sorted, *given))


def side(
    rows: Tensor, labels: Tensor, known: bool, sort: bool, ignored: int | None, metric: str, box: tuple[Tensor, ...]
) -> Side:
    """A side in its compute format, in the order of its labels if it is to be sorted; the labels may be known to
    ascend."""
    if not sort:
        return prepare(rows, tiles.Rows((), (), labels), None, metric, box)
    keys, order = in_order(labels, known, ignored)
    # Reading how many rows come before the ignored ones would be a sync.
    counted = () if ignored is None else (torch.searchsorted(keys, LAST, out_int32=True),)
    return prepare(rows, tiles.Rows((), (), (), counted=counted), order, metric, box)._replace(keys=keys)


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


def prepare(x: Tensor, known: tiles.Rows, order: Tensor | None, metric: str, box: tuple[Tensor, ...] = ()) -> Side:
    """A side in its compute format and in a given order; its labels are known."""
    n, D = x.shape
    norms = torch.empty(2, padded(n), dtype=torch.float32, device=x.device)
    rounding, precision = ("", "manhattan") if metric == "manhattan" else compute_format(x)
    if (box or order is not None) and not rounding:
        rounding = "exact"
    rounded = torch.empty_like(x, dtype=torch.bfloat16 if rounding == "bf16" else x.dtype) if rounding else x
    places = () if order is None else (order.int(),)
    BM, BD = configs.ROWS_PER_PROGRAM, configs.ROW_CHUNK
    options = dict(ROUND=rounding, UNIT=metric in UNIT, BM=BM, BD=BD, num_warps=4)
    Launch(tiles.prepare, (cdiv(n, BM),), (x, places, known.counted, box, rounded, norms, n, D), options).run()
    rows = rounded.t().contiguous() if metric == "manhattan" else rounded
    return Side(known._replace(rows=rows, norms=norms, order=places), precision, n, D, order)


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


def numbers(given: Tensor) -> tiles.Numbers:
    """A loss's numbers as kernels take them: values if they are on the CPU, else pointers to scalars on the device."""
    if given.device.type == "cpu":
        return tiles.Numbers(tuple(given.tolist()), ())
    return tiles.Numbers((), tuple(given.unbind()))


def optional(value: Any) -> tuple[Any, ...]:
    """An argument of a kernel that may be absent."""
    return () if value is None else (value,)


class Plan(NamedTuple):
    """The tile of a kernel, the key by which it was chosen, and the launch options that follow from it."""

    tile: configs.Tile
    key: tuning.Key
    slab: int  # chunks of the gradient that one program owns
    options: dict[str, Any]

    def splits(self, N: int, M: int) -> int:
        """How many programs share the columns of a row block, so that a small N still fills the device."""
        return max(1, min(configs.SPLIT_TARGET // max(1, cdiv(N, self.tile.BM)), cdiv(M, self.tile.BN)))


def plan(kernel: str, terms: str, use: str, side: Side) -> Plan:
    """The plan of a kernel, see `configs.Work`; `use` names everything else that its use of registers depends on."""
    manhattan, D = side.precision == "manhattan", side.D
    work = configs.Work(kernel, "manhattan" if manhattan else terms, 4 if manhattan else side.rows.rows.element_size())
    key = tuning.Key(work, use, tuning.bucket(D))
    tile = tuning.choose(key, D, architecture())
    chunks = 0 if manhattan or tile.held < D else cdiv(D, tile.BD)
    options = dict(PRECISION=side.precision, BM=tile.BM, BN=tile.BN, BD=tile.BD, CHUNKS=chunks)
    if kernel in configs.TWO_WALKS:
        options |= dict(NEAR=min(tile.near, tile.BN), EVEN=D % tile.BD == 0)
    options |= dict(num_warps=tile.num_warps, num_stages=tile.num_stages)
    if tile.maxnreg and architecture().startswith("sm_"):
        options |= dict(maxnreg=tile.maxnreg)
    return Plan(tile, key, cdiv(min(tile.held, D), tile.BD), options)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def padded(n: int) -> int:
    """The same as `tiles.padded`, on the host."""
    return 16 * cdiv(n, 16)


def merge(parts: Tensor, kinds: tuple[Any, ...], dtype: torch.dtype | None = None) -> Tensor:
    """The folds [folds, n] over all pairs, from folds over parts [parts, folds, n]; kinds as in `folds.KINDS`."""
    if len(parts) == 1:
        return parts[0].to(dtype or parts.dtype)
    P, count, n = parts.shape
    out = torch.empty(count, n, dtype=dtype or parts.dtype, device=parts.device)
    options = dict(BP=configs.PARTS, BLOCK=configs.MERGED, num_warps=4)
    args = (parts, out, kinds, P, n)
    Launch(folds.merge, (cdiv(n, configs.MERGED), count), args, options).run()
    return out


def total(parts: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The sum of parts [parts, ...], in their dtype or another one."""
    return merge(parts.flatten(1).unsqueeze(1), (folds.KINDS["sum"],), dtype).view(parts.shape[1:])
