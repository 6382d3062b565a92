"""The demo: trains an embedding network on real handwritten digits, fused against dense, and writes figures.

run -> load_digits -> train (each loss: fused, then dense) -> retrieval -> measure_sizes -> plot_*
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fusedloss

from .. import reference
from .measure import Measurement, measure

LOSSES = ("pairwise_contrastive_loss", "batch_hard_triplet_loss")
BATCHES = 2  # per epoch: 599 images each
SIZES = {"cpu": (4096, 16384, 1024, 2048), "cuda": (16384, 65536, 4096, 8192)}  # N, the most telling first
DENSE_MOST = {"cpu": 4096, "cuda": 16384}  # N above which the dense reference is not run: it takes ~11 N^2 floats
SECONDS = 95.0  # for the demo without its figures; sizes that do not fit in are left out
MIB = 2**20

Sizes = dict[tuple[str, str, int], Measurement | None]  # (loss, implementation, N)


class Digits(NamedTuple):
    """Images [N, 64] between 0 and 1, and their digits [N]."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


class Training(NamedTuple):
    """What `train` saw: every step's loss, the other implementation's on the same weights, embeddings."""

    losses: Tensor  # [steps]
    others: Tensor  # [steps]
    before: Tensor  # held-out embeddings [N, D] of the untrained network
    after: Tensor


Trainings = dict[str, tuple[Training, Training]]  # loss: fused and dense, from the same seed


class Retrieval(NamedTuple):
    """Searching every held-out image's neighbours among the other held-out images."""

    recall_at_1: float  # share of images whose nearest neighbour shows the same digit
    r_precision: float  # share of the same digit among the R nearest, R = number of other images of that digit


def load_digits(device: str, seed: int) -> Digits:
    """scikit-learn's 1,797 images of 8 x 8 pixels; a third of every digit's images is held out."""
    images, labels = datasets.load_digits(return_X_y=True)
    train, held_out, train_labels, held_out_labels = train_test_split(
        torch.tensor(images / 16, dtype=torch.float32),
        torch.tensor(labels),
        test_size=1 / 3,
        stratify=labels,
        random_state=seed,
    )
    return Digits(train.to(device), train_labels.to(device), held_out.to(device), held_out_labels.to(device))


class EmbeddingNetwork(nn.Sequential):
    """Images [N, 64] -> unit embeddings [N, 32]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(super().forward(images))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        self.eval()
        embeddings = self(images)
        self.train()
        return embeddings


def train(name: str, fused: bool, digits: Digits, epochs: int, seed: int, advance: Callable[[], object]) -> Training:
    """Train with the fused or the dense loss of this name; the seed alone decides weights and batches."""
    loss, other = (getattr(module, name) for module in ((fusedloss, reference) if fused else (reference, fusedloss)))
    torch.manual_seed(seed)
    network = EmbeddingNetwork().to(digits.train.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    before = network.embed(digits.held_out)
    losses, others = [], []
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train)).to(digits.train.device).chunk(BATCHES):
            embeddings, labels = network(digits.train[rows]), digits.train_labels[rows]
            value = loss(embeddings, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
            others.append(other(embeddings.detach(), labels))
        advance()
    return Training(torch.stack(losses).cpu(), torch.stack(others).cpu(), before, network.embed(digits.held_out))


def train_all(digits: Digits, epochs: int, seed: int, console: Console) -> Trainings:
    trainings = {}
    with Progress(console=console) as progress:
        for name in LOSSES:
            both = []
            for kind in ("fused", "dense"):
                advance = partial(progress.advance, progress.add_task(f"{title(name)}, {kind}", total=epochs))
                both.append(train(name, kind == "fused", digits, epochs, seed, advance))
            trainings[name] = (both[0], both[1])
    return trainings


def retrieval(embeddings: Tensor, labels: Tensor) -> Retrieval:
    distances = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf)
    neighbours = distances.argsort(1)[:, :-1]  # [N, N - 1], nearest first, without the image itself
    hits = labels[neighbours] == labels[:, None]
    relevant = hits.sum(1, keepdim=True)
    within = torch.arange(hits.shape[1], device=hits.device) < relevant
    precision = (hits & within).sum(1, keepdim=True) / relevant
    return Retrieval(hits[:, 0].float().mean().item(), precision.mean().item())


def largest_difference(losses: Tensor, others: Tensor) -> tuple[float, float]:
    """The largest difference of two loss curves, and the same relative to the second curve's mean."""
    difference = (losses - others).abs().max()
    return difference.item(), (difference / others.abs().mean()).item()


def measure_sizes(sizes: tuple[int, ...], device: str, until: float, console: Console) -> Sizes:
    """Time and memory of forward + backward; None for what lacks the memory, or the time until `until`."""
    kinds = {n: ("fusedloss", "reference")[: 2 if n <= DENSE_MOST[device] else 1] for n in sizes}
    todo = [(loss, kind, n) for n in sizes for kind in kinds[n] for loss in LOSSES]
    found: Sizes = {}
    with Progress(console=console) as progress:
        for loss, kind, n in progress.track(todo, description="forward + backward, time and memory"):
            found[loss, kind, n] = measure(
                "fusedloss.tools.measure:in_batch",
                timeout=max(until - time.monotonic(), 0.0),
                repeats=3 if n < 4096 else 1,
                loss=loss,
                implementation=kind,
                n=n,
                device=device,
            )
    return found


# ---------------------------------------------------------------------------------------------------------- printing


def title(loss: str) -> str:
    return loss.removesuffix("_loss").replace("_", " ")


def retrieval_table(digits: Digits, trainings: Trainings) -> Table:
    table = Table("embedding", "Recall@1", "R-precision", title="Retrieval among the held-out images")
    rows = {"raw pixels": digits.held_out, "untrained network": trainings[LOSSES[0]][0].before}
    rows |= {f"after {title(name)}": fused.after for name, (fused, _) in trainings.items()}
    for row, embeddings in rows.items():
        table.add_row(row, *(f"{value:.2%}" for value in retrieval(embeddings, digits.held_out_labels)))
    return table


def difference_table(trainings: Trainings) -> Table:
    table = Table("loss", "two trainings, same seed", "same weights, each step")
    table.title = "Largest difference of the loss, fused against dense (relative to its mean)"
    table.caption = "Training amplifies rounding; the same weights compare the losses alone."
    for name, (fused, dense) in trainings.items():
        pairs = ((fused.losses, dense.losses), (fused.losses, fused.others))
        cells = ("{:.1e} ({:.1e})".format(*largest_difference(*pair)) for pair in pairs)
        table.add_row(title(name), *cells)
    return table


def size_table(found: Sizes, device: str) -> Table:
    table = Table("loss", title=f"Forward + backward on {device}, D = 128, float32")
    table.caption = (
        f"MiB: extra memory at the peak. Dense is run up to N = {DENSE_MOST[device]:,}. "
        "Other gaps: too little memory, or no time left."
    )
    if any(m and m.peak_bytes is None for m in found.values()):
        table.caption += " This system tells the peak through psutil only, which is not installed."
    for column in ("N", "fused s", "dense s", "fused MiB", "dense MiB"):
        table.add_column(column, justify="right")
    for loss in LOSSES:
        table.add_section()
        for n in sorted({n for *_, n in found}):
            both = [found.get((loss, kind, n)) for kind in ("fusedloss", "reference")]
            seconds = (f"{m.seconds:.3f}" if m else "-" for m in both)
            peaks = ("-" if m is None or m.peak_bytes is None else f"{m.peak_bytes / MIB:,.0f}" for m in both)
            table.add_row(title(loss), f"{n:,}", *seconds, *peaks)
    return table


# ----------------------------------------------------------------------------------------------------------- figures


def plot_losses(trainings: Trainings, path: Path) -> None:
    figure = Figure(figsize=(11, 7), layout="constrained")
    for column, (name, (fused, dense)) in enumerate(trainings.items()):
        curves, gaps = figure.add_subplot(2, 2, 1 + column), figure.add_subplot(2, 2, 3 + column)
        curves.plot(fused.losses, label="fused", linewidth=4, alpha=0.4)
        curves.plot(dense.losses, label="dense reference", linewidth=1.2, linestyle="--", color="black")
        curves.set(title=title(name), xlabel="training step", ylabel="loss")
        gaps.plot((fused.losses - dense.losses).abs(), label="two trainings, same seed")
        gaps.plot((fused.losses - fused.others).abs(), label="same weights")
        gaps.set(title="fused against dense", xlabel="training step", ylabel="|difference of the loss|")
        gaps.set_yscale("symlog", linthresh=1e-9)  # shows a difference of exactly 0 too
        for axes in (curves, gaps):
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path, dpi=120)


def plot_projections(digits: Digits, trainings: Trainings, path: Path) -> None:
    panels = {"before training": trainings[LOSSES[0]][0].before}
    panels |= {f"after {title(name)}": fused.after for name, (fused, _) in trainings.items()}
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    figure.suptitle("Held-out digits: first two principal components of their embeddings")
    labels = digits.held_out_labels.cpu()
    for column, (panel, embeddings) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), 1 + column)
        pca = PCA(n_components=2, svd_solver="full")
        points = pca.fit_transform(embeddings.cpu().numpy())
        for digit in range(10):
            axes.scatter(
                points[labels == digit, 0], points[labels == digit, 1], s=9, color=f"C{digit}", label=str(digit)
            )
        x, y = (f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(pca.explained_variance_ratio_))
        axes.set(title=panel, xlabel=x, ylabel=y)
    figure.legend(*axes.get_legend_handles_labels(), title="digit", loc="outside right center", markerscale=2)
    figure.savefig(path, dpi=120)


def plot_sizes(found: Sizes, device: str, path: Path) -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    for color, loss in enumerate(LOSSES):
        for kind, label, style in (("fusedloss", "fused", "o-"), ("reference", "dense", "s--")):
            points = sorted((n, m) for (*key, n), m in found.items() if key == [loss, kind] and m)
            look = dict(color=f"C{color}", label=f"{label} {title(loss)}")
            peaks = [(n, m.peak_bytes / MIB) for n, m in points if m.peak_bytes is not None]
            memory.loglog([n for n, _ in peaks], [peak for _, peak in peaks], style, **look)
            seconds.loglog([n for n, _ in points], [m.seconds for _, m in points], style, **look)
    memory.set(title=f"Extra memory of forward + backward on {device}, D = 128", ylabel="memory at the peak (MiB)")
    seconds.set(title=f"Time of forward + backward on {device}, D = 128", ylabel="time (s)")
    ticks = sorted({n for *_, n in found})
    for axes in (memory, seconds):
        axes.set_xlabel("batch size N (rows)")
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.legend(*memory.get_legend_handles_labels(), ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=120)


# --------------------------------------------------------------------------------------------------------------- run


def run(out: Path, epochs: int, seed: int, device: str, sizes: tuple[int, ...] | None = None) -> list[Path]:
    """The whole demo; prints what it finds and returns the figures' paths."""
    until = time.monotonic() + SECONDS
    console = Console()
    digits = load_digits(device, seed)
    console.print(
        f"{len(digits.train):,} images of handwritten digits to train on, {len(digits.train) // BATCHES} a batch; "
        f"{len(digits.held_out)} held out: a third of every digit's images. Device: {device}, seed: {seed}."
    )
    trainings = train_all(digits, epochs, seed, console)
    console.print(retrieval_table(digits, trainings), difference_table(trainings))
    found = measure_sizes(sizes or SIZES[device], device, until, console)
    console.print(size_table(found, device))

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png" for name in ("losses", "projections", "memory")]
    plot_losses(trainings, paths[0])
    plot_projections(digits, trainings, paths[1])
    plot_sizes(found, device, paths[2])
    console.print("Written:", *paths, soft_wrap=True)
    return paths
