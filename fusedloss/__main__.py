"""The command line: `python -m fusedloss doctor | demo | report | tune`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checks import METRICS
from .tools import workloads
from .tools.choices import one_of
from .tools.doctor import doctor
from .tools.gpus import GPUS
from .tools.workloads import LOSSES

SIZES: dict[str, Any] = {"loss": list(LOSSES), "metric": None, "d": [128], "classes": 8192}  # where none are given


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


def report(json: Path | None, arch: list[str], all: bool, **which: Any) -> None:
    compiling("report")
    from .tools.report import run

    run(arch, all, json, **SIZES | {"n": [65536], "dtype": list(workloads.DTYPES)} | which)


def tune(dry_run: bool, list: bool, reset: bool, arch: str | None, **which: Any) -> None:
    if which and (list or reset):
        sys.exit(f"tune: --{'list' if list else 'reset'} takes no other options")
    if arch and not dry_run:
        sys.exit("tune: --arch is for --dry-run: tiles are timed on the GPU that is here")
    compiling("tune")
    from .tools import tune as command

    if list or reset:
        (command.list_kept if list else command.reset)()
        return
    which = SIZES | {"n": [16384], "dtype": ["bf16"]} | which
    if dry_run:
        command.dry_run(arch=arch, **which)
    elif torch.cuda.is_available():
        command.run(**which)
    else:
        sys.exit("tune: PyTorch finds no GPU here; --dry-run and `python -m fusedloss report` need none")


def compiling(command: str) -> None:
    """Kernels are compiled, not interpreted; without Triton the program ends."""
    if importlib.util.find_spec("triton") is None:
        sys.exit(f"{command}: Triton is not installed")
    os.environ.pop("TRITON_INTERPRET", None)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def workload_options(command: argparse.ArgumentParser, n: int, dtypes: str) -> None:
    """Which losses, at which sizes; those that are not given are left out."""
    own = command.add_argument_group("which losses, at which sizes")

    def option(name: str, text: str, metavar: str, type: Callable[[str], Any], **others: Any) -> None:
        own.add_argument(name, type=type, metavar=metavar, default=argparse.SUPPRESS, help=text, **others)

    loss, metric, dtype = one_of("loss", LOSSES), one_of("metric", METRICS), one_of("format", workloads.DTYPES)
    option("--loss", "names of the functions, e.g. supcon_loss (default: all)", "LOSS", loss, nargs="+")
    option("--metric", f"{', '.join(METRICS)} (default: each loss's own)", "METRIC", metric, nargs="+")
    option("--n", f"rows of a batch (default: {n})", "N", positive, nargs="+")
    option("--d", "dimensions of a row (default: 128)", "D", positive, nargs="+")
    option("--classes", "of losses of classes, and of given logits (default: 8192)", "C", positive)
    option("--dtype", f"{', '.join(workloads.DTYPES)} (default: {dtypes})", "FORMAT", dtype, nargs="+")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m fusedloss", description="Metric-learning losses fused in Triton.")
    whole.set_defaults(function=lambda: whole.print_help())
    commands = whole.add_subparsers(title="commands", metavar="command")

    def command(function: Callable[..., None], text: str, example: str = "") -> argparse.ArgumentParser:
        epilog = f"example: python -m fusedloss {function.__name__} {example}" if example else None
        added = commands.add_parser(function.__name__, help=text, description=f"{text}.", epilog=epilog)
        added.set_defaults(function=function)
        return added

    command(doctor, "Say what is here, what works, and what to do next")

    own = command(demo, "Train on handwritten digits, fused against dense, and draw figures; under 90 s on two cores")
    own.add_argument("--out", type=Path, default=Path("demo-results"), metavar="FOLDER",
                     help="folder of the figures (default: demo-results)")  # fmt: skip
    own.add_argument("--epochs", type=positive, default=40, metavar="N",
                     help="passes over the training images (default: 40)")  # fmt: skip
    own.add_argument("--seed", type=int, default=0, metavar="N",
                     help="of the split, the weights and the batches (default: 0)")  # fmt: skip
    own.add_argument("--device", type=one_of("device", ("auto", "cpu", "cuda")), default="auto", metavar="DEVICE",
                     help="cpu, cuda or auto: the GPU if there is one (default: auto)")  # fmt: skip

    arch, models = one_of("architecture", GPUS), ", ".join(f"{name} ({gpu.name})" for name, gpu in GPUS.items())
    own = command(report, "Compile the kernels of losses for GPUs, which need not be there, and model their time",
                  "--loss supcon_loss --arch sm_90 --d 128 256")  # fmt: skip
    own.add_argument("--arch", type=arch, nargs="+", default=list(GPUS), metavar="ARCH",
                     help=f"{models} (default: all)")  # fmt: skip
    own.add_argument("--all", action="store_true", help="every candidate tile, not only the default one")
    own.add_argument("--json", type=Path, metavar="FILE", help="write the rows to a file too")
    workload_options(own, 65536, "all")

    own = command(tune, "Find the best tiles on this GPU and keep them for later runs",
                  "--loss supcon_loss --n 16384 --d 256 --dtype bf16")  # fmt: skip
    instead = own.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="only say what would be tuned and how long it takes")
    instead.add_argument("--list", action="store_true", help="only show the tiles that are kept")
    instead.add_argument("--reset", action="store_true", help="only delete the tiles that are kept for this GPU")
    own.add_argument("--arch", type=arch, metavar="ARCH",
                     help=f"of a dry run: {models} (default: this GPU's, or sm_90)")  # fmt: skip
    workload_options(own, 16384, "bf16")
    return whole


def main(arguments: list[str] | None = None) -> None:
    options = vars(parser().parse_args(arguments))
    options.pop("function")(**options)


if __name__ == "__main__":
    main()
