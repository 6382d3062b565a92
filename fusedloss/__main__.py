"""The command line: `python -m fusedloss doctor | demo | report | tune`."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fusedloss

from . import workloads
from .backends import resolve_backend
from .checks import METRICS
from .roofline import GPUS
from .workloads import LOSSES

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def doctor() -> None:
    """Versions, devices, and the backend that a tensor of each kind uses."""
    print(f"fusedloss {fusedloss.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"torch {torch.__version__}, triton {version('triton')}")
    print(f"float32 matmul precision: {torch.get_float32_matmul_precision()}")
    print(f"cpu: {torch.get_num_threads()} threads; {backends('cpu')}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        name = f"{device.name}, {device.major}.{device.minor}, {device.total_memory / 2**30:.0f} GiB"
        print(f"cuda:{index}: {name}; {backends(f'cuda:{index}')}")
    if not torch.cuda.is_available():
        print("cuda: no device")


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def backends(device: str) -> str:
    uses = (
        f"{str(dtype).removeprefix('torch.')} {resolve_backend(torch.empty(0, dtype=dtype, device=device))}"
        for dtype in DTYPES
    )
    return ", ".join(uses)


def demo(out: Path, epochs: int, seed: int, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no CUDA device here")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from .demo import run
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
    importlib.import_module(".report", __package__).run(file=json, **options)


def tune(**options: Any) -> None:
    if not torch.cuda.is_available():
        sys.exit("tune: PyTorch finds no GPU here; `python -m fusedloss report` needs none")
    importlib.import_module(".sweep", __package__).run(**options)


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

    command(doctor, "versions, devices and the backend each kind of tensor uses")

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
