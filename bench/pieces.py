"""What the faster forms of losses on the CPU save: `python -m bench.pieces [--out FILE]`.

A loss is written once, as device code, which the CPU runs too (`fusedloss/backends/blocked/losses.py`); a separate form
for the CPU stays only if this program shows that it is faster. It times forward + backward of one loss for each piece;
the two forms take turns in one process, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fusedloss.backends.blocked import losses
from fusedloss.backends.request import PIECES
from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.console import show
from fusedloss.tools.measure import Run, batch, timed, training_step

from . import files, tables
from .forms import of_batch

N, D, CLASSES = 4096, 128, 32
# A loss that folds the piece, and options at which all of its terms are active.
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "contrastive": ("pairwise_contrastive_loss", {"neg_margin": 2.5}),
    "linear_contrastive": ("pairwise_contrastive_loss", {"neg_margin": 2.5, "power": 1, "reduction": "active"}),
    "softmax": ("supcon_loss", {}),
    "sigmoid": ("siglip_loss", {"logit_scale": 10.0, "logit_bias": -10.0}),
    "circle": ("circle_loss", {}),
}


def step(piece: str) -> Run:
    name, options = LOSSES[piece]
    return training_step(of_batch(CATALOG[name].function, name, **options), *batch(N, D, CLASSES, "cpu", "float32"))


def compared(piece: str, rounds: int) -> dict[str, Any]:
    """The seconds with the CPU's own form and with the device code, and their ratio."""
    run, own = step(piece), losses.FASTER[piece]
    seconds: dict[str, list[float]] = {"own": [], "device code": []}
    for turn in range(rounds + 1):
        for form in list(seconds)[:: 1 if turn % 2 else -1]:
            losses.LOSSES[piece] = own if form == "own" else losses.written_once(piece)
            seconds[form].append(timed(run))
    losses.LOSSES[piece] = own
    pairs = list(zip(*(times[1:] for times in seconds.values()), strict=True))  # the first turn is the warm-up
    found = {form: median(times[1:]) for form, times in seconds.items()}
    return {"piece": piece, "loss": LOSSES[piece][0], **found, "ratio": median(b / a for a, b in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = [compared(piece, args.rounds) for piece in PIECES if piece in losses.FASTER]
    cells = [[row["piece"], row["loss"], *(tables.seconds(row[form]) for form in ("own", "device code")),
              f"{row['ratio']:.2f}x"] for row in rows]  # fmt: skip
    title = f"forward + backward, N = {N:,}, D = {D}, float32, {torch.get_num_threads()} threads"
    show(title, ["piece", "loss", "form of its own", "device code", "ratio"], cells)
    if args.out:
        files.save(args.out, {"meta": files.meta("cpu"), "pieces": rows})


if __name__ == "__main__":
    main()
