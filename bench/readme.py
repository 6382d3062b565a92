"""Write the README's tables from results of `bench.cpu_table`: `python -m bench.readme bench/results/FILE.json ...`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from . import cpu_table, report, workloads

README = report.ROOT / "README.md"
MARKERS = re.compile(r"(<!-- results -->\n).*(<!-- /results -->)", re.DOTALL)


def section(path: Path) -> str:
    """The Markdown between the README's markers."""
    results = json.loads(path.read_text())
    meta = results["meta"]
    # against the peer where it can, else alone, and at the largest size; the file has the sizes between too
    sizes = min(cpu_table.LIMITS), max(cpu_table.LIMITS)
    rows = [row for row in results["rows"] if cpu_table.peer_of(row) or row["n"] in sizes]
    table = [cpu_table.COLUMNS, ["---"] * len(cpu_table.COLUMNS), *map(cpu_table.cells, rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join(
        [
            f"Forward + backward without a GPU, D = {cpu_table.D}, {workloads.CLASSES} classes unless named (all "
            "triplets: 256; nt-xent: two views a class; info-nce, clip, siglip, n-pair: N / 2 rows a side), float32,\n"
            f"against pytorch-metric-learning {meta['pytorch-metric-learning']} (given logits, linear cross entropy: "
            "torch) in fresh processes of one run",
            f"({meta['device']}, {meta['cores']} cores, torch {meta['torch']}, {meta['date'][:10]}; "
            f"`bench/results/{path.name}`; 'reached 2x' is twice as good as our target):\n",
            *lines,
            "",
        ]
    )


def main(*paths: Path) -> None:
    tables = "\n".join(map(section, paths))
    README.write_text(MARKERS.sub(lambda found: f"{found[1]}{tables}{found[2]}", README.read_text()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
