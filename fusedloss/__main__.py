"""The command line: `python -m fusedloss doctor | demo | report | tune`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checks import METRICS
from .tools import workloads
from .tools.doctor import doctor
from .tools.gpus import GPUS
from .tools.workloads import LOSSES


def demo(out: Path, epochs: int, seed: int, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no CUDA device here")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from .tools.demo import run
    except ModuleNotFoundError as missing:
        package = str(missing.name).split(".")[0]
        sys.exit(f'the demo needs {package}: pip install "fusedloss[examples]"')
    torch.set_num_threads(1)  # small matrices gain nothing from more, and rounding depends on their number
    # For the processes that `measure` starts. Threads that spin while they wait made them 2 to 10 times slower on two
    # cores shared with other work (2026-11).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run(out, epochs, seed, device)


def report(json: Path | None, **options: Any) -> None:
    if importlib.util.find_spec("triton") is None:
        sys.exit("report: Triton is not installed")
    os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled
    from .tools.report import run

    run(file=json, **options)


def tune(**options: Any) -> None:
    if not torch.cuda.is_available():
        sys.exit("tune: PyTorch finds no GPU here; `python -m fusedloss report` needs none")
    from .tools.sweep import run

    run(**options)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def workload_options(command: argparse.ArgumentParser, sizes: list[int], dtypes: list[str]) -> None:
    """Which losses, at which sizes."""
    command.add_argument("--loss", nargs="+", choices=list(LOSSES), default=list(LOSSES), metavar="LOSS", help="losses")
    command.add_argument("--metric", nargs="+", choices=METRICS, help="of the losses that have one (their default)")
    command.add_argument("--n", type=positive, nargs="+", default=sizes, help="rows of a batch")
    command.add_argument("--d", type=positive, nargs="+", default=[128], help="dimensions of a row")
    command.add_argument("--classes", type=positive, default=8192, help="of losses of classes, and of given logits")
    command.add_argument(
        "--dtype", nargs="+", choices=list(workloads.DTYPES), default=dtypes, help="formats of the rows"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fusedloss", description="Metric-learning losses fused in Triton.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function: Callable[..., None], text: str) -> argparse.ArgumentParser:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        added = commands.add_parser(function.__name__, help=text, description=text, formatter_class=formatter)
        added.set_defaults(function=function)
        return added

    command(doctor, "versions, devices, the backend each kind of tensor uses, tuned tiles")

    own = command(demo, "train on handwritten digits, fused against dense")
    own.add_argument("--out", type=Path, default=Path("demo-results"), help="folder of the figures")
    own.add_argument("--epochs", type=positive, default=40, help="passes over the training images")
    own.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches")
    own.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one")

    own = command(report, "compile the kernels of the losses for GPUs, which need not be there")
    own.add_argument("--arch", nargs="+", choices=list(GPUS), default=list(GPUS), help="architectures")
    own.add_argument("--all", action="store_true", help="with every candidate tile, not only the default one")
    own.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    workload_options(own, [65536], list(workloads.DTYPES))

    own = command(tune, "find the best tiles on this GPU and keep them for later runs")
    workload_options(own, [16384], ["bf16"])

    options = vars(parser.parse_args(arguments))
    options.pop("function")(**options)


if __name__ == "__main__":
    main()
