"""Time and peak memory of a workload, in a fresh process of its own: `measure("module:maker", n=4096)`.

Only a fresh process has a peak of its own: in a used one the memory that earlier work left behind hides what comes
next. The child is `python -m fusedloss.tools.measure MODULE:MAKER JSON`; it prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..losses.catalog import CATALOG

WARM_SECONDS = 0.05  # of work until a GPU's clocks are up
WARM_ROWS = 256  # large enough for every library to start its threads, small beside anything worth measuring

Run = Callable[[], Any]
Loss = Callable[[Tensor, Tensor], Tensor]


class Measurement(NamedTuple):
    """What `measure` found."""

    seconds: float  # median of `repeats` forward + backward runs after a warm-up
    peak_bytes: int | None  # extra memory at the peak, above what inputs and libraries held before; None if unknown


def measure(
    maker: str, *, timeout: float = 300.0, repeats: int = 3, **arguments: int | float | str
) -> Measurement | None:
    """Time and peak memory of a workload in a fresh process; None if memory or time do not suffice.

    Args:
        maker: "module:function"; function(**arguments) returns a no-argument callable that runs the workload once.
            An argument `n` is taken as its size: a small instance warms the libraries up first.
        timeout: seconds for the whole process, its imports included.
        repeats: timed runs, after one untimed one of full size.

    Raises:
        RuntimeError: the process failed for another reason; with the end of what it wrote to stderr.
    """
    command = [sys.executable, "-m", "fusedloss.tools.measure", maker, json.dumps({"repeats": repeats, **arguments})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the modules seen here
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == -9:  # SIGKILL, which is how Linux ends a process for lack of memory
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{maker} with {arguments} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found is None else Measurement(*found)


def measure_here(make: Callable[..., Run], repeats: int, **arguments: Any) -> Measurement:
    """`measure` in this process."""
    if "n" in arguments:
        make(**{**arguments, "n": min(arguments["n"], WARM_ROWS)})()
    run = make(**arguments)
    limit_memory()
    memory = extra_memory()
    run()
    seconds = [timed(run) for _ in range(repeats)]
    return Measurement(statistics.median(seconds), memory.peak())


def timed(run: Run) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


class Clock:
    """Times runs one by one. On CUDA: events on the stream, with the L2 cache overwritten before each run."""

    def __init__(self, device: str) -> None:
        self.flush = None
        if device == "cuda":
            l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 2**27)
            self.flush = torch.empty(2 * l2, dtype=torch.uint8, device=device)

    def once(self, run: Run) -> tuple[float, float]:
        """Seconds on the device, and by the wall clock, which includes what the host takes to launch."""
        if self.flush is None:
            seconds = timed(run)
            return seconds, seconds
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, time.perf_counter() - began

    def __call__(self, run: Run) -> dict[str, float]:
        """Medians of 3 to 20 runs, about half a second's worth, after a warm-up that raises the clocks."""
        run()
        began = time.perf_counter()
        first = self.once(run)[1]
        while self.flush is not None and time.perf_counter() - began < WARM_SECONDS:
            run()
            torch.cuda.synchronize()
        times = [self.once(run) for _ in range(min(20, max(3, int(0.5 / first))))]
        device, wall = (statistics.median(column) for column in zip(*times, strict=True))
        return {"seconds": device, "wall_seconds": wall, "runs": len(times)}


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def extra_memory() -> CudaMemory | CpuMemory:
    """Of the device in use, counted from now on."""
    return CudaMemory() if torch.cuda.is_initialized() else CpuMemory()


class CudaMemory:
    """Extra device memory, by the statistics of PyTorch's allocator: tensors, not the blocks it caches."""

    def __init__(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self.before


class CpuMemory:
    """Extra resident memory of the process.

    Two things would falsify it. Memory freed earlier (by imports, the warm-up, making the inputs) that the heap kept
    would be used again unseen: it is handed back to the system first, so all that is resident at the start is in use.
    An earlier peak would cover this one: the high-water mark is reset where the system can (Linux). Elsewhere an
    earlier peak makes the result too large, or, where the memory resident now is not to be had either, hides it.
    Windows tells both through psutil only: without it the result is None.
    """

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError, AttributeError, TypeError):  # glibc only
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = resident("VmRSS")

    def peak(self) -> int | None:
        most = resident("VmHWM")
        return None if most is None or self.before is None else most - self.before


def kernel_bytes(file: str) -> dict[str, int]:
    """The sizes in a table like /proc/meminfo; empty where there is none."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def resident(field: str) -> int | None:
    """Bytes resident in this process now (VmRSS) or at the most (VmHWM); on macOS always at the most."""
    status = kernel_bytes("/proc/self/status")
    if status:
        return status[field]
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return working_set(field)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def working_set(field: str) -> int | None:
    """`resident` on Windows; None without psutil."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    memory = psutil.Process().memory_info()
    if field == "VmRSS":
        return int(memory.rss)
    return int(memory.peak_rss if hasattr(memory, "peak_rss") else memory.peak_wset)  # named so before psutil 8


def limit_memory(most: float = math.inf) -> None:
    """Let a workload too large for the machine, or that takes more than so many bytes, fail alone, before the system
    swaps or ends another process (Linux)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    free = kernel_bytes("/proc/meminfo").get("MemAvailable")
    if free is None or torch.cuda.is_initialized():  # CUDA reserves addresses far beyond the memory
        return
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = kernel_bytes("/proc/self/status")["VmData"] + int(min(free, most))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    texts = ("can't allocate memory", "not enough memory", "out of memory")  # Linux, Windows, CUDA
    return known or any(text in str(error) for text in texts)


# --------------------------------------------------------------------------------------------------- in-batch losses

# name -> (name of the loss, its options) -> a function of embeddings and labels
IMPLEMENTATIONS: dict[str, Callable[[str, dict[str, Any]], Loss]] = {
    "fusedloss": lambda loss, options: partial(CATALOG[loss].function, **options),
    "reference": lambda loss, options: partial(getattr(reference, loss), **options),
}


def in_batch(
    loss: str, implementation: str, n: int, d: int = 128, classes: int = 32, device: str = "cpu",
    dtype: str = "float32", **options: Any,
) -> Run:  # fmt: skip
    """Maker: forward and backward of an in-batch loss (its public name), returning the value and the gradient."""
    return training_step(IMPLEMENTATIONS[implementation](loss, options), *batch(n, d, classes, device, dtype))


def batch(n: int, d: int, classes: int, device: str, dtype: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows [N, D] of random directions, which require their gradient, and shuffled labels of equal share [N]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=generator)]
    return rows.to(device, getattr(torch, dtype)).requires_grad_(), labels.to(device)


def training_step(loss: Loss, x: Tensor, labels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def run() -> tuple[Tensor, Tensor]:
        value = loss(x, labels)
        return value.detach(), torch.autograd.grad(value, x)[0]

    return run


def main(maker: str, arguments: str) -> None:
    module, function = maker.split(":")
    found: Measurement | None = None
    try:
        found = measure_here(getattr(importlib.import_module(module), function), **json.loads(arguments))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
