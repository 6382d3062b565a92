"""The losses against dense PyTorch on one device, with its ceilings: the third step of `bench.gpu`.

`python -m bench.gpu_timings RESULT.json` adds "ceilings", "parity" and "timings" to the file, row by row.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fusedloss import measure
from fusedloss.measure import Run

from . import report, workloads
from .workloads import GIVEN_LOGITS, WITH_CLASSES, Case, Oracle, available, data, loss_of

SIZES = [2**k for k in range(12, 17)]
DIMENSIONS = [128, 256]
DTYPES = ["float32", "bfloat16"]
MEMBERS = ("fusedloss", "reference", "torch")
NO_MEMORY = "out of memory"
CASES = {  # as called by default, and with every negative of unit rows active
    "contrastive": Case("pairwise_contrastive_loss", {}),
    "contrastive, all active": Case("pairwise_contrastive_loss", {"neg_margin": 2.5}),
    "batch-hard": Case("batch_hard_triplet_loss", {}),
    **{name: workloads.CASES[name] for name in ("all triplets", "semi-hard", "supcon", "nt-xent", "clip", "siglip")},
    **{name: case for name, case in workloads.CASES.items() if case.loss in (*WITH_CLASSES, *GIVEN_LOGITS)},
}
TWO_TOWERS = ("clip", "siglip")
CEILINGS = {"cuda": (8192, 2**30), "cpu": (1024, 2**26)}  # rows of the square matrix product, bytes copied


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
            seconds = measure.timed(run)
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
        """Medians of 3 to 20 runs, about half a second's worth, after a warm-up."""
        run()
        first = self.once(run)[1]
        times = [self.once(run) for _ in range(min(20, max(3, int(0.5 / first))))]
        device, wall = (median(column) for column in zip(*times, strict=True))
        return {"seconds": device, "wall_seconds": wall, "runs": len(times)}


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


def timings(make: Callable[[], Run], clock: Clock) -> dict[str, Any]:
    """Time and peak extra memory of a workload, or why there are none."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        run = make()
        memory = measure.extra_memory()
        run()
        peak = memory.peak()
        return {**clock(run), "peak_bytes": peak}
    except Exception as error:
        return {"failed": NO_MEMORY if measure.out_of_memory(error) else f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", choices=list(CEILINGS), default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()

    clock = Clock(args.device)
    limits = ceilings(args.device, clock)
    report.update(args.result, ceilings=limits)

    parity: list[dict[str, Any]] = []
    for name, d, dtype in itertools.product(CASES, DIMENSIONS, DTYPES):
        loss = loss_of(CASES[name], "fusedloss")
        row: dict[str, Any] = {"case": name, "d": d, "dtype": dtype, "n": min(args.sizes)}
        try:
            oracle = Oracle(CASES[name], row["n"], d, args.device, dtype)
            row |= {"reference": oracle.dense._asdict(), "fusedloss": oracle.check(loss)._asdict()}
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        parity.append(row)
        report.update(args.result, parity=parity)
    wrong = {(row["case"], row["d"], row["dtype"]): row["failed"] for row in parity if "failed" in row}

    rows: list[dict[str, Any]] = []
    for n, name, d, dtype in itertools.product(args.sizes, CASES, DIMENSIONS, DTYPES):
        row = {"case": name, "n": n, "d": d, "dtype": dtype, "classes": CASES[name].classes}
        rows.append(row)
        for implementation in (name for name in MEMBERS if name in available(CASES[row["case"]], n, dtype)):
            if implementation == "fusedloss" and (name, d, dtype) in wrong:
                found: dict[str, Any] = {"failed": wrong[name, d, dtype]}  # a wrong result is not timed
            else:
                found = timings(partial(maker, CASES[name], implementation, n, d, args.device, dtype), clock)
            if "seconds" in found:  # G = 2 N M D FLOP, a full product of all pairs; two towers have half the rows each
                rows_a_side = n // 2 if name in TWO_TOWERS else n
                found["of_gemm_floor"] = 2 * rows_a_side**2 * d / limits["bfloat16_gemm_flops"] / found["seconds"]
            row[implementation] = found
            report.update(args.result, timings=rows)
    failed = sum("failed" in row["fusedloss"] for row in rows)  # where the dense reference fails is a finding
    sys.exit(f"{failed} of {len(rows)} timings of fusedloss failed" if failed else 0)


if __name__ == "__main__":
    main()
