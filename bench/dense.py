"""What dense forms cannot hold: `python -m bench.dense [--losses supcon] [--sizes 512 1024] [--out FILE]`.

Forward and backward of fusedloss, of dense PyTorch and of pytorch-metric-learning where it has the loss, each in a
fresh process, and up to the largest N that the machine's memory takes. Before anything is timed, all are held to
float64 at N = 256.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fusedloss.tools.console import show
from fusedloss.tools.measure import measure

from . import files, tables
from .cpu_table import OURS, D, median_of
from .workloads import CASES, Oracle, available, loss_of

RANKING = ("smooth-ap", "recall at k")  # whose dense form takes N^3 memory
SIZES = (256, 512, 1024, 4096)
DENSE, PEER = "reference", "pytorch-metric-learning"
CHECKED = 256
COLUMNS = ["loss", "N", "fusedloss", "memory", "dense PyTorch", "memory", PEER, "memory"]


def timed(case: str, implementation: str, n: int) -> dict[str, float] | None:
    """Seconds, and peak bytes beside the inputs; None if the memory or 15 minutes do not suffice."""
    found = measure(
        "bench.workloads:in_batch", case=case, implementation=implementation, n=n, d=D, repeats=3 if n < 8192 else 1,
        timeout=900,
    )  # fmt: skip
    return None if found is None else median_of([found])


def cells(row: dict[str, Any]) -> list[str]:
    found = [row["case"], f"{row['n']:,}"]
    for name in (OURS, DENSE, PEER):
        of = row.get(name)
        found += [tables.seconds(of["seconds"]), tables.size(of["peak_bytes"])] if of else ["-", "-"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="fusedloss beside dense forms, as far as these go")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--losses", nargs="+", choices=list(CASES), default=list(RANKING), help="losses (of ranks)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="batch sizes, ascending")
    args = parser.parse_args()
    results: dict[str, Any] = {"meta": files.meta("cpu"), "beside_dense": []}
    for name in args.losses:
        case = CASES[name]
        fitting = [member for member in (OURS, DENSE, PEER) if member in available(case, CHECKED)]
        oracle = Oracle(case, CHECKED, D)
        errors = {member: oracle.check(loss_of(case, member))._asdict() for member in fitting}
        for n in args.sizes:
            row: dict[str, Any] = {"case": name, "n": n, "d": D, "classes": min(case.classes, n // 4)}
            found = {member: timed(name, member, n) for member in fitting}
            fitting = [member for member in fitting if found[member]]
            results["beside_dense"].append(row | {"errors": errors} | {member: found[member] for member in fitting})
            print(*cells(results["beside_dense"][-1]), sep=" | ", flush=True)
            if args.out:
                files.save(args.out, results)
    title = f"forward + backward, D={D}, float32; {results['meta']['device']}, torch {results['meta']['torch']}"
    show(title, COLUMNS, [cells(row) for row in results["beside_dense"]])


if __name__ == "__main__":
    main()
