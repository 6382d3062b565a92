"""The committed compile report, with which tests compare kernels: `python -m bench.compile_report [--loss LOSS ...]`.

There is one file per loss, so that a new loss adds its own and rewrites none, and one row per kernel launch.
`python -m fusedloss report` makes such rows for any losses and sizes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from fusedloss.checks import METRICS
from fusedloss.losses.catalog import SAMPLE
from fusedloss.tools.compiling import triton_version
from fusedloss.tools.report import TENSOR, report
from fusedloss.tools.workloads import LOSSES, workloads

from . import files

FOLDER = files.ROOT / "bench" / "results" / "compiled"
COMMAND = "python -m bench.compile_report --loss"
COMMON: dict[str, Any] = {"n": [65536], "d": [128], "dtype": ["bf16"], "metric": None, "classes": 8192}
SAMPLED = [loss.function.__name__ for loss in SAMPLE]
# What is compiled of every loss, and of a sample: architectures, and what is not COMMON. Few rows are not sorted and
# share their columns among programs.
EVERY: list[tuple[list[str], dict[str, Any]]] = [(["sm_90"], {"d": [128, 256, 512]})]
OF_SAMPLE: list[tuple[list[str], dict[str, Any]]] = [
    (["sm_90"], {"n": [1024]}),
    (["sm_90"], {"d": [64]}),
    (["sm_90"], {"d": [128, 256, 512], "dtype": ["fp16"]}),
    (["sm_90"], {"metric": METRICS}),
    (["sm_90"], {"dtype": ["fp32"]}),
    (["sm_80", "sm_100", "gfx942"], {}),
]
IDENTITY = ("loss", "metric", "kernel", "arch", "dtype", "D", "N")
NUMBERS = ("registers", "spills", "shared_bytes", "tensor", "programs")
# About the loop with most of the pairs, if it can be read: instructions per pair, spills, groups of products, waits.
LOOP = ("issued", "loop_spills", "loop_groups", "loop_waits")
COLUMNS = (*IDENTITY, "tile", *NUMBERS, *LOOP, "occupancy", "bound", "roofline_us", "floor_us", "triton")


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is about, except for the order of the launches in a step."""
    return tuple(row[name] for name in IDENTITY)


def recorded(row: dict[str, Any]) -> dict[str, Any]:
    """The recorded part of a row of `fusedloss report`; `tensor` counts the architecture's tensor-core instructions."""
    tile = " ".join(f"{name}={size}" for name, size in row["config"].items())
    kept = row | {"tile": tile, "tensor": row.get(TENSOR[row["arch"]], 0)}
    return {name: kept[name] for name in COLUMNS}


def load(folder: Path = FOLDER) -> dict[str, list[dict[str, Any]]]:
    """The rows of every recorded loss, by its name."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            found[path.stem] = [typed(row) for row in csv.DictReader(file)]
    return found


def typed(row: dict[str, str]) -> dict[str, Any]:
    whole = {name: int(row[name]) for name in ("D", "N", *NUMBERS)}
    of_loop = {name: float(row[name]) if row[name] else None for name in LOOP}
    return row | whole | of_loop | {name: float(row[name]) for name in ("occupancy", "roofline_us", "floor_us")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", nargs="+", choices=list(LOSSES), default=list(LOSSES), metavar="LOSS", help="losses")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[tuple[Any, ...], list[dict[str, Any]]]] = {loss: {} for loss in args.loss}
    sampled = [loss for loss in args.loss if loss in SAMPLED]
    sets = [(args.loss, *of) for of in EVERY] + [(sampled, *of) for of in OF_SAMPLE]
    for losses, archs, which in sets:  # all losses at once: many have the same kernels
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in report(list(workloads(loss=losses, **COMMON | which)), archs):
            if "error" in row:
                raise RuntimeError(f"{identity(row)} does not compile: {row['error']}")
            groups.setdefault(identity(row), []).append(recorded(row))
        for key, group in groups.items():
            found[key[0].split(",")[0]][key] = group  # rows that an earlier set has too are the same
    for loss, rows_of in found.items():
        rows = [row for group in rows_of.values() for row in group]
        with (args.folder / f"{loss}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{loss}: {len(rows)} kernels, Triton {triton_version()}", flush=True)


if __name__ == "__main__":
    main()
