"""What a call costs beside its arithmetic, on this CPU: `python -m bench.overhead [--out FILE] [--losses ...]`.

It times forward + backward of every loss: at small batches, beside dense eager PyTorch (`fusedloss.reference`); in the
first call of a process; and at a large batch, beside a busy process and alone. Small batches are timed in one process,
where the two take turns and the minima of the rounds are compared; the others run in a fresh process each. Losses of
given logits, and of classes, have 1,000 classes.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fusedloss import reference
from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.console import show
from fusedloss.tools.measure import Run, timed
from fusedloss.tools.workloads import Workload, arguments

from . import files, tables
from .cpu_table import verdict

D, CLASSES = 128, 1000
SMALL = (64, 256, 512)
LARGE = 4096
OF_DENSE = 1.3  # at a small batch, at most this times the time of dense PyTorch
OF_IDLE = 2.0  # beside a busy process, at most this times the time alone
FIRST_SECONDS = 0.1
ROUNDS, ROUND_SECONDS = 7, 0.02
DENSE_ROWS = {"batch_all_triplet_loss": 256, "batch_semihard_triplet_loss": 256}  # N^3 elements; others have N^2

SPIN = """
import numpy as np
a = np.random.rand(300, 300)
while True:
    a = a * 1.0001 % 1
    for _ in range(20_000):
        pass
"""
# In a fresh process: the seconds of the first call, and whether the compiler of PyTorch was imported for it.
FIRST = """
import json, sys, time, torch, fusedloss
from bench import overhead
run = overhead.step(getattr(fusedloss, sys.argv[1]), overhead.inputs(sys.argv[1], 64))
start = time.perf_counter()
run()
print(json.dumps([time.perf_counter() - start, "torch._dynamo" in sys.modules]))
"""
BESIDE = "import json, sys; from bench import overhead; print(json.dumps(overhead.beside(sys.argv[1])))"


def inputs(loss: str, n: int) -> dict[str, Any]:
    return arguments(Workload(loss, n, D, "fp32", classes=CLASSES), "cpu")


def step(function: Callable[..., torch.Tensor], given: dict[str, Any]) -> Run:
    wanted = [t for t in given.values() if t.requires_grad]
    return lambda: torch.autograd.grad(function(**given), wanted)


def small(loss: str, n: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """The seconds of fusedloss and of dense PyTorch: the minimum over the rounds, each of which is the mean of calls
    over some hundredths of a second."""
    given = inputs(loss, n)
    runs = {"fusedloss": step(CATALOG[loss].function, given)}
    if n <= DENSE_ROWS.get(loss, n):
        runs["dense"] = step(getattr(reference, loss), given)
    calls, found = {}, {name: [] for name in runs}
    for name, run in runs.items():
        run()
        calls[name] = max(1, int(ROUND_SECONDS / timed(run)))
    gc.disable()
    try:
        for turn in range(rounds):
            for name in list(runs)[:: 1 if turn % 2 else -1]:
                found[name].append(timed(lambda name=name: [runs[name]() for _ in range(calls[name])]) / calls[name])
    finally:
        gc.enable()
    row = {"loss": loss, "n": n, **{name: min(times) for name, times in found.items()}}
    return row | ({"ratio": row["fusedloss"] / row["dense"]} if "dense" in row else {})


@contextmanager
def busy() -> Iterator[None]:
    """A block during which another process computes."""
    other = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        time.sleep(0.5)  # until it has started
        yield
    finally:
        other.kill()
        other.wait()


def beside(loss: str, n: int = LARGE, rounds: int = 3, steps: int = 3) -> dict[str, float]:
    """The median seconds of a step alone and beside a busy process, which take turns."""
    run = step(CATALOG[loss].function, inputs(loss, n))
    run()
    idle, shared = [], []
    for _ in range(rounds):
        idle += [timed(run) for _ in range(steps)]
        with busy():
            shared += [timed(run) for _ in range(steps)]
    return {"idle": median(idle), "busy": median(shared), "ratio": median(shared) / median(idle)}


def fresh(code: str, loss: str) -> Any:
    """What code prints in a new process."""
    done = subprocess.run([sys.executable, "-c", code, loss], cwd=files.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{loss}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = ["loss", *(f"{what}{n}" for n in SMALL for what in ("N=", "of dense, N=")), "first call", "target",
           f"N={LARGE:,}", "busy", "target"]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    found = [row["loss"]]
    for one in row["small"]:
        ratio = f"{one['ratio']:.2f}x, {verdict(one['ratio'], OF_DENSE)}" if "ratio" in one else "-"
        found += [tables.seconds(one["fusedloss"]), ratio]
    found += [tables.seconds(row["first"]), verdict(row["first"], FIRST_SECONDS)]
    large = row["large"]
    return [*found, tables.seconds(large["idle"]), tables.seconds(large["busy"]), verdict(large["ratio"], OF_IDLE)]


def measured(loss: str) -> dict[str, Any]:
    first, dynamo = fresh(FIRST, loss)
    return {"loss": loss, "small": [small(loss, n) for n in SMALL], "first": first, "dynamo_imported": dynamo,
            "large": fresh(BESIDE, loss)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="what a call costs beside its arithmetic, on this CPU")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--losses", nargs="+", choices=list(CATALOG), default=list(CATALOG), help="losses (all)")
    args = parser.parse_args()
    targets = {"of_dense": OF_DENSE, "first_seconds": FIRST_SECONDS, "of_idle": OF_IDLE}
    results: dict[str, Any] = {"meta": files.meta("cpu"), "targets": targets, "classes": CLASSES, "overhead": []}
    for loss in args.losses:
        row = measured(loss)
        results["overhead"].append(row)
        print(*cells(row), sep=" | ", flush=True)
        if args.out:
            files.save(args.out, results)
    rows, threads = results["overhead"], torch.get_num_threads()
    show(f"forward + backward, D={D}, float32, {threads} threads", COLUMNS, [cells(row) for row in rows])
    imported = [row["loss"] for row in rows if row["dynamo_imported"]]
    print("torch._dynamo was imported by", ", ".join(imported) or "none of them")


if __name__ == "__main__":
    main()
