"""The demo: trains an embedding network on real handwritten digits, fused against dense, and writes figures.

run -> load_digits -> train_all (each loss: fused, then dense) -> retrieval -> measure_sizes -> plot_*
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from .demo_figures import MIB, Sizes, plot_losses, plot_projections, plot_sizes
from .demo_training import BATCHES, LOSSES, Digits, Trainings, load_digits, retrieval, title, train_all
from .measure import Measurement, measure

# N, small ones first: those of both, and larger ones of the fused losses alone. Dense takes up to 11 N² floats.
SIZES = {"cpu": ((1024, 2048, 4096), (8192, 16384)), "cuda": ((4096, 8192, 16384), (65536,))}
SECONDS = 75.0  # for the demo without its figures; what does not fit in is left out


def largest_difference(losses: Tensor, others: Tensor) -> tuple[float, float]:
    """The largest difference of two loss curves, and the same relative to the second curve's mean."""
    difference = (losses - others).abs().max()
    return difference.item(), (difference / others.abs().mean()).item()


def measure_sizes(
    both: tuple[int, ...], larger: tuple[int, ...], device: str, until: float, console: Console
) -> Sizes:  # fmt: skip
    """Time and memory of forward + backward; None for what lacks the memory, or the time until `until`."""
    todo = [(loss, kind, n) for n in both for kind in ("fusedloss", "reference") for loss in LOSSES]
    todo += [(loss, "fusedloss", n) for n in larger for loss in LOSSES]
    found: Sizes = {}
    with Progress(console=console, transient=True) as progress:
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


def retrieval_table(digits: Digits, trainings: Trainings) -> Table:
    table = Table("embedding", "trained", title="Retrieval among the held-out images")
    for column in ("Recall@1", "R-precision"):
        table.add_column(column, justify="right")
    table.caption = (
        "Recall@1: how many images have the same digit as their nearest neighbour. R-precision: how many of an image's "
        "R nearest neighbours have its digit, where R is the number of its other images; at 100% every digit's images "
        "lie apart from all others."
    )

    def add(row: str, trained: str, embeddings: Tensor) -> None:
        table.add_row(row, trained, *(f"{value:.2%}" for value in retrieval(embeddings, digits.held_out_labels)))

    add("raw pixels", "not", digits.held_out)
    for name, both in trainings.items():
        table.add_section()
        add(f"network, {title(name)}", "before", both[0].before)
        for kind, training in zip(("fused", "dense"), both, strict=True):
            add(f"network, {title(name)}", f"after, {kind}", training.after)
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


def size_tables(found: Sizes, device: str) -> list[Table]:
    """Rows that were measured of fused and dense, and rows of fused alone; no table has gaps."""
    compared = Table("loss", title=f"Forward + backward on {device}, D = 128, float32")
    alone = Table("loss", title="Larger batches, fused alone")
    known = all(m.peak_bytes is not None for m in found.values() if m)
    for table, kinds in ((compared, ("fused", "dense")), (alone, ("fused",))):
        for column in ("N", *(f"{kind} s" for kind in kinds), *(f"{kind} MiB" for kind in kinds if known)):
            table.add_column(column, justify="right")
    if known:
        alone.add_column("dense would take", justify="right")
    for loss in LOSSES:
        dense = None
        for n in sorted({n for *_, n in found}):
            fused, last = found[loss, "fusedloss", n], found.get((loss, "reference", n))
            if fused and last:
                dense = (n, last)
                compared.add_row(title(loss), f"{n:,}", *cells(known, fused, last))
            elif fused:
                alone.add_row(title(loss), f"{n:,}", *cells(known, fused), *([would_take(dense, n)] if known else []))
        for table in (compared, alone):
            table.add_section()
    caption(compared, found, known)
    if known:
        alone.caption = "dense would take: its memory at the largest N above, times the square of the ratio of N."
    return [table for table in (compared, alone) if table.row_count]


def would_take(dense: tuple[int, Measurement] | None, n: int) -> str:
    """What dense takes at the largest N, as the number of pairs grows."""
    if dense is None or dense[1].peak_bytes is None:
        return "unknown"
    return f"about {dense[1].peak_bytes * (n / dense[0]) ** 2 / MIB:,.0f} MiB"


def caption(table: Table, found: Sizes, known: bool) -> None:
    kinds = {"fusedloss": "fused", "reference": "dense"}
    missing = [f"{kinds[kind]} {title(loss)} at {n:,}" for (loss, kind, n), m in found.items() if m is None]
    table.caption = "MiB: extra memory at the peak." if known else "This system tells the memory through psutil only."
    if missing:
        table.caption += f" Left out for lack of time or memory: {', '.join(missing)}."


def cells(known: bool, *found: Measurement) -> list[str]:
    """Times, and where it is known memory, of one or more."""
    peaks = [m.peak_bytes for m in found if known and m.peak_bytes is not None]
    return [*(f"{m.seconds:.3f}" for m in found), *(f"{peak / MIB:,.0f}" for peak in peaks)]


# --------------------------------------------------------------------------------------------------------------- run


def run(
    out: Path, epochs: int, seed: int, device: str, sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
) -> list[Path]:  # fmt: skip
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
    found = measure_sizes(*(sizes or SIZES[device]), device, until, console)
    console.print(*size_tables(found, device))

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png" for name in ("losses", "projections", "memory")]
    plot_losses(trainings, paths[0])
    plot_projections(digits, trainings, paths[1])
    plot_sizes(found, device, paths[2])
    console.print("Written:", *paths, soft_wrap=True)
    return paths
