"""The tables and plots of a page, from result files: `python -m bench.report bench/results/FILE.json ... --page PAGE`.

docs/measured.md has those of `bench.cpu_table` and `bench.dense`, docs/gpu.md those of `bench.gpu`, docs/accuracy.md
those of `bench.accuracy`, docs/distributed.md those of `bench.group_memory` and docs/drop_ins.md those of
`bench.drop_ins`. The README's few are made by `bench.front`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import accuracy, cpu_table, dense, drop_ins, files, gpu_table, group_memory, tables
from .plots import draw, plots_of

PAGE = files.ROOT / "docs" / "measured.md"
PLOTS = files.ROOT / "bench" / "results" / "plots"
MARKERS = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- /results -->)", re.DOTALL)
NOTE = (
    "N counts the rows of both towers (info-nce, clip, siglip, n-pair: N / 2 a side) and of both views (nt-xent); "
    "there are\n32 classes unless others are named (all triplets: 256).\n"
)


def section(paths: Sequence[Path], plots: Path = PLOTS, page: Path = PAGE) -> str:
    """The Markdown between a page's markers."""
    notes = [NOTE] if any({"rows", "timings"} & files.load(path).keys() for path in paths) else []
    return "\n".join([*notes, *(part for path in paths for part in of_file(path, plots, page))])


def of_file(path: Path, plots: Path, page: Path) -> Iterator[str]:
    results = files.load(path)
    try:
        (kind,) = SECTIONS.keys() & results.keys()
        yield from SECTIONS[kind](link(path, page), results)
        for plot in plots_of(path.stem, results):
            yield f"![{plot.title}]({link(plots / plot.name, page)})\n"
    except KeyError as error:
        raise ValueError(f"{path}: missing or unknown: {error}") from error


def link(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()


def cpu_section(name: str, results: dict[str, Any]) -> Iterator[str]:
    meta = results["meta"]
    yield (
        f"**{meta['device']}, {meta['cores']} cores**: forward + backward, D = {cpu_table.D}, float32. The other is "
        f"pytorch-metric-learning {meta['pytorch-metric-learning']},\nor torch {meta['torch']} where it has the loss; "
        f"each in fresh processes of one run ({meta['date'][:10]}; `{name}`):\n"
    )
    # beside the other where it can, else alone, and at the largest size; the file has the sizes between too
    sizes = min(cpu_table.LIMITS), max(cpu_table.LIMITS)
    rows = [
        row
        for row in results["rows"]
        if cpu_table.peer_of(row) or row["n"] in sizes or (row["case"], row["n"]) == cpu_table.ALONE
    ]
    yield tables.markdown(cpu_table.COLUMNS, [cpu_table.cells(row) for row in rows]) + "\n"


def dense_section(name: str, results: dict[str, Any]) -> Iterator[str]:
    meta = results["meta"]
    yield (
        f"**{meta['device']}, {meta['cores']} cores**: forward + backward, D = {dense.D}, float32, torch "
        f"{meta['torch']}, each in a fresh process\n({meta['date'][:10]}; `{name}`). A dash: the machine's "
        f"memory does not suffice, or the library lacks the loss.\n"
    )
    yield tables.markdown(dense.COLUMNS, [dense.cells(row) for row in results["beside_dense"]]) + "\n"


def gpu_section(name: str, results: dict[str, Any]) -> Iterator[str]:
    """The targets and, in a folded block, the timings at the smallest and the largest N of each case."""
    meta, rows = results["meta"], results["timings"]
    flops = results["ceilings"]["bfloat16_gemm_flops"]
    yield (
        f"**{meta['device']}**: forward + backward, torch {meta['torch']}, triton {meta['triton']} "
        f"({meta['date'][:10]}; `{name}`).\nA ratio is fusedloss's to the other's; 'reached 2x' is twice as good as "
        f"the target. The floor is one matrix product of\nall pairs, 2·N·M·D FLOP, at the {flops / 1e12:.0f} TFLOP/s "
        f"that it reached in bfloat16:\n"
    )
    targets = [*(gpu_table.target_cells(target, rows) for target in gpu_table.TARGETS), gpu_table.memory_cells(rows)]
    yield tables.markdown(gpu_table.TARGET_COLUMNS, targets) + "\n"
    others = gpu_table.others_of(rows)
    shown = [gpu_table.cells(row, others) for row in ends(rows)]
    yield f"<details><summary>{len(shown)} of {len(rows)} timings</summary>\n"
    yield tables.markdown(gpu_table.columns(others), shown) + "\n"
    yield "</details>\n"


SECTIONS = {"rows": cpu_section, "beside_dense": dense_section, "timings": gpu_section, "accuracy": accuracy.section,
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
    parser.add_argument("--page", type=Path, default=PAGE, help="the file that has the markers (docs/measured.md)")
    args = parser.parse_args(arguments)
    try:
        text = section(args.files, args.plots.resolve(), args.page.resolve())
    except ValueError as error:
        sys.exit(str(error))
    content = replaced(args.page, text)
    written = write_plots(args.files, args.plots)
    args.page.write_text(content)
    print(args.page, *written, sep="\n")


def replaced(page: Path, text: str) -> str:
    """The page with this between its markers."""
    content, count = MARKERS.subn(lambda _: text, page.read_text())
    if not count:
        sys.exit(f"{page}: no markers <!-- results --> and <!-- /results -->")
    return content


if __name__ == "__main__":
    main(*sys.argv[1:])
