"""What dense PyTorch cannot hold: `python -m bench.dense [--out FILE]`.

It times forward and backward of losses whose dense form takes N^3 memory, for fusedloss and for the reference, each in
a fresh process; the reference runs up to the largest N for which the machine's memory suffices. Before it is timed,
fusedloss is compared with float64 at N = 256.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fusedloss.tools.console import show
from fusedloss.tools.measure import measure

from . import files, tables
from .cpu_table import OURS, D, median_of
from .workloads import CASES, Oracle, loss_of

RANKING = ("smooth-ap", "recall at k")
SIZES = (256, 512, 1024, 4096)
DENSE = "reference"


def timed(case: str, implementation: str, n: int) -> dict[str, float] | None:
    """Seconds, and peak bytes beside the inputs; None if the memory or 15 minutes do not suffice."""
    found = measure(
        "bench.workloads:in_batch", case=case, implementation=implementation, n=n, d=D, repeats=1, timeout=900
    )  # fmt: skip
    return None if found is None else median_of([found])


def cells(row: dict[str, Any]) -> list[str]:
    found = [f"{row['case']}, N={row['n']:,}"]
    for name in (OURS, DENSE):
        of = row.get(name)
        found += [tables.seconds(of["seconds"]), tables.size(of["peak_bytes"])] if of else ["-", "-"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="fusedloss beside dense PyTorch, as far as that goes")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--losses", nargs="+", choices=list(CASES), default=list(RANKING), help="losses (of ranks)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="batch sizes, ascending")
    args = parser.parse_args()
    results: dict[str, Any] = {"meta": files.meta("cpu"), "beside_dense": []}
    for name in args.losses:
        case, fits = CASES[name], True
        errors = Oracle(case, 256, D).check(loss_of(case, OURS))
        for n in args.sizes:
            row: dict[str, Any] = {"case": name, "n": n, "d": D, "classes": min(case.classes, n // 4)}
            row |= {"errors_at_256": errors._asdict(), OURS: timed(name, OURS, n)}
            dense = timed(name, DENSE, n) if fits else None
            fits = dense is not None
            results["beside_dense"].append(row | ({DENSE: dense} if fits else {}))
            print(*cells(results["beside_dense"][-1]), sep=" | ", flush=True)
            if args.out:
                files.save(args.out, results)
    title = f"forward + backward, D={D}, float32; {results['meta']['device']}, torch {results['meta']['torch']}"
    show(title, ["work", "time", "peak", "dense", "peak"], [cells(row) for row in results["beside_dense"]])


if __name__ == "__main__":
    main()
