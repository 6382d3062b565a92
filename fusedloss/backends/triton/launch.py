"""What the kernel families have in common: a launch, the choice of its tile, and the merging of parts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import configs, folds, tiles
from . import tuning
from .kept import start


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
            start(self.kernel, self.grid, self.args, self.options)
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


def numbers(given: Tensor) -> tiles.Numbers:
    """A loss's numbers as kernels take them: values if they are on the CPU, else pointers to scalars on the device."""
    if given.is_cpu:
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


def plan(kernel: str, terms: str, use: str, side: Any) -> Plan:
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


class Total(NamedTuple):
    """A sum of all numbers of a tensor times a factor, which is stored in a scalar."""

    numbers: Tensor
    out: Tensor
    factor: tiles.Numbers


def merge_all(
    parts: Sequence[Tensor], kinds: tuple[Any, ...], dtypes: Sequence[torch.dtype], total: Total | None = None
) -> list[Tensor]:
    """The folds [folds, n] over all pairs, from folds over parts [parts, folds, n] for one or two sides, and a total,
    in one launch, if there is anything to do; kinds as in `folds.KINDS`."""
    found, sides, sizes, most = [], [], [], 1
    for of, dtype in zip(parts, dtypes, strict=True):
        P, _, n = of.shape
        if P == 1:
            found.append(of[0].to(dtype))
            continue
        found.append(torch.empty(of.shape[1:], dtype=dtype, device=of.device))
        sides.append((of, found[-1]))
        sizes.append((P, n))
        most = max(most, n)
    if sides or total is not None:
        (P, n), (Q, m) = [*sizes, (0, 0), (0, 0)][:2]
        x, y = [*sides, (), ()][:2]
        count = 0 if total is None else total.numbers.numel()
        options = dict(BP=configs.PARTS, BLOCK=configs.MERGED, SUMMED=configs.SUMMED, num_warps=4)
        grid = cdiv(most, configs.MERGED), len(kinds), len(sides) + (total is not None)
        Launch(folds.merge, grid, (x, y, () if total is None else total, kinds, P, Q, n, m, count), options).run()
    return found


def merge(parts: Tensor, kinds: tuple[Any, ...]) -> Tensor:
    """`merge_all` of one side, in the dtype of the parts."""
    return merge_all([parts], kinds, [parts.dtype])[0]


def total(parts: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The sum of parts [parts, ...], in their dtype or another one."""
    if parts.shape[0] == 1:
        return parts[0].to(dtype or parts.dtype)
    flat = parts.flatten(1).unsqueeze(1)
    return merge_all([flat], (folds.KINDS["sum"],), [dtype or parts.dtype])[0].view(parts.shape[1:])
