"""Plots of result files: time, peak memory and the fraction of the floor against N, a panel for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .cpu_table import OURS
from .floor import product_flop
from .gpu_table import members_of
from .tables import ratio, seconds, size
from .workloads import CASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which colour-blind readers tell apart, and a marker of its own for every member.
LOOKS = {
    OURS: ("#0072B2", "o"),
    "reference": ("#000000", "s"),
    "torch.compile": ("#009E73", "^"),
    "pytorch-metric-learning": ("#D55E00", "D"),
    "torch": ("#CC79A7", "v"),
    "sorted": ("#56B4E9", "X"),
    "sentence-transformers": ("#E69F00", "P"),
    "liger-kernel": ("#E69F00", "<"),
    "cut-cross-entropy": ("#56B4E9", ">"),
    "inf-cl": ("#D55E00", "h"),
    "memeff": ("#CC79A7", "p"),
    "siglip-kernel": ("#56B4E9", "*"),
}
OTHER_LOOK = ("#999999", "d")
LABELS = {"reference": "dense PyTorch", "torch.compile": "dense PyTorch, compiled", "sorted": "exact by sorting"}
STYLES = ("-", "--", ":", "-.")  # of the dimensions, in ascending order
INK, GREY = "#1a1a1a", "#595959"
WIDTH, PANEL, HEAD, FOOT = 10.5, 1.95, 1.25, 0.8  # inches: figure; a row of panels; what is above and below them


class Point(NamedTuple):
    case: str
    member: str
    n: int
    d: int
    dtype: str
    values: dict[str, float]  # by view
    ratios: dict[str, float]  # to the peer's, where its rounds were compared with ours one by one


class View(NamedTuple):
    """What is plotted against N."""

    title: str
    label: str
    write: Callable[[float], str]
    ratio: str = ""  # the key of such a ratio in a row of results


class Plot(NamedTuple):
    name: str
    view: str
    points: list[Point]
    rate: str  # the dtype of the matrix product whose rate makes the floor

    @property
    def title(self) -> str:
        dtypes, sizes = ({getattr(point, field) for point in self.points} for field in ("dtype", "d"))
        dimension = f", D = {min(sizes)}" if len(sizes) == 1 else ""
        return f"{VIEWS[self.view].title} against N, {min(dtypes)}{dimension}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else f"{100 * fraction:.0f} %"


VIEWS = {
    "time": View("Time of forward + backward", "time", seconds, "time_ratio"),
    "memory": View("Peak extra memory of forward + backward", "extra memory", size, "peak_ratio"),
    "floor": View("Fraction of the floor", "of the floor", percent),
}


def points_of(results: dict[str, Any]) -> list[Point]:
    """The points of a result file; for a CPU, those with the most threads."""
    rows = results.get("timings", results.get("rows", []))
    most = max((row.get("threads", 0) for row in rows), default=0)
    return [
        Point(row["case"], member, row["n"], row["d"], row.get("dtype", "float32"), values(row, member, results),
              {key: row[key] for key in ("time_ratio", "peak_ratio") if key in row})
        for row in rows if row.get("threads", 0) == most
        for member in members_of(row) if "seconds" in row[member]
    ]  # fmt: skip


def values(row: dict[str, Any], member: str, results: dict[str, Any]) -> dict[str, float]:
    found = row[member]
    shown = {"time": found["seconds"], "memory": found["peak_bytes"], "floor": found.get("of_gemm_floor")}
    rate = results.get("gemm_flops", {}).get(str(row.get("threads")))
    flop = product_flop(CASES[row["case"]].loss, row["n"], row["d"], row["classes"])
    if rate and flop:
        shown["floor"] = flop / rate / found["seconds"]
    return {view: value for view, value in shown.items() if value and value > 0}


def plots_of(stem: str, results: dict[str, Any]) -> list[Plot]:
    """The plots of a file, one dtype in each."""
    points = points_of(results)
    rate = "bfloat16" if "timings" in results else "float32"
    dtypes = sorted({point.dtype for point in points})
    plots = []
    for dtype in dtypes:
        prefix = f"{stem}-{dtype}" if len(dtypes) > 1 else stem
        for view in VIEWS:
            of_view = [point for point in points if point.dtype == dtype and view in point.values]
            if of_view:
                plots.append(Plot(f"{prefix}-{view}.png", view, of_view, rate))
    return plots


# --------------------------------------------------------------------------------------------------------- drawing


def draw(plot: Plot, caption: str, source: str, path: Path) -> None:
    """Draw a plot into a file; `source`, which says where the numbers are from, is kept in the file."""
    from matplotlib.figure import Figure

    known = list(CASES)
    cases = sorted({point.case for point in plot.points}, key=known.index)
    columns = 4 if len(cases) > 9 else min(3, len(cases))
    rows = math.ceil(len(cases) / columns)
    handles = legend(plot)
    long = sum(len(str(handle.get_label())) + 8 for handle in handles) > 132
    lines = math.ceil(len(handles) / 4) if long else 1
    head = HEAD + 0.22 * (lines - 1)
    height = head + rows * PANEL + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=120)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.085, right=0.985, top=1 - (head + 0.2) / height, bottom=(FOOT + 0.1) / height, hspace=0.5, wspace=0.09
    )
    for axes, case in zip(grid, cases, strict=False):
        panel(axes, plot.view, [point for point in plot.points if point.case == case])
    for axes in grid[len(cases) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(cases) - columns) : len(cases)]:
        axes.tick_params(labelbottom=True)  # also above an empty place of the last row
        axes.set_xlabel("batch size N (rows)", fontsize=9, color=GREY)
    scales(grid[0], plot)
    write_around(figure, plot, caption)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.004, 1 - 0.64 / height), frameon=False,
        ncols=4 if long else len(handles), fontsize=10, handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip
    figure.savefig(path, metadata={"Software": None, "Source": source}, pil_kwargs={"optimize": True})


def panel(axes: Axes, view: str, points: Sequence[Point]) -> None:
    dimensions = sorted({point.d for point in points})
    small = 1 if len(dimensions) == 1 else 0.75  # where lines are many
    for member in ordered(points):
        colour, marker = LOOKS.get(member, OTHER_LOOK)
        for d in dimensions:
            line = sorted((p.n, p.values[view]) for p in points if (p.member, p.d) == (member, d))
            axes.plot(
                [n for n, _ in line], [value for _, value in line], style(d, dimensions), color=colour, marker=marker,
                markersize=small * (5 if member == OURS else 7), markeredgecolor="white", markeredgewidth=0.6,
                linewidth=1.8 * small, zorder=3 if member == OURS else 2, clip_on=False,
            )  # fmt: skip
    name, _, options = points[0].case.partition(", ")
    note = "; ".join(filter(None, (options, summary(view, points))))
    above = dict(xy=(0, 1), xycoords="axes fraction", textcoords="offset points")
    axes.annotate(name, xytext=(0, 19), fontsize=10.5, fontweight="bold", color=INK, **above)
    axes.annotate(note, xytext=(0, 6), fontsize=8.5, color=GREY, **above)
    if view == "floor":
        axes.axhline(1, color=GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.grid(color="#e3e3e3", linewidth=0.7)
    axes.tick_params(labelsize=8.5, labelcolor=GREY, color="#b0b0b0", which="both", length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")


def ordered(points: Sequence[Point]) -> list[str]:
    """The members, in the order of the palette, so ours is first."""
    known = list(LOOKS)
    return sorted({point.member for point in points}, key=lambda m: (known.index(m) if m in known else len(known), m))


def summary(view: str, points: Sequence[Point]) -> str:
    """At the largest N that another member reaches, our fraction of the best of them; without one, our value."""
    ours = [point for point in points if point.member == OURS]
    if not ours:
        return ""
    key = VIEWS[view].ratio
    shared = {(p.n, p.d) for p in points if p.member != OURS} & {(p.n, p.d) for p in ours} if key else set()
    n, d = max(shared) if shared else max((point.n, point.d) for point in ours)
    own = next(point for point in ours if (point.n, point.d) == (n, d))
    if not shared:
        return f"{VIEWS[view].write(own.values[view])} at N={n:,}"
    best = min(p.values[view] for p in points if p.member != OURS and (p.n, p.d) == (n, d))
    return f"{ratio(own.ratios.get(key, own.values[view] / best))} at N={n:,}"


def scales(axes: Axes, plot: Plot) -> None:
    """The axes that all panels share."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = sorted({point.n for point in plot.points})
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    axes.xaxis.set_major_locator(FixedLocator(spread(sizes)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())

    values = [point.values[plot.view] for point in plot.points]
    low, high = min(values) / 1.6, max(values) * 1.6
    if plot.view == "floor":
        high = max(high, 1.6)
    axes.set_yscale("log", base=2)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks(plot.view, low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(plot.view, value)))
    axes.yaxis.set_minor_locator(NullLocator())


def spread(sizes: Sequence[int]) -> list[int]:
    """The sizes, from the largest down, that are far enough apart (a factor of 4) for their labels."""
    kept: list[int] = []
    for n in reversed(sizes):
        if not kept or kept[-1] >= 4 * n:
            kept.append(n)
    return kept


def ticks(view: str, low: float, high: float) -> list[float]:
    """Powers of 10, or of 16 for bytes; closer ticks if there would be fewer than three."""
    for base, steps in [(16, (1,)), (4, (1,)), (2, (1,))] if view == "memory" else [(10, (1,)), (10, (1, 3))]:
        powers = [float(base) ** k for k in range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)))]
        found = [step * power for power in powers for step in steps if low <= step * power <= high]
        if len(found) >= 3:
            break
    return found


def tick_label(view: str, value: float) -> str:
    if view == "floor":
        return f"{100 * value:.3g} %"
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10} if view == "memory" else {"s": 1, "ms": 1e-3, "µs": 1e-6}
    name = next((name for name, unit in units.items() if value > 0.99 * unit), list(units)[-1])
    return f"{value / units[name]:.3g} {name}"


def legend(plot: Plot) -> list[Line2D]:
    """A line for every member and, if there are several dimensions, for every dimension."""
    from matplotlib.lines import Line2D

    looks = {member: LOOKS.get(member, OTHER_LOOK) for member in ordered(plot.points)}
    members = [
        Line2D([], [], color=colour, marker=marker, markersize=6, linewidth=2, label=LABELS.get(member, member))
        for member, (colour, marker) in looks.items()
    ]
    dimensions = sorted({point.d for point in plot.points})
    styles = [Line2D([], [], color=GREY, linestyle=style(d, dimensions), label=f"D = {d}") for d in dimensions]
    return members + (styles if len(styles) > 1 else [])


def style(d: int, dimensions: Sequence[int]) -> str:
    return STYLES[dimensions.index(d) % len(STYLES)]


def write_around(figure: Figure, plot: Plot, caption: str) -> None:
    """Write the title, how to read the plot and, below, where the numbers come from."""
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.3 / height, plot.title, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.012, 1 - 0.56 / height, note(plot), fontsize=9.5, color=GREY)
    figure.text(0.012, 0.14 / height, caption, fontsize=8.5, color=GREY)


def note(plot: Plot) -> str:
    """How to read the plot."""
    if plot.view == "floor":
        product = "one matrix product of all pairs, 2·N·M·D FLOP"
        return f"higher is better; 100 % is the time of {product}, at the rate measured in {plot.rate}"
    if len({point.member for point in plot.points}) == 1:
        return "lower is better"
    most = "N and D" if len({point.d for point in plot.points}) > 1 else "N"
    what = VIEWS[plot.view].label
    share = f"fusedloss's {what} as a fraction of the best other's, at the largest {most} of both"
    return f"lower is better; below a name: {share}"
