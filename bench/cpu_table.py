"""The CPU targets for the losses, measured: `python -m bench.cpu_table [--out FILE]`.

Every number comes from a fresh process. fusedloss and its peer (pytorch-metric-learning; torch, where it has the loss)
take turns, the first one alternating, for several rounds; a ratio is the median of the rounds' ratios, since on a
shared machine only neighbours compare.

On a machine with other work, set OMP_WAIT_POLICY=PASSIVE: if a thread spins while it waits for another one that has
lost its core, a millisecond of work takes half a second, in any of the processes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.tools.console import show
from fusedloss.tools.measure import Measurement, measure

from . import files, tables
from .peers import PEERS
from .workloads import CASES, Oracle, available, loss_of

OURS = "fusedloss"
AGAINST = ("pytorch-metric-learning", "torch")  # the peers of the table; the first one that has the loss is used
D = 128
GIB = 2**30


class Target(NamedTuple):
    """The largest fractions of the peer's time and peak at N rows that reach the target."""

    time: float
    peak: float | None
    n: int = 4096


TARGETS = {
    "contrastive": Target(1 / 3, 1 / 10),
    "contrastive, all active": Target(1 / 3, 1 / 10),
    "batch-hard": Target(1 / 5, 1 / 10),
    "all triplets": Target(1 / 20, 1 / 50),
    "supcon": Target(1 / 3, 1 / 10),
    "circle": Target(1 / 3, 1 / 10),
    "nt-xent": Target(1 / 50, None, n=512),
}
ALONE = ("nt-xent", 16384)  # a target at a size that the peer cannot run
LIMITS = {4096: 1 * GIB, 16384: 1 * GIB, 32768: 2 * GIB}  # the peak of fusedloss alone; at 4096 if no peer can run it


def measured(case: str, implementation: str, n: int, threads: int, **kwargs: Any) -> Measurement:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the child's
    maker = "bench.workloads:in_batch"
    found = measure(maker, case=case, implementation=implementation, n=n, d=D, timeout=900, **kwargs)
    if found is None:
        raise RuntimeError(f"{implementation}, {case}, N = {n}: out of memory or past 900 s")
    return found


def gemm_flops(threads: int) -> float:
    """FLOP/s of a float32 matrix product of 2,048 x 2,048 rows, the median of 5 in a fresh process."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the child's
    found = measure("bench.floor:square_product", n=2048, repeats=5)
    if found is None:
        raise RuntimeError("a matrix product of 2,048 x 2,048 rows: out of memory or past 300 s")
    return 2 * 2048**3 / found.seconds


def peer_of(row: Iterable[str]) -> str | None:
    """The peer among the implementations of a case, or in a row of results."""
    return next((name for name in AGAINST if name in row), None)


def versus(case: str, peer: str, n: int, threads: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[Measurement]] = {OURS: [], peer: []}
    repeats = 1 if n == CASES[case].peer_rows else 3  # at its largest size the peer takes long
    for turn in range(rounds):
        for implementation in list(found)[:: 1 if turn % 2 == 0 else -1]:
            found[implementation].append(measured(case, implementation, n, threads, repeats=repeats))
    pairs = list(zip(found[OURS], found[peer], strict=True))
    return {
        "case": case, "n": n, "d": D, "classes": CASES[case].classes, "threads": threads, "rounds": rounds,
        "load": round(os.getloadavg()[0], 2),
        **{name: median_of(runs) for name, runs in found.items()},
        "time_ratio": median(ours.seconds / theirs.seconds for ours, theirs in pairs),
        "peak_ratio": median(ours.peak_bytes / theirs.peak_bytes for ours, theirs in pairs),
    }  # fmt: skip


def alone(case: str, n: int, threads: int) -> dict[str, Any]:
    found = measured(case, OURS, n, threads, repeats=1)
    return {
        "case": case, "n": n, "d": D, "classes": CASES[case].classes, "threads": threads, "rounds": 1,
        "load": round(os.getloadavg()[0], 2), OURS: median_of([found]),
    }  # fmt: skip


def median_of(runs: list[Measurement]) -> dict[str, float]:
    return {name: median(getattr(run, name) for run in runs) for name in Measurement._fields}


def verdict(ratio: float, target: float) -> str:
    """Whether the target is reached, and by how much: "reached 2x" is twice as good as the target."""
    return f"reached {target / ratio:.2g}x" if ratio <= target else f"missed {ratio / target:.2g}x"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table; where the peer cannot, or was not asked, fusedloss alone."""
    ours, peer = row[OURS], row.get(peer_of(row) or "")
    time, peak = tables.seconds(ours["seconds"]), tables.size(ours["peak_bytes"])
    found = [row["case"], f"{row['n']:,}", str(row["threads"])]
    if peer is None:
        return [*found, time, "-", "-", peak, "-", "-"]
    return [*found, time, tables.seconds(peer["seconds"]), tables.gain(row["time_ratio"]),
            peak, tables.size(peer["peak_bytes"]), tables.gain(row["peak_ratio"])]  # fmt: skip


def verdicts(row: dict[str, Any]) -> list[str]:
    """What became of the targets of a row, time first."""
    peer, target = peer_of(row), TARGETS.get(row["case"])
    if peer is None and row["n"] in LIMITS and not CATALOG[CASES[row["case"]].loss].named(Role.LOGITS):
        # a gradient by given logits is as large as they are
        return [f"memory {verdict(row[OURS]['peak_bytes'], LIMITS[row['n']])}"]
    if peer is None or target is None or target.n != row["n"]:
        return []
    found = [f"time {verdict(row['time_ratio'], target.time)}"]
    return found + ([f"memory {verdict(row['peak_ratio'], target.peak)}"] if target.peak else [])


COLUMNS = ["loss", "N", "threads", "time", "the other's", "faster", "memory", "the other's", "less memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description="fusedloss against its peers on this CPU")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each implementation (3)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024, 4096], help="batch sizes with the peer")
    parser.add_argument(
        "--large", type=int, nargs="*", default=[n for n in LIMITS if n > 4096], help="batch sizes of fusedloss alone"
    )
    parser.add_argument("--losses", nargs="+", choices=list(CASES), default=list(CASES), help="losses (all)")
    parser.add_argument("--threads", type=int, nargs="*", help="thread counts (1 and all cores)")
    args = parser.parse_args()

    results: dict[str, Any] = {"meta": files.meta("cpu"), "rows": []}
    threads = args.threads or sorted({1, results["meta"]["cores"]})
    results["gemm_flops"] = {str(count): gemm_flops(count) for count in threads}

    def add(row: dict[str, Any]) -> None:
        results["rows"].append(row)
        print(*cells(row), *verdicts(row), sep=" | ", flush=True)
        if args.out:
            files.save(args.out, results)

    for n in args.sizes:
        for name in args.losses:
            case = CASES[name]
            peer = peer_of(available(case, n, "float32"))
            if peer is None:
                if any(case.loss in PEERS[other].losses for other in AGAINST) and n in LIMITS:
                    add(alone(name, n, max(threads)))
                continue
            if n < 1024 and case.peer_rows != n:
                continue  # the smallest size is for losses whose peer cannot run larger ones
            oracle = Oracle(case, n, D)
            for implementation in (OURS, peer):
                oracle.check(loss_of(case, implementation))
            del oracle
            for count in threads:
                add(versus(name, peer, n, count, args.rounds))
    for n in args.large:
        for name in args.losses:
            add(alone(name, n, max(threads)))
    meta = results["meta"]
    title = f"forward + backward, D={D}, float32; {meta['device']}, torch {meta['torch']}"
    show(title, COLUMNS, [cells(row) for row in results["rows"]])


if __name__ == "__main__":
    main()
