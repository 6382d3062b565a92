"""The README's figure and its small table, from result files: `python -m bench.front bench/results/FILE.json ...`.

The first file, of `bench.dense`, makes the figure: the time and the memory of a step against N, wide lines and large
letters, for a phone. The table takes its rows from all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import files, tables
from .cpu_table import OURS
from .dense import DENSE, PEER, D
from .plots import GREY, INK, LABELS, LOOKS, tick_label, ticks
from .report import PLOTS, link, replaced
from .workloads import CASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

README = files.ROOT / "README.md"
# The README's links are whole, as PyPI resolves no others.
BLOB, RAW = (
    "https://github.com/fusedloss/fusedloss/blob/main/", "https://raw.githubusercontent.com/fusedloss/fusedloss/main/"
)  # fmt: skip
ROWS = (
    ("supcon", 4096), ("contrastive", 4096), ("batch-hard", 4096), ("all triplets", 4096), ("nt-xent", 512),
    ("proxy anchor, 10,000 classes", 4096), ("linear cross entropy, 100,000 classes", 4096), ("smooth-ap", 1024),
)  # fmt: skip
COLUMNS = ["a step of", "fusedloss is", "beside"]
OTHERS = (PEER, "torch", DENSE)


class Step(NamedTuple):
    """Forward + backward of a case by fusedloss and by another, and the fractions ours / theirs."""

    case: str
    n: int
    other: str
    time: float
    memory: float


def steps(results: Sequence[dict[str, Any]]) -> Iterator[Step]:
    """What the files have of ROWS, with as many threads as there were; of several files the first that has it."""
    for case, n in ROWS:
        rows = [
            row for found in results for row in found.get("rows", found.get("beside_dense", ()))
            if (row["case"], row["n"]) == (case, n) and row.get("threads") in (None, found["meta"]["cores"])
        ]  # fmt: skip
        for row in rows[:1]:
            other = next(name for name in OTHERS if name in row)
            time, memory = (row[OURS][key] / row[other][key] for key in ("seconds", "peak_bytes"))
            yield Step(case, n, other, row.get("time_ratio", time), row.get("peak_ratio", memory))


def cells(step: Step) -> list[str]:
    """In plain words."""
    loss = ", ".join([f"`{CASES[step.case].loss}`", *step.case.split(", ")[1:]])  # with a note on its classes
    gains = f"**{tables.gain(step.time)} faster, {tables.gain(step.memory)} less memory**"
    return [f"{loss}, {step.n:,} rows", gains, LABELS.get(step.other, step.other)]


def section(paths: Sequence[Path]) -> str:
    """The Markdown between the README's markers."""
    results = [files.load(path) for path in paths]
    meta = results[0]["meta"]
    names = ", ".join(f"[{path.stem}]({BLOB}{link(path, README)})" for path in paths)
    return "\n".join(
        [
            f'<img src="{RAW}{link(figure_of(paths[0]), README)}" alt="{title(results[0])}" width="560">\n',
            tables.markdown(COLUMNS, [cells(step) for step in steps(results)]) + "\n",
            f"Forward and backward on {meta['cores']} cores of an {meta['device']}, D = {D}, float32, beside "
            f"pytorch-metric-learning {meta['pytorch-metric-learning']} and torch {meta['torch']} ({names}).\n",
        ]
    )


def figure_of(path: Path) -> Path:
    return PLOTS / f"{path.stem}.png"


def title(results: dict[str, Any]) -> str:
    row = results["beside_dense"][0]
    return f"Time and memory of {CASES[row['case']].loss} against the batch size, beside dense forms"


# --------------------------------------------------------------------------------------------------------- drawing


def draw(results: dict[str, Any], source: str, path: Path) -> None:
    """source: what the file keeps of where its numbers are from."""
    from matplotlib.figure import Figure

    rows, meta = results["beside_dense"], results["meta"]
    figure = Figure(figsize=(7, 8.6), dpi=130, layout="constrained")
    figure.suptitle(f"One step of {CASES[rows[0]['case']].loss}", fontsize=21, fontweight="bold", color=INK)
    time, memory = figure.subplots(2, 1, sharex=True)
    panel(time, rows, "seconds", "time")
    panel(memory, rows, "peak_bytes", "memory")
    time.set_title("time of forward + backward", fontsize=16, loc="left", color=INK)
    memory.set_title("memory beside the inputs, at the peak", fontsize=16, loc="left", color=INK)
    time.legend(fontsize=15, frameon=False, loc="upper left")
    memory.set_xlabel(f"batch size N, on {meta['cores']} CPU cores (D = {D}, float32)", fontsize=15, color=GREY)
    figure.savefig(path, metadata={"Software": None, "Source": source}, pil_kwargs={"optimize": True})


def panel(axes: Axes, rows: Sequence[dict[str, Any]], key: str, view: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = []
    for member in (OURS, PEER, DENSE):
        points = [(row["n"], row[member][key]) for row in rows if member in row]
        values += [value for _, value in points]
        colour, marker = LOOKS[member]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=8, linewidth=3,
                  label=LABELS.get(member, member))  # fmt: skip
        if points[-1][0] < rows[-1]["n"]:
            axes.annotate("out of memory", points[-1], xytext=(0, 12), textcoords="offset points", color=colour,
                          fontsize=13, ha="center")  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(min(values) / 1.6, max(values) * 2.5))
    sizes = [row["n"] for row in rows]
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator(ticks(view, min(values) / 1.6, max(values) * 2.5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(view, value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=13, labelcolor=INK, color="#b0b0b0")
    axes.grid(color="#e3e3e3")
    axes.spines[["top", "right"]].set_visible(False)


def main(*arguments: str) -> None:
    paths = [Path(name).resolve() for name in arguments]
    if not paths:
        sys.exit(__doc__)
    first = files.load(paths[0])
    content = replaced(README, section(paths))
    draw(first, f"{paths[0].name} {files.digest(first)}", figure_of(paths[0]))
    README.write_text(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
