"""Pictures of the losses for docs/losses: `python -m bench.pictures [NAMES]`.

What is drawn comes from the losses themselves. A plane has rows of two dimensions and, at each, minus the gradient of
what one row, the ringed one, costs: where that row pulls it or pushes it. Curves are a loss and its slope. A picture
keeps the numbers that it was drawn from, by which a test compares it with the losses of now.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

import fusedloss

from .files import ROOT
from .plots import GREY, INK
from .scenes import PICTURES, Curves, Links, Plane, at, loss_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = ROOT / "docs" / "losses" / "images"
BLUE, RED, GREEN, PINK, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"  # Okabe and Ito's
OF_CLASS, OF_LINE = (BLUE, ORANGE, PINK, GREEN), (BLUE, RED, GREEN, PINK)
PULL, PUSH = BLUE, RED
SIZE = (4.8, 2.9)  # inches
LONGEST = 0.5  # of the arrows of a plane, where a row of length 1 has length 1
SHORTEST = 0.012  # of the longest: shorter ones are not drawn

Data = dict[str, list[list[float]]]


# ------------------------------------------------------------------------------------------------------------- data


def forces(name: str, plane: Plane) -> Data:
    """Of every row its place and minus its gradient, of which the longest has length 1."""
    leaves = {side: torch.tensor(rows.places, dtype=torch.float64) for side, rows in plane.sides.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    tensors = {side: F.normalize(leaf) if plane.sphere else leaf for side, leaf in leaves.items()}
    reduction = "mean" if plane.term is None else "none"
    value = loss_of(name)(**tensors, **plane.given, reduction=reduction)
    (value if plane.term is None else value[plane.term]).backward()
    found = {side: -leaf.grad for side, leaf in leaves.items() if leaf.grad is not None}
    most = max(float(force.norm(dim=1).max()) for force in found.values())
    return {side: torch.cat([leaves[side].detach(), force / most], 1).tolist() for side, force in found.items()}


def values(curves: Curves, points: int) -> Data:
    """Of every line [x, loss, slope] at so many points."""
    found = {}
    for label, line in curves.lines.items():
        x = torch.linspace(*curves.ends, points, dtype=torch.float64, requires_grad=True)
        y = line(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        found[label] = torch.stack([x, y, slope], 1).tolist()
    return found


def pairs(links: Links) -> Data:
    found = fusedloss.hardest_pairs(torch.tensor(links.rows.places), torch.tensor(links.rows.classes))
    return {"pairs": torch.stack([found.positive_index, found.negative_index], 1).tolist()}


def data(name: str) -> Data:
    """What a picture keeps: all of a plane, and of curves a few points."""
    picture = PICTURES[name]
    if isinstance(picture, Plane):
        return forces(name, picture)
    return pairs(picture) if isinstance(picture, Links) else values(picture, 12)


def rounded(found: Data) -> str:
    return json.dumps({key: [[round(v, 3) + 0.0 for v in row] for row in rows] for key, rows in found.items()})


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(name: str, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "font.family": "sans-serif",
             "text.color": INK, "axes.edgecolor": "#b0b0b0", "xtick.color": GREY, "ytick.color": GREY}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE)
        picture = PICTURES[name]
        if isinstance(picture, Curves):
            draw_curves(figure, picture)
        else:
            draw_rows(figure, name, picture)
        about = {"Date": None, "Creator": None, "Title": name, "Description": rounded(data(name))}
        figure.savefig(path, format="svg", metadata=about)


def draw_curves(figure: Figure, curves: Curves) -> None:
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.73, bottom=0.16, wspace=0.24)
    for colour, (label, line) in zip(OF_LINE, values(curves, 161).items(), strict=False):
        for axes, y in zip(panels, (1, 2), strict=True):
            axes.plot([row[0] for row in line], [row[y] for row in line], color=colour, linewidth=1.8, label=label)
    for axes, title in zip(panels, ("loss", "slope"), strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(color="#e3e3e3", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(nbins=5)
        axes.tick_params(labelsize=8)
    figure.text(0.53, 0.02, curves.label, ha="center", color=GREY)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=2, frameon=False, fontsize=10,
                  borderpad=0.1)  # fmt: skip


def draw_rows(figure: Figure, name: str, picture: Plane | Links) -> None:
    axes = figure.add_axes((0.01, 0.01, 0.6, 0.98))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set(xlim=(-1.27, 1.27), ylim=(-1.27, 1.27))
    if isinstance(picture, Links):
        handles = draw_links(axes, picture)
    else:
        handles = draw_forces(axes, picture, forces(name, picture))
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.6, 0.5), frameon=False, fontsize=10,
                  labelspacing=0.7, handlelength=1.6)  # fmt: skip


def draw_forces(axes: Axes, plane: Plane, found: Data) -> list[Any]:
    """The rows and their arrows; what the legend says of them."""
    ringed = None if plane.term is None else (plane.ringed or next(iter(plane.sides)), plane.term)
    own = None if ringed is None else plane.sides[ringed[0]].classes[ringed[1]]
    if plane.sphere:
        ring(axes, (0, 0), 1, color="#d0d0d0", linewidth=1)
    for side, rows in plane.sides.items():
        for i, (x, y, fx, fy) in enumerate(found[side]):
            kind = INK if (side, i) == ringed else OF_CLASS[rows.classes[i]] if own is None else (
                PULL if rows.classes[i] == own else PUSH)  # fmt: skip
            if math.hypot(fx, fy) > SHORTEST:
                arrow(axes, (x, y), (LONGEST * fx, LONGEST * fy), kind)
            point(axes, (x, y), rows.marker, OF_CLASS[rows.classes[i]], (side, i) == ringed)
    if ringed is not None:
        around(axes, plane, found[ringed[0]][ringed[1]][:2])
    kinds = [arrow_handle(PULL, "pull on its class"), arrow_handle(PUSH, "push on the others"),
             arrow_handle(INK, "its own move")]  # fmt: skip
    shapes = [handle(rows.marker, GREY, rows.what) for rows in plane.sides.values()] if len(plane.sides) > 1 else []
    return shapes + ([] if own is None else kinds)


def around(axes: Axes, plane: Plane, middle: Sequence[float]) -> None:
    """The margins, as they lie around the ringed row."""
    x, y = middle
    for label, radius in plane.radii.items():
        ring(axes, (x, y), radius, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.text(x, y - radius - 0.02, label, ha="center", va="top", fontsize=8, color=GREY)
    for label, cosine in plane.cosines.items():
        for sign in (-1, 1):
            ((px, py),) = at(sign * math.degrees(math.acos(cosine)))
            axes.plot([0.88 * px, 1.12 * px], [0.88 * py, 1.12 * py], color=GREY, linewidth=1.2)
            axes.text(
                1.16 * px, 1.16 * py, label, ha="left" if sign > 0 else "right", va="center", fontsize=8, color=GREY
            )


def draw_links(axes: Axes, links: Links) -> list[Any]:
    places = links.rows.places
    for i, found in enumerate(pairs(links)["pairs"]):
        for j, colour, bend in zip(map(int, found), (PULL, PUSH), (0.12, 0.06), strict=True):
            axes.annotate("", places[j], places[i], arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 5,
                          "shrinkB": 5, "connectionstyle": f"arc3,rad={bend}", "linewidth": 1.1})  # fmt: skip
        point(axes, places[i], "o", OF_CLASS[links.rows.classes[i]], False)
    return [arrow_handle(PULL, "hardest positive"), arrow_handle(PUSH, "hardest negative")]


def point(axes: Axes, place: Sequence[float], marker: str, colour: str, ringed: bool) -> None:
    size = 13 if marker == "*" else 7.5
    axes.plot(
        *place, marker=marker, markersize=size, color=colour, markeredgecolor="white", markeredgewidth=0.8, zorder=4
    )
    if ringed:
        axes.plot(*place, marker="o", markersize=size + 6, fillstyle="none", color=INK, markeredgewidth=1.3, zorder=3)


def arrow(axes: Axes, place: Sequence[float], step: Sequence[float], colour: str) -> None:
    end = [a + b for a, b in zip(place, step, strict=True)]
    axes.annotate("", end, place, arrowprops={"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "color": colour,
                  "shrinkA": 0, "shrinkB": 0, "linewidth": 1.7}, zorder=5)  # fmt: skip


def ring(axes: Axes, middle: tuple[float, float], radius: float, **style: Any) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(middle, radius, fill=False, zorder=1, **style))


def handle(marker: str, colour: str, label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=8, label=label, **style)


arrow_handle = partial(handle, r"$\rightarrow$")


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description="pictures of the losses for docs/losses")
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], help="losses (all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they are written (docs/losses/images)")
    args = parser.parse_args(arguments or None)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or PICTURES:
        draw(name, args.folder / f"{name}.svg")


if __name__ == "__main__":
    main()
