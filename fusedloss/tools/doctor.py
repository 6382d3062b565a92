"""What is here: versions, devices, the backend that each kind of tensor uses, and the tiles tuned on this GPU."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import torch

import fusedloss

from ..backends import resolve_backend
from .console import show

KINDS = ("cpu", "cuda", "xpu", "mps")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def doctor() -> None:
    print(f"fusedloss {fusedloss.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"torch {torch.__version__}, triton {triton_version() or 'not installed'}")
    print(f"float32 matmul precision: {torch.get_float32_matmul_precision()}")
    for kind in KINDS:
        for device, facts in list(devices(kind)) or [(kind, "no device")]:
            print(f"{device}: {facts}")
    print_tuned_tiles()


def triton_version() -> str | None:
    """By its import, since builds for other GPUs are distributions of other names; None if there is none."""
    try:
        import triton
    except ModuleNotFoundError:
        return None
    return str(triton.__version__)


def devices(kind: str) -> Iterator[tuple[str, str]]:
    """The devices of a kind: the name, and what there is to say of it."""
    if kind == "cpu":
        yield kind, f"{torch.get_num_threads()} threads; {backends(kind)}"
    elif kind == "mps":
        if torch.backends.mps.is_available():
            yield kind, f"Apple GPU; {backends(kind)}"
    else:
        of_kind = getattr(torch, kind)
        for index in range(of_kind.device_count()):
            device = f"{kind}:{index}"
            yield device, f"{model(of_kind.get_device_properties(index))}; {backends(device)}"


def model(properties: Any) -> str:
    capability = f"{properties.major}.{properties.minor}, " if hasattr(properties, "major") else ""
    return f"{properties.name}, {capability}{properties.total_memory / 2**30:.0f} GiB"


def backends(device: str) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {backend(dtype, device)}" for dtype in DTYPES)


def backend(dtype: torch.dtype, device: str) -> str:
    try:
        return resolve_backend(torch.empty(0, dtype=dtype, device=device))
    except TypeError:  # float64 on MPS, and bfloat16 before macOS 14
        return "not supported"


def print_tuned_tiles() -> None:
    if triton_version() is None:
        print("tuned tiles: Triton is not installed")
        return
    from ..backends.triton import tuning
    from .sweep import COLUMNS, cells

    if not torch.cuda.is_available():
        print(f"tuned tiles: kept in {tuning.cache_directory()}; there is no GPU here to tune any for")
        return
    tuned = tuning.remembered().values()
    if not tuned:
        print(f"tuned tiles: none of this GPU in {tuning.file()}; `python -m fusedloss tune` finds and keeps some")
        return
    print(f"tuned tiles: {len(tuned)} in {tuning.file()}")
    show(tuning.device_name(), (*COLUMNS, "bits"), [[*cells(t), str(8 * t.key.work.itemsize)] for t in tuned])
