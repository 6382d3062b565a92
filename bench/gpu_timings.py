"""The losses against dense PyTorch on one device, with its ceilings: a step of `bench.gpu`.

`python -m bench.gpu_timings RESULT.json` adds "ceilings", "parity" and "timings" to the file, row by row.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fusedloss.tools import measure
from fusedloss.tools.measure import Clock, Run

from . import files
from .cpu_table import OURS
from .floor import product_flop
from .gpu_table import COMPILED, LAUNCH_BOUND, TARGETS
from .workloads import CASES, Case, Oracle, available, data, loss_of

SIZES = [2**k for k in range(12, 17)]
DIMENSIONS = [128, 256]
DTYPES = ["float32", "bfloat16"]
NO_MEMORY = "out of memory"
DENSE_ROWS = 16_384  # PyTorch can hold a few matrices of all pairs of so many rows
CEILINGS = {"cuda": (8192, 2**30), "cpu": (1024, 2**26)}  # rows of the square matrix product, bytes copied


def ceilings(device: str, clock: Clock) -> dict[str, float]:
    """What this device reaches: FLOP/s of a bfloat16 matrix product, bytes/s read and written by a copy."""
    rows, nbytes = CEILINGS[device]
    a, b = (torch.randn(rows, rows, device=device).bfloat16() for _ in range(2))
    source, target = (torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    return {
        "bfloat16_gemm_flops": 2 * rows**3 / clock(lambda: a @ b)["seconds"],
        "copy_bytes_per_second": 2 * nbytes / clock(lambda: target.copy_(source))["seconds"],
    }


def maker(case: Case, implementation: str, n: int, d: int, device: str, dtype: str) -> Run:
    return measure.training_step(loss_of(case, implementation), *data(case, n, d, device, dtype))


def launches(run: Run) -> int:
    """How many kernels a run launches; 0 where the profiler does not see them."""
    with torch.profiler.profile() as profile:
        run()
        measure.synchronize()
    return sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)


def timings(make: Callable[[], Run], clock: Clock, count: bool) -> dict[str, Any]:
    """The time and peak extra memory of a workload, and its launches if `count`; or why it failed."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        run = make()
        memory = measure.extra_memory()
        run()
        peak = memory.peak()
        found = {**clock(run), "peak_bytes": peak}
        if count and (launched := launches(run)):
            found["launches"] = launched
        return found
    except Exception as error:
        return {"failed": NO_MEMORY if measure.out_of_memory(error) else f"{type(error).__name__}: {error}"[:300]}


class Job(NamedTuple):
    case: str
    n: int
    d: int
    dtype: str


def turns(sizes: Sequence[int], device: str) -> list[tuple[Job, str]]:
    """What is timed, one member at a time, the most informative first, since the time may be up after any of them.

    First comes fusedloss where it has a target, then the members that targets compare it with, then the others on the
    same cases; then the grid, with small batches first.
    """
    targets = [target for target in TARGETS if max(sizes) >= SIZES[-1]]
    grid = [Job(case, n, d, dtype) for n, case, d, dtype in itertools.product(sizes, CASES, DIMENSIONS, DTYPES)]
    ours = [(Job(*target.key), OURS) for target in targets]
    compared = [(Job(*target.key), target.of) for target in targets if target.of]
    jobs = dict.fromkeys([*(job for job, _ in ours), *grid])
    present = [(job, member) for job in jobs for member in members(job, device)]
    return list(dict.fromkeys([*ours, *(turn for turn in compared if turn in present), *present]))


def members(job: Job, device: str) -> list[str]:
    """The members that can run a job. torch.compile, which takes long, is left out if dense PyTorch lacks memory."""
    found = available(CASES[job.case], job.n, job.dtype, device)
    return [member for member in found if member != COMPILED or job.n <= DENSE_ROWS]


class Parity:
    """The errors of every member against float64, computed once, at a size that dense PyTorch can hold."""

    def __init__(self, device: str, n: int) -> None:
        self.device, self.n, self.rows = device, n, list[dict[str, Any]]()
        self.oracle: tuple[tuple[str, int, str], Oracle | str] | None = None

    def failure(self, job: Job, member: str) -> str | None:
        """Why a member's result is wrong, if it is."""
        wanted = {"case": job.case, "d": job.d, "dtype": job.dtype, "n": self.n, "member": member}
        row = next((row for row in self.rows if wanted.items() <= row.items()), None)
        if row is None:
            row = wanted | self.check(job, member)
            self.rows.append(row)
        return row.get("failed")

    def check(self, job: Job, member: str) -> dict[str, Any]:
        key = (job.case, job.d, job.dtype)
        try:
            if self.oracle is None or self.oracle[0] != key:
                self.oracle = key, Oracle(CASES[job.case], self.n, job.d, self.device, job.dtype)
            error = self.oracle[1].check(loss_of(CASES[job.case], member))
            return {"error": error._asdict(), "dense": self.oracle[1].dense._asdict()}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", choices=list(CEILINGS), default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()

    clock = Clock(args.device)
    limits = ceilings(args.device, clock)
    files.update(args.result, ceilings=limits)
    parity, rows = Parity(args.device, min(args.sizes)), dict[Job, dict[str, Any]]()
    for job, member in turns(args.sizes, args.device):
        case = CASES[job.case]
        row = rows.setdefault(job, {**job._asdict(), "classes": case.classes})
        wrong = parity.failure(job, member)  # a wrong result is not timed
        make = partial(maker, case, member, job.n, job.d, args.device, job.dtype)
        count = args.device == "cuda" and job.n <= LAUNCH_BOUND
        row[member] = {"failed": wrong} if wrong else timings(make, clock, count)
        flop = product_flop(case.loss, job.n, job.d, case.classes)
        if flop and "seconds" in row[member]:
            row[member]["of_gemm_floor"] = flop / limits["bfloat16_gemm_flops"] / row[member]["seconds"]
        files.update(args.result, parity=parity.rows, timings=list(rows.values()))
    failed = sum("failed" in row[OURS] for row in rows.values())  # where another member fails is a finding
    sys.exit(f"{failed} of {len(rows)} timings of fusedloss failed" if failed else 0)


if __name__ == "__main__":
    main()
