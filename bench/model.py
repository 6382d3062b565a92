"""What a model says of losses on a GPU that is not there: `python -m bench.model FILE [--loss LOSS ...]`.

It records the launches of a step of every loss. Those of the given losses it has compiled, and adds what the model of
`python -m fusedloss report` makes of them to the file; without --loss nothing is recorded. It writes the tables of
docs/model.md, which a test compares with the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.compiling import triton_version
from fusedloss.tools.footprint import footprint
from fusedloss.tools.gpus import GPUS
from fusedloss.tools.report import report
from fusedloss.tools.workloads import Workload, workloads

from . import files, tables

PAGE = files.ROOT / "docs" / "model.md"
MARKERS = re.compile(r"(?<=<!-- model -->\n).*?(?=<!-- /model -->)", re.DOTALL)
ARCH, DTYPE, CLASSES = "sm_90", "bf16", 8192
SMALL, LARGE = 4096, 65_536
DIMENSIONS = (128, 256, 512, 768, 1024)
LOSSES = [name for name, loss in CATALOG.items() if loss.products is not None]


def works(N: int, dimensions: tuple[int, ...], losses: list[str] = LOSSES) -> list[Workload]:
    return list(workloads(losses, [N], dimensions, [DTYPE], None, CLASSES))


def shares(losses: list[str]) -> list[dict[str, Any]]:
    """For every one of these losses and every D, the floor and the model's time of a step of 65,536 rows."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in report(works(LARGE, DIMENSIONS, losses), [ARCH]):
        if "error" in row:
            raise RuntimeError(f"{row['kernel']} of {row['loss']} does not compile: {row['error']}")
        found[row["loss"], row["D"]].append(row)
    return [
        {
            "loss": loss,
            "D": D,
            "floor_us": rows[0]["floor_us"],
            "model_us": round(sum(r["roofline_us"] for r in rows), 1),
        }
        for (loss, D), rows in found.items()
    ]


def launches() -> list[dict[str, Any]]:
    """For every loss at D = 128, the launches of a step of few and of many rows."""
    return [
        {"loss": work.name, "N": N, **footprint(work, ARCH)._asdict()}
        for N in (SMALL, LARGE)
        for work in works(N, (128,))
    ]


def recorded(path: Path, losses: list[str]) -> dict[str, Any]:
    """The content of the file after the losses are recorded; those of others stay."""
    meta = {"date": str(datetime.datetime.now(datetime.timezone.utc).date()), "triton": triton_version()}
    before = json.loads(path.read_text())["shares"] if path.exists() else []
    kept = [row for row in before if row["loss"].partition(",")[0] not in losses]
    return {"meta": meta | {"arch": ARCH, "dtype": DTYPE, "classes": CLASSES, "N": LARGE},
            "shares": kept + shares(losses), "launches": launches()}  # fmt: skip


def text(results: dict[str, Any]) -> str:
    """The tables between the markers."""
    share: dict[str, dict[int, str]] = defaultdict(dict)
    for row in results["shares"]:
        part = f" ({row['floor_us'] / row['model_us']:.0%})" if row["floor_us"] else ""
        share[row["loss"]][row["D"]] = f"{row['model_us'] / 1e3:.3g} ms{part}"
    steps: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in results["launches"]:
        steps[row["loss"]][row["N"]] = row
    of_time = [[loss, *(by_D.get(D, "-") for D in DIMENSIONS)] for loss, by_D in share.items()]
    of_steps = [
        [loss, *(cell for N in (SMALL, LARGE) for cell in (f"{by_N[N]['kernels']} + {by_N[N]['operators']}",
                                                           tables.size(by_N[N]["peak_bytes"])))]
        for loss, by_N in steps.items()
    ]  # fmt: skip
    name = f"{GPUS[ARCH].name}, {DTYPE}, Triton {results['meta']['triton']}, {results['meta']['date']}"
    return "\n".join([
        f"Model, not measured: time of a step of {LARGE:,} rows, and in brackets the share of the floor ({name}).", "",
        tables.markdown(["loss", *(f"D = {D}" for D in DIMENSIONS)], of_time), "",
        "Launches of a step at D = 128: our kernels + operators of PyTorch; and the most memory beside the inputs.", "",
        tables.markdown(["loss", *(head for N in (SMALL, LARGE) for head in (f"N = {N:,}", "memory"))], of_steps), "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="bench/results/model-DATE.json")
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=[], metavar="LOSS", help="losses to record")
    args = parser.parse_args()
    if args.loss:
        files.save(args.file, recorded(args.file, args.loss))
    results = json.loads(args.file.read_text())
    PAGE.write_text(MARKERS.sub(lambda _: text(results), PAGE.read_text()))
    print(args.file, PAGE, sep="\n")


if __name__ == "__main__":
    main()
