"""What the kernel families share: a launch, the choice of its tile, and one side of the score matrix."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tuning
from ..kernels import configs, scores
from ..kernels.folds import merge as merge_kernel
from ..kernels.prepare import prepare as prepare_kernel
from ..kernels.tiles import INTERPRETED

SCORES = {
    name: getattr(scores, name)
    for name in ("euclidean", "sqeuclidean", "cosine", "manhattan", "dot", "similarity", "chord")
}
SCALED = ("cosine", "similarity", "chord")  # scores of rows scaled to length 1: their norms are inverse


class Launch(NamedTuple):
    """One kernel launch, complete: `run` starts it, or `recording` keeps it to be compiled, for a GPU not there too."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]
    key: tuning.Key | None = None  # what its tile was chosen by

    def run(self) -> None:
        if 0 in self.grid:
            return
        if _recording is None:
            self.kernel[self.grid](*self.args, **self.options)
        else:
            _recording.append(self)


_recording: list[Launch] | None = None
_absent: str | None = None  # the architecture that is recorded for


@contextmanager
def recording(arch: str | None = None) -> Iterator[list[Launch]]:
    """Collect the launches of a block instead of starting them; for an architecture, if the device is not there.

    No host sync means that no launch depends on what another one computed, so they are those of a real run. Tensors on
    the device "meta" take no memory.
    """
    global _recording, _absent
    before = _recording, _absent
    _recording, _absent = [], arch
    try:
        yield _recording
    finally:
        _recording, _absent = before


class Side(NamedTuple):
    """One side of the score matrix as the kernels see it: rows [n, D] ([D, n] for manhattan), norms [n], labels [n].

    Where they are needed: the offsets [n] of lifted scores, (states, derivatives of them) [folds, n] each of the rows
    that are anchors, and the order in which the rows were put.
    """

    rows: Tensor
    norms: Tensor
    labels: Tensor
    offsets: Tensor | None = None
    states: tuple[Tensor, Tensor] | None = None
    order: Tensor | None = None

    @property
    def argument(self) -> tuple[Tensor, ...]:
        """The side as a kernel's argument."""
        side = (self.rows, self.norms, self.labels)
        return side if self.offsets is None else (*side, self.offsets)

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """t, computed in the side's order, in the order of the inputs."""
        return t if self.order is None else torch.empty_like(t).index_copy_(dim, self.order, t)


def compute_format(x: Tensor) -> tuple[str, str]:
    """How `prepare` rounds rows, and the input_precision of the products; fp32 follows torch's matmul precision."""
    if x.dtype != torch.float32:
        return "", "ieee"
    mode = torch.get_float32_matmul_precision()
    if mode == "medium":
        return "bf16", "ieee"
    if INTERPRETED or not architecture().startswith("sm_") or x.device.type == "xpu":
        return ("tf32", "tf32") if mode == "high" and INTERPRETED else ("", "ieee")
    return ("tf32", "tf32") if mode == "high" else ("", "tf32x3")


def prepare_launch(x: Tensor, rounded: Tensor, norms: Tensor, rounding: str, inverse: bool) -> Launch:
    BM = configs.ROWS_PER_PROGRAM
    args = (x, rounded, norms, *x.shape)
    options = dict(ROUND=rounding, INVERSE=inverse, BM=BM, BD=configs.ROW_CHUNK, num_warps=4)
    return Launch(prepare_kernel, (cdiv(len(x), BM),), args, options)


def prepare(x: Tensor, labels: Tensor, metric: str) -> tuple[Side, str]:
    """A side in its compute format, and the precision of its products."""
    norms = torch.empty(len(x), dtype=torch.float32, device=x.device)
    rounding, precision = ("", "manhattan") if metric == "manhattan" else compute_format(x)
    rounded = torch.empty_like(x, dtype=torch.bfloat16 if rounding == "bf16" else x.dtype) if rounding else x
    prepare_launch(x, rounded, norms, rounding, metric in SCALED).run()
    return Side(x.t().contiguous() if metric == "manhattan" else rounded, norms, labels), precision


def listed(params: Tensor) -> tuple[Any, ...]:
    """A loss's numbers as kernel arguments: by value from the CPU, else pointers to scalars on the device."""
    return tuple(params.tolist()) if params.device.type == "cpu" else params.unbind()


def reorder(t: Tensor, order: Tensor | None, dim: int = 0) -> Tensor:
    return t if order is None else t.index_select(dim, order)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def splits(N: int, M: int, tile: configs.Tile) -> int:
    """How many programs share the columns of a row block, so that a small N still fills the device."""
    return max(1, min(configs.SPLIT_TARGET // max(1, cdiv(N, tile.BM)), cdiv(M, tile.BN)))


def merge(parts: Tensor, kinds: int, dtype: torch.dtype | None = None, unit: Tensor | None = None) -> Tensor:
    """The folds [folds, n] of all pairs from those of parts of them [parts, folds, n], as kernels count the kinds."""
    if len(parts) == 1 and unit is None:
        return parts[0].to(dtype or parts.dtype)
    P, folds, n = parts.shape
    out = torch.empty(folds, n, dtype=dtype or parts.dtype, device=parts.device)
    options = dict(KINDS=kinds, BP=configs.PARTS, BLOCK=configs.MERGED, num_warps=4)
    args = (parts, out, () if unit is None else (unit,), P, n)
    Launch(merge_kernel, (cdiv(n, configs.MERGED), folds), args, options).run()
    return out


def total(parts: Tensor, dtype: torch.dtype | None = None, unit: Tensor | None = None) -> Tensor:
    """The sum of parts [parts, ...], times a unit if there is one, in their dtype or another one."""
    return merge(parts.flatten(1).unsqueeze(1), 1, dtype, unit).view(parts.shape[1:])


def architecture() -> str:
    """The name of the GPU's architecture, sm_90 or gfx942 say; sm_90 where there is none (the interpreter)."""
    return _absent or present_architecture()


@functools.cache
def present_architecture() -> str:
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


class Plan(NamedTuple):
    """The tile of a kernel, what it was chosen by, and the launch options that follow from it."""

    tile: configs.Tile
    key: tuning.Key
    options: dict[str, Any]


def pick(kernel: str, use: str, side: Side, precision: str, D: int) -> Plan:
    """The plan of a kernel; `use` names what else its registers depend on, the loss and its scores."""
    manhattan = precision == "manhattan"
    itemsize = 4 if manhattan else side.rows.element_size()
    key = tuning.Key(f"manhattan {kernel}" if manhattan else kernel, use, itemsize, tuning.bucket(D))
    tile = tuning.choose(key, D, architecture())
    chunks = 0 if manhattan or tile.held < D else cdiv(D, tile.BD)
    options = dict(PRECISION=precision, BM=tile.BM, BN=tile.BN, BD=tile.BD, CHUNKS=chunks)
    return Plan(tile, key, options | dict(num_warps=tile.num_warps, num_stages=tile.num_stages))
