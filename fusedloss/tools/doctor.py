"""What is here: versions, devices, the backend that each kind of tensor uses, tuned tiles; and what to do next."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fusedloss

from ..backends import resolve_backend
from .console import mark

KINDS = ("cpu", "cuda", "xpu", "mps")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OLDEST_TRITON = (3, 3)
TRITON = {"Windows": "triton-windows", "Linux": "triton"}  # the package, by system


class Finding(NamedTuple):
    """A line: "ok", "!" where something is to be done, "-" for what is neither; and what to do."""

    mark: str
    text: str
    next: str = ""


def doctor() -> None:
    print(f"fusedloss {fusedloss.__version__}, Python {platform.python_version()}, {platform.platform()}")
    todo = []
    for finding in chain(versions(), precision(), all_devices(), distributed(), environment(), tuned_tiles()):
        mark(finding.mark, finding.text)
        todo.append(finding.next)
    for text in filter(None, todo):
        mark("next", text)
    mark("next", "`python -m fusedloss demo` trains on handwritten digits, in about a minute")


def versions() -> Iterator[Finding]:
    yield Finding("ok", f"torch {torch.__version__}")
    version, package = triton_version(), TRITON.get(platform.system())
    if version is not None and tuple(map(int, version.split(".")[:2])) >= OLDEST_TRITON:
        yield Finding("ok", f"triton {version}")
    elif version is not None:
        least = ".".join(map(str, OLDEST_TRITON))
        yield Finding("!", f"triton {version} is too old", f'pip install --upgrade "{package or "triton"}>={least}"')
    elif package:
        why = "without Triton the losses run in PyTorch, on GPUs too"
        yield Finding("!", "triton not installed", f"pip install {package}: {why}")
    else:
        yield Finding("-", "triton not installed: there is none for this system, where the losses run in PyTorch")


def triton_version() -> str | None:
    """By its import, since builds for other GPUs are distributions of other names; None if there is none."""
    try:
        import triton
    except ModuleNotFoundError:
        return None
    return str(triton.__version__)


def precision() -> Iterator[Finding]:
    mode, faster = torch.get_float32_matmul_precision(), ""
    if torch.cuda.is_available() and mode == "highest":
        faster = 'torch.set_float32_matmul_precision("high"), if TF32 is exact enough: one product instead of three'
    yield Finding("ok", f"float32 matmul precision: {mode}", faster)


def all_devices() -> Iterator[Finding]:
    gpus = 0
    for kind in KINDS:
        found = list(devices(kind))
        gpus += kind != "cpu" and len(found)
        yield from (Finding("ok", f"{device}: {facts}") for device, facts in found)
        if not found:
            yield Finding("-", f"{kind}: no device", no_cuda() if kind == "cuda" else "")
    if not gpus:
        yield Finding("-", "no GPU: the losses run on the CPU; `report` and `tune --dry-run` compile and plan for GPUs")


def no_cuda() -> str:
    """What to do where there is an NVIDIA GPU, by its driver's tool, that PyTorch does not see."""
    if shutil.which("nvidia-smi") is None:
        return ""
    built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
    return f"nvidia-smi is here, but torch, which {built}, finds no GPU: see https://pytorch.org/get-started/locally"


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


def distributed() -> Iterator[Finding]:
    if not torch.distributed.is_available():
        why = "losses over several processes (fusedloss.distributed) need a build of torch that has it"
        yield Finding("!", "torch.distributed: not in this build of torch", why)


def environment() -> Iterator[Finding]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield Finding("!", "TRITON_INTERPRET=1: kernels are interpreted on the CPU", "unset TRITON_INTERPRET to train")


def tuned_tiles() -> Iterator[Finding]:
    if triton_version() is None:
        yield Finding("-", "tuned tiles: Triton is not installed")
        return
    from ..backends.triton import tuning

    folder = tuning.cache_directory()
    if not writable(folder):
        yield Finding("!", f"{folder} cannot be written", "set FUSEDLOSS_CACHE_DIR to a folder that can")
    if not torch.cuda.is_available():
        yield Finding("-", f"tuned tiles: kept in {folder}; there is no GPU here to tune any for")
        return
    tune = "`python -m fusedloss tune` finds and keeps tiles for this GPU; with --dry-run it says how long it takes"
    try:
        found = tuning.kept()
    except ValueError as error:
        yield Finding("!", f"tuned tiles: not used, {error}", tune)
        return
    if not found:
        yield Finding("!", f"tuned tiles: none of this GPU in {tuning.file()}", tune)
        return
    yield Finding("ok", f"tuned tiles: {len(found)} in {tuning.file()}")
    from .tune import show_tuned

    show_tuned(tuning.device_name(), found)


def writable(folder: Path) -> bool:
    """Whether it is, or can be made."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return os.access(there, os.W_OK)
