"""What a loss over many GPUs costs, on paper: `python -m bench.group_cost [--page docs/distributed.md]`.

It runs a step of one process of an imagined group on the device "meta": the launches, the memory and the traffic are
those of the code. Times follow from data sheets and from the model of `python -m fusedloss report`; nothing is
measured. With --page the table is written between the page's markers <!-- cost -->.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fusedloss import clip_loss, supcon_loss, use_backend
from fusedloss.backends.triton import tuning
from fusedloss.backends.triton.launch import recording
from fusedloss.distributed import GroupLoss, ShardedLinearCrossEntropyLoss
from fusedloss.groups import MODES
from fusedloss.tools.footprint import Watch
from fusedloss.tools.roofline import LAUNCH, floor_seconds
from fusedloss.tools.workloads import Workload

from . import tables
from .traffic import Traffic, imagined

N, D, CLASSES = 1 << 20, 768, 10_000_000  # rows of all processes (pairs of two towers), dimensions, classes
WORLDS = (8, 64, 1024)
ARCH = "sm_90"
LINKS = {"NVLink, 450 GB/s": 450e9, "InfiniBand, 50 GB/s": 50e9}  # bytes/s of a GPU, in a direction
MARKERS = re.compile(r"(?<=<!-- cost -->\n).*(?=<!-- /cost -->)", re.DOTALL)

MODEL_PAIRS = 65536**2
# Milliseconds for the folds and gradients of so many pairs with D = 768 in bf16 on an H100, by the model: python -m
# fusedloss report --n 65536 --d 768 --dtype bf16 --arch sm_90 --classes 65536 --loss ..., Triton 3.7.1, 2026-11-28.
# Over a group two towers need two folds; in one process a single fold serves both.
MODEL = {
    "supcon_loss": 13.5 + 134,
    "clip_loss": 2 * 13.1 + 134 + 128,
    "linear_cross_entropy_loss": 13.1 + 126 + 126,
}
MORE = {"clip_loss": 6 / 4}  # products of all pairs over a group, relative to those in one process


class Case(NamedTuple):
    """A loss over a group."""

    name: str
    loss: str
    inputs: Callable[[int], list[Tensor]]  # the inputs of one of W processes
    form: Callable[..., Tensor]


class Cost(NamedTuple):
    """What a step costs one process."""

    traffic: Traffic
    launches: int
    peak_bytes: int  # memory beside the inputs
    floor: float  # seconds of its products at the rate of the tensor cores
    tiles: float  # seconds of its tiles by the model


def rows(n: int) -> Tensor:
    return torch.empty(n, D, dtype=torch.bfloat16, device="meta", requires_grad=True)


def labels(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int64, device="meta")


def sharded(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Linear cross entropy, with a share of the classes in every process."""
    loss = ShardedLinearCrossEntropyLoss(CLASSES, D, even=True, device="meta", dtype=torch.bfloat16)
    loss.weight = torch.nn.Parameter(weight[:0])  # the rows are given
    loss.apart = True  # skip the check that shards differ, which the device "meta" cannot run
    return torch.func.functional_call(loss, {"weight": weight}, (x, targets))


CASES = [
    *(
        Case(f"SupCon, {mode}", "supcon_loss", lambda world: [rows(N // world), labels(N // world)],
             GroupLoss(supcon_loss, mode=mode, even=True))
        for mode in MODES
    ),
    *(
        Case(f"CLIP, {mode}", "clip_loss", lambda world: [rows(N // world), rows(N // world)],
             GroupLoss(partial(clip_loss, logit_scale=20.0), mode=mode, even=True))
        for mode in MODES
    ),
    Case("classes, sharded", "linear_cross_entropy_loss",
         lambda world: [rows(N // world), rows(CLASSES // world), labels(N // world)], sharded),
]  # fmt: skip


def cost(case: Case, world: int) -> Cost:
    given = case.inputs(world)
    with (
        use_backend("triton"), tuning.defaults(), recording(ARCH, kept=False) as launches,
        imagined(world) as traffic, Watch(given) as watch,
    ):  # fmt: skip
        torch.autograd.grad(case.form(*given), [t for t in given if t.requires_grad])
    columns = CLASSES if case.form is sharded else N
    floor = floor_seconds(Workload(case.loss, N, D, "bf16", classes=CLASSES), ARCH) * MORE.get(case.loss, 1)
    tiles = N * columns / MODEL_PAIRS * MODEL[case.loss] / 1e3
    return Cost(traffic, len(launches) + watch.operators, watch.peak, floor / world, tiles / world)


COLUMNS = ["W", "loss", "sent = received", "exchanges", "memory", "launches", *LINKS, "products", "tiles"]


def cells(case: Case, world: int) -> list[str]:
    found = cost(case, world)
    assert found.traffic.sent == found.traffic.received
    sent = found.traffic.sent
    return [
        f"{world:,}", case.name, tables.size(sent), f"{found.traffic.exchanges:,}", tables.size(found.peak_bytes),
        f"{found.launches:,} ({tables.seconds(found.launches * LAUNCH)})",
        *(tables.seconds(sent / link) for link in LINKS.values()),
        tables.seconds(found.floor), tables.seconds(found.tiles),
    ]  # fmt: skip


def table() -> str:
    return tables.markdown(COLUMNS, [cells(case, world) for world in WORLDS for case in CASES]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="what a loss over many GPUs costs, on paper")
    parser.add_argument("--page", type=Path, help="the file that has the markers")
    page, text = parser.parse_args().page, table()
    print(text)
    if page:
        changed, count = MARKERS.subn(lambda _: text, page.read_text())
        if not count:
            sys.exit(f"{page}: no markers <!-- cost --> and <!-- /cost -->")
        page.write_text(changed)


if __name__ == "__main__":
    main()
