"""The committed compile report, which tests hold the kernels to: `python -m bench.compile_report [FILE]`.

`python -m fusedloss report` makes such rows for any losses and sizes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fusedloss.checks import METRICS
from fusedloss.tools.report import report
from fusedloss.tools.workloads import LOSSES, Workload, workloads

from . import files

FILE = files.ROOT / "bench" / "results" / "compile-report.json"
SIZES = [1024, 65536]  # few rows share their columns among programs, many take theirs alone
COMMON: dict[str, Any] = {"loss": list(LOSSES), "n": SIZES, "metric": None, "classes": 8192}
# Architectures, and what is compiled for them: all that 16 bits have on sm_90, the rest as a sample.
SETS: list[tuple[list[str], dict[str, Any]]] = [
    (["sm_90"], COMMON | {"d": [64, 128, 256, 512], "dtype": ["bf16", "fp16"]}),
    (["sm_90"], COMMON | {"d": [128], "dtype": ["bf16"], "n": [65536], "metric": METRICS}),
    (["sm_90"], COMMON | {"d": [256, 512], "dtype": ["bf16"], "n": [65536], "metric": ["cosine"]}),
    (["sm_90"], COMMON | {"d": [128], "dtype": ["fp32"]}),
    (["sm_80", "sm_100", "gfx942"], COMMON | {"d": [128], "dtype": ["bf16", "fp32"], "n": [65536]}),
]


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of, but for the order of the launches of a step."""
    return tuple(row[name] for name in ("loss", "metric", "kernel", "arch", "dtype", "D", "N"))


def rows(archs: list[str], **which: Any) -> list[dict[str, Any]]:
    works: list[Workload] = list(workloads(**which))
    return report(works, archs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    found = {}
    file = parser.parse_args().file
    for archs, which in SETS:
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in rows(archs, **which):
            groups.setdefault(identity(row), []).append(row)
        found.update(groups)
    file.write_text("[\n" + ",\n".join(json.dumps(row) for group in found.values() for row in group) + "\n]\n")


if __name__ == "__main__":
    main()
