"""The demo's figures. Ticks are numbers as one says them: 100 MiB, 0.1 s, 1 in 1 million."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from .demo_training import LOSSES, Digits, Trainings, retrieval, title
from .measure import Measurement

Sizes = dict[tuple[str, str, int], Measurement | None]  # (loss, implementation, N)

MIB = 2**20
MEMORY: dict[float, str] = {MIB * 10**i: f"{10**i} MiB" for i in range(3)}
MEMORY |= {2**30 * 10**i: f"{10**i} GiB" for i in range(3)}
SECONDS = {1e-4: "0.1 ms", 1e-3: "1 ms", 0.01: "0.01 s", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s", 100.0: "100 s"}
SHARES = {0.0: "none", 1e-8: "1 in 100 million", 1e-6: "1 in 1 million", 1e-4: "1 in 10,000", 1e-2: "1 in 100"}


def set_ticks(axis: Any, ticks: Mapping[float, str]) -> None:
    """The ticks that the data of an axis reach, and the next ones around, where the axis then ends."""
    low, high = axis.get_data_interval()
    below = max((t for t in ticks if t <= low), default=min(ticks))
    above = min((t for t in ticks if t >= high), default=max(ticks))
    shown = {t: text for t, text in ticks.items() if below <= t <= above}
    axis.set_ticks(list(shown), list(shown.values()))
    axis.set_ticks([], minor=True)
    axis.axes.set(**{f"{axis.axis_name}lim": (below, above)})


def plot_losses(trainings: Trainings, path: Path) -> None:
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, len(trainings), squeeze=False)
    for (curves, gaps), (name, (fused, dense)) in zip(axes.T, trainings.items(), strict=True):
        curves.plot(fused.losses, label="fused", linewidth=4, alpha=0.4)
        curves.plot(dense.losses, label="dense reference", linewidth=1.2, linestyle="--", color="black")
        curves.set(title=f"{title(name)}: loss", ylim=(0, None))
        mean = dense.losses.mean()
        gaps.plot((fused.losses - dense.losses).abs() / mean, label="two trainings, same seed")
        gaps.plot((fused.losses - fused.others).abs() / mean, label="same weights")
        gaps.set(title=f"{title(name)}: fused against dense", xlabel="training step")
        gaps.set_yscale("symlog", linthresh=min(t for t in SHARES if t))  # shows a difference of exactly 0 too
        gaps.set_yticks(list(SHARES), list(SHARES.values()))
        gaps.set_yticks([], minor=True)
        gaps.set(ylim=(-1e-9, 0.5))
        for one in (curves, gaps):
            one.grid(alpha=0.3)
            one.legend(loc="upper right" if one is curves else "upper left")
    axes[0, 0].set(ylabel="loss")
    axes[1, 0].set(ylabel="difference, relative to the mean loss")
    figure.savefig(path, dpi=120)


def plot_projections(digits: Digits, trainings: Trainings, path: Path) -> None:
    panels = {"before training": trainings[LOSSES[0]][0].before}
    panels |= {f"after {title(name)}": fused.after for name, (fused, _) in trainings.items()}
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    figure.suptitle("Held-out digits: first two principal components of their embeddings")
    labels = digits.held_out_labels.cpu()
    for column, (panel, embeddings) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), 1 + column)
        pca = PCA(n_components=2, svd_solver="full")
        points = pca.fit_transform(embeddings.cpu().numpy())
        for digit in range(10):
            own = points[labels == digit]
            axes.scatter(own[:, 0], own[:, 1], s=9, color=f"C{digit}", label=str(digit))
        x, y = (f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(pca.explained_variance_ratio_))
        found = retrieval(embeddings, digits.held_out_labels)
        scores = f"Recall@1 {found.recall_at_1:.1%}, R-precision {found.r_precision:.1%}"
        axes.set(title=f"{panel}\n{scores}", xlabel=x, ylabel=y)
    figure.legend(*axes.get_legend_handles_labels(), title="digit", loc="outside right center", markerscale=2)
    figure.savefig(path, dpi=120)


def plot_sizes(found: Sizes, device: str, path: Path) -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"Forward + backward on {device}, D = 128, float32")
    memory, seconds = figure.subplots(1, 2)
    for color, loss in enumerate(LOSSES):
        for kind, label, style in (("fusedloss", "fused", "o-"), ("reference", "dense", "s--")):
            points = sorted((n, m) for (*key, n), m in found.items() if key == [loss, kind] and m)
            look = dict(color=f"C{color}", label=f"{label} {title(loss)}")
            peaks = [(n, m.peak_bytes) for n, m in points if m.peak_bytes is not None]
            memory.loglog([n for n, _ in peaks], [peak for _, peak in peaks], style, **look)
            seconds.loglog([n for n, _ in points], [m.seconds for _, m in points], style, **look)
    memory.set(title="extra memory at the peak")
    seconds.set(title="time")
    sizes = sorted({n for *_, n in found})
    for axes, ticks in ((memory, MEMORY), (seconds, SECONDS)):
        axes.set_xlabel("batch size N (rows)")
        axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axes.set_xticks([], minor=True)
        set_ticks(axes.yaxis, ticks)
        axes.grid(alpha=0.3)
    figure.legend(*memory.get_legend_handles_labels(), ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=120)
