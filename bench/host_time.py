"""What the host does for a step with Triton, without a GPU: `python -m bench.host_time [--out FILE] [--losses ...]`.

Kernels are compiled for an absent GPU, and a driver that starts nothing takes the launches, so that all is timed up to
the call of the real one. Rows are on the CPU, which does the arithmetic of PyTorch's operators too: little at N = 64,
not at N = 4,096. A step is timed with launches by Triton (`kernel[grid](...)`), with those that keep what was compiled
(`fusedloss/backends/triton/kept.py`), and without launches; the three take turns, and of each the fastest run counts.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from triton.runtime import driver

from fusedloss import backends
from fusedloss.backends.triton import kept
from fusedloss.backends.triton.launch import Launch
from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.compiling import AbsentGPU, target
from fusedloss.tools.console import show
from fusedloss.tools.measure import Run, timed
from fusedloss.tools.workloads import Workload, step

from . import files, tables

LOSSES = ("pairwise_contrastive_loss", "supcon_loss", "clip_loss", "nt_xent_loss")
SIZES, D, ARCH = (64, 4096), 128, "sm_90"
ROUNDS, CALLS = 40, 5


class Launcher:
    """A launch that starts nothing."""

    def __init__(self, src: Any, metadata: Any) -> None:
        pass

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        pass


class Utils:
    """What Triton asks of a driver when it loads a binary."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return "module", binary, 32, 0, 1024  # registers, spills, threads of a program

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}


class Driver(AbsentGPU):
    """A driver for which kernels are compiled, and that starts none."""

    utils, launcher_cls = Utils(), Launcher


@contextmanager
def launching(way: str) -> Iterator[None]:
    """Launches by "triton", by "kept", or "none"."""
    with (
        patch.object(kept, "specialize", None if way == "triton" else kept.specialize),
        patch.object(Launch, "run", (lambda self: None) if way == "none" else Launch.run),
    ):
        yield


WAYS = ("triton", "kept", "none")


def launches(run: Run) -> list[Launch]:
    """Those of a step."""
    found: list[Launch] = []
    start = Launch.run
    with patch.object(Launch, "run", lambda self: (found.append(self), start(self))):
        run()
    return found


def fastest(run: Run, ways: tuple[str, ...], rounds: int) -> dict[str, float]:
    """The seconds of a run, launched in each way: of the rounds, in which the ways take turns, the fastest."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds):
        for way in ways[:: 1 if turn % 2 else -1]:
            with launching(way):
                run()
                best[way] = min(best[way], timed(lambda: [run() for _ in range(CALLS)]) / CALLS)
    return best


def measured(loss: str, n: int, rounds: int = ROUNDS) -> dict[str, Any]:
    run = step(Workload(loss, n, D, "bf16"), "cpu")
    run()  # compiles
    of_step = launches(run)
    gc.disable()
    try:
        each = [(launch.kernel.fn.__name__, fastest(launch.run, WAYS[:2], rounds)) for launch in of_step]
        return {"loss": loss, "n": n, "step": fastest(run, WAYS, rounds), "launches": [[*one] for one in each]}
    finally:
        gc.enable()


COLUMNS = ["loss", "N", "launches", "one by Triton", "one kept", "of it", "step by Triton", "step kept", "of it",
           "step without launches"]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """Of a launch: the mean over those of a step."""
    step, count = row["step"], len(row["launches"])
    one = {way: sum(times[way] for _, times in row["launches"]) / count for way in WAYS[:2]}
    found = [row["loss"], f"{row['n']:,}", str(count)]
    for times in (one, step):
        ratio = times["kept"] / times["triton"]
        found += [tables.seconds(times["triton"]), tables.seconds(times["kept"]), f"{ratio:.2f}x"]
    return [*found, tables.seconds(step["none"])]


def main() -> None:
    parser = argparse.ArgumentParser(description="what the host does for a step with Triton, without a GPU")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--losses", nargs="+", choices=list(CATALOG), default=LOSSES, help="losses (four of them)")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="batch sizes")
    args = parser.parse_args()
    driver.set_active(Driver(target(ARCH)))
    results: dict[str, Any] = {"meta": files.meta("cpu"), "arch": ARCH, "D": D, "dtype": "bf16", "host": []}
    with patch.object(backends, "TRITON_DEVICES", ("cpu",)):
        for n in args.sizes:
            for loss in args.losses:
                results["host"].append(measured(loss, n))
                print(*cells(results["host"][-1]), sep=" | ", flush=True)
    if args.out:
        files.save(args.out, results)
    show(f"forward + backward, D={D}, bfloat16, {ARCH}", COLUMNS, [cells(row) for row in results["host"]])


if __name__ == "__main__":
    main()
