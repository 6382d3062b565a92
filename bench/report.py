"""The README's tables and plots, from result files: `python -m bench.report bench/results/FILE.json ...`.

Give it files of `bench.cpu_table` and `bench.gpu`, in the order in which the README shows them. With --readme it writes
the tables of other pages: docs/accuracy.md from files of `bench.accuracy`, docs/distributed.md from files of
`bench.group_memory`, and docs/drop_ins.md from files of `bench.drop_ins`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import accuracy, cpu_table, drop_ins, files, gpu_table, group_memory, tables
from .plots import draw, plots_of

README = files.ROOT / "README.md"
PLOTS = files.ROOT / "bench" / "results" / "plots"
MARKERS = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- /results -->)", re.DOTALL)
NOTE = (
    "A ratio is fusedloss's to the other's; 'reached 2x' is twice as good as the target. N counts the rows of both "
    "towers\n(info-nce, clip, siglip, n-pair: N / 2 a side) and of both views (nt-xent); 32 classes unless named (all "
    "triplets: 256).\n"
)


def section(paths: Sequence[Path], plots: Path = PLOTS, readme: Path = README) -> str:
    """The Markdown between the README's markers."""
    notes = [NOTE] if any({"rows", "timings"} & files.load(path).keys() for path in paths) else []
    return "\n".join([*notes, *(part for path in paths for part in of_file(path, plots, readme))])


def of_file(path: Path, plots: Path, readme: Path) -> Iterator[str]:
    results = files.load(path)
    try:
        (kind,) = SECTIONS.keys() & results.keys()
        yield from SECTIONS[kind](link(path, readme), results)
        for plot in plots_of(path.stem, results):
            yield f"![{plot.title}]({link(plots / plot.name, readme)})\n"
    except KeyError as error:
        raise ValueError(f"{path}: missing or unknown: {error}") from error


def link(path: Path, readme: Path) -> str:
    return Path(os.path.relpath(path, readme.parent)).as_posix()


def cpu_section(name: str, results: dict[str, Any]) -> Iterator[str]:
    meta = results["meta"]
    yield (
        f"**{meta['device']}, {meta['cores']} cores**: forward + backward, D = {cpu_table.D}, float32, against "
        f"pytorch-metric-learning {meta['pytorch-metric-learning']}\nor torch {meta['torch']} in fresh processes of "
        f"one run ({meta['date'][:10]}; `{name}`):\n"
    )
    # against the peer if it can run, else alone, and at the largest size; the file also has the sizes in between
    sizes = min(cpu_table.LIMITS), max(cpu_table.LIMITS)
    rows = [
        row
        for row in results["rows"]
        if cpu_table.peer_of(row) or row["n"] in sizes or (row["case"], row["n"]) == cpu_table.ALONE
    ]
    yield tables.markdown(cpu_table.COLUMNS, [cpu_table.cells(row) for row in rows]) + "\n"


def gpu_section(name: str, results: dict[str, Any]) -> Iterator[str]:
    """The targets and, in a folded block, the timings at the smallest and the largest N of each case."""
    meta, rows = results["meta"], results["timings"]
    flops = results["ceilings"]["bfloat16_gemm_flops"]
    yield (
        f"**{meta['device']}**: forward + backward, torch {meta['torch']}, triton {meta['triton']} "
        f"({meta['date'][:10]}; `{name}`).\nThe floor is one matrix product of all pairs, 2·N·M·D FLOP, "
        f"at the {flops / 1e12:.0f} TFLOP/s that it reached in bfloat16:\n"
    )
    targets = [*(gpu_table.target_cells(target, rows) for target in gpu_table.TARGETS), gpu_table.memory_cells(rows)]
    yield tables.markdown(gpu_table.TARGET_COLUMNS, targets) + "\n"
    others = gpu_table.others_of(rows)
    shown = [gpu_table.cells(row, others) for row in ends(rows)]
    yield f"<details><summary>{len(shown)} of {len(rows)} timings</summary>\n"
    yield tables.markdown(gpu_table.columns(others), shown) + "\n"
    yield "</details>\n"


SECTIONS = {"rows": cpu_section, "timings": gpu_section, "accuracy": accuracy.section,
            "group_memory": group_memory.section, "drop_ins": drop_ins.section}  # fmt: skip


def ends(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the smallest and the largest N of each case, D and dtype, and those with a target."""
    sizes: dict[tuple[str, int, str], list[int]] = {}
    for row in rows:
        sizes.setdefault((row["case"], row["d"], row["dtype"]), []).append(row["n"])
    of = {key: {min(found), max(found)} for key, found in sizes.items()}
    return [r for r in rows if r["n"] in of[r["case"], r["d"], r["dtype"]] or gpu_table.is_target(r)]


def caption(name: str, results: dict[str, Any]) -> str:
    """The line below a plot."""
    meta = results["meta"]
    packages = [package for package in ("torch", "triton", "pytorch-metric-learning") if meta.get(package)]
    threads = max((row["threads"] for row in results.get("rows", ())), default=0)
    cores = [f"{meta['cores']} cores, {threads} threads"] if threads else []
    return "  ·  ".join(
        [meta["device"], *cores, *(f"{package} {meta[package]}" for package in packages), meta["date"][:10], name]
    )


def write_plots(paths: Sequence[Path], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in paths:
        results = files.load(path)
        for plot in plots_of(path.stem, results):
            written.append(folder / plot.name)
            draw(plot, caption(path.name, results), f"{path.name} {files.digest(results)}", written[-1])
    return written


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="result files (JSON)")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder for the plots (bench/results/plots)")
    parser.add_argument("--readme", type=Path, default=README, help="the file that has the markers (README.md)")
    args = parser.parse_args(arguments)
    try:
        text = section(args.files, args.plots.resolve(), args.readme.resolve())
    except ValueError as error:
        sys.exit(str(error))
    readme, count = MARKERS.subn(lambda _: text, args.readme.read_text())
    if not count:
        sys.exit(f"{args.readme}: no markers <!-- results --> and <!-- /results -->")
    written = write_plots(args.files, args.plots)
    args.readme.write_text(readme)
    print(args.readme, *written, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
