"""Kernels compiled for GPUs that are not there, and what their binaries say of registers, memory and instructions.

Nothing is run. Triton keeps what it compiled, and what was read from a binary is kept beside it, so that the same
launch is looked at once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..backends.triton.tuning import cache_directory
from .sass import loops

INSPECTION = 4  # to be raised with every change of what is read from a binary


Target = tuple[str, "int | str", int]  # of a compiler: backend, architecture, threads of a warp


def target(arch: str) -> Target:
    return ("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else ("hip", arch, 64)


def shared_limit(arch: str) -> int:
    """Bytes of shared memory that a program can have."""
    known = {
        "sm_75": 64,
        "sm_80": 163,
        "sm_86": 99,
        "sm_87": 163,
        "sm_89": 99,
        "sm_90": 227,
        "sm_100": 227,
        "sm_103": 227,
    }
    known |= {"gfx942": 64, "gfx950": 160}
    return known.get(arch, 99 if arch.startswith("sm_") else 64) << 10


class Function(NamedTuple):
    """On a tile, or a kernel."""

    module: str
    name: str


class Pointer(NamedTuple):
    """What a compiler knows of a tensor."""

    dtype: str
    aligned: bool  # to 16 bytes


class Source(NamedTuple):
    """What a launch compiles, without its tensors: it can go to another process, and equal ones are compiled once."""

    kernel: Function
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]


Job = tuple[Source, Target]


def source(launch: Any) -> Source:
    """Of a recorded launch. Of numbers only what a compiler looks at has an influence on the code."""
    options = tuple((name, portable(value)) for name, value in launch.options.items())
    plain = {p.num for p in getattr(launch.kernel, "params", ()) if p.do_not_specialize}
    args = tuple(size(arg, i in plain) if type(arg) is int else portable(arg) for i, arg in enumerate(launch.args))
    return Source(portable(launch.kernel), args, options)


def size(n: int, plain: bool) -> int:
    """A number that is compiled like n: Triton makes a constant of 1, and uses that 16 divides a number, if it may."""
    if n >= 1 << 31:
        return n
    return 17 if plain or (n != 1 and n % 16) else min(n, 16)


def portable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Pointer(str(value.dtype).removeprefix("torch."), value.data_ptr() % 16 == 0)
    if isinstance(value, tuple):
        return mapped(portable, value)
    if isinstance(value, float):
        return 0.5
    if value is None or isinstance(value, (bool, int, str)):
        return value
    function = getattr(value, "fn", value)
    return Function(function.__module__, function.__name__)


def restored(value: Any) -> Any:
    if isinstance(value, Pointer):
        return torch.empty(2, dtype=getattr(torch, value.dtype), device="meta")[0 if value.aligned else 1]
    if isinstance(value, Function):
        return getattr(importlib.import_module(value.module), value.name)
    return mapped(restored, value) if isinstance(value, tuple) else value


def mapped(function: Callable[[Any], Any], values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple of the results, named if this one is."""
    results = map(function, values)
    return type(values)(*results) if hasattr(values, "_fields") else tuple(results)


class AbsentGPU:
    """What Triton's JIT asks of a driver to compile; its caches go by device number, so one for each target."""

    numbers: dict[Any, int] = {}  # noqa: RUF012

    def __init__(self, target: Target) -> None:
        from triton.backends.compiler import GPUTarget

        self.number, self.target = self.numbers.setdefault(target, len(self.numbers)), GPUTarget(*target)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def compile_source(source: Source, target: Target) -> dict[str, Any]:
    """What the compiler made of a launch for a GPU, or the error it gave."""
    from triton.runtime import driver

    driver.set_active(AbsentGPU(target))
    options = {name: restored(value) for name, value in source.options}
    try:
        compiled = restored(source.kernel).warmup(*restored(source.args), grid=(1,), **options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    known = cache_directory() / "compiled" / f"{compiled.hash}-{INSPECTION}.json"
    try:
        found: dict[str, Any] = json.loads(known.read_text())
    except (OSError, ValueError):
        found = inspect(compiled, target[0])
        known.parent.mkdir(parents=True, exist_ok=True)
        part = known.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found))
        part.replace(known)
    return found | {"hash": compiled.hash}


def inspect(compiled: Any, backend: str) -> dict[str, Any]:
    """What the binary needs, which tensor-core instructions it has, and for NVIDIA GPUs its loops over tiles."""
    if backend == "hip":
        text = compiled.asm["amdgcn"]
        registers, spills = (int(found(rf"\.?{name}:\s*(\d+)", text)) for name in ("vgpr_count", "vgpr_spill_count"))
        counts = {"mfma": len(re.findall(r"\bv_mfma", text))}
        return {"registers": registers, "spills": spills, "shared_bytes": compiled.metadata.shared, **counts}
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, sass = (
            subprocess.run([tools / "cuobjdump", what, cubin.name], check=True, capture_output=True, text=True).stdout
            for what in ("-res-usage", "-sass")
        )
    patterns = {"hgmma": r"\bHGMMA\b", "hmma": r"\bHMMA\b", "utcmma": r"\bUTC\w*MMA\b"}
    return {
        "registers": int(found(r"REG:(\d+)", usage)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared_bytes": compiled.metadata.shared,
        **{name: len(re.findall(pattern, sass)) for name, pattern in patterns.items()},
        "loops": loops(sass),
    }


def found(pattern: str, text: str) -> str:
    return re.search(pattern, text)[1]  # type: ignore[index]


def compile_all(jobs: Iterable[Job], progress: Callable[[int, int], None] | None = None) -> dict[Job, dict[str, Any]]:
    """What the compilers made of every launch, in as many processes as there are cores."""
    todo = list(dict.fromkeys(jobs))
    done: dict[Job, dict[str, Any]] = {}
    # Fresh processes: a fork of one that uses CUDA or threads is none to compile in.
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(len(todo), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=compiling_only) as pool:
        running = {pool.submit(compile_source, *job): job for job in todo}
        for future in as_completed(running):
            done[running[future]] = future.result()
            if progress:
                progress(len(done), len(todo))
    return done


def compiling_only() -> None:
    """For a process that compiles: kernels are not interpreted, and its threads do nothing."""
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)


def triton_version() -> str:
    return importlib.metadata.version("triton")
