"""The command line: `python -m fusedloss doctor` and `python -m fusedloss demo`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

import fusedloss

from .backends import resolve_backend

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
        sys.exit(f'the demo needs {missing.name}: pip install "fusedloss[examples]"')
    torch.set_num_threads(1)  # small matrices gain nothing from more, and rounding depends on their number
    # For the processes that `measure` starts. Threads that spin while they wait made them 2 to 10 times slower on two
    # cores shared with other work (2026-11).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run(out, epochs, seed, device)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fusedloss", description="Metric-learning losses fused in Triton.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("doctor", help="versions, devices and the backend each kind of tensor uses")
    command.set_defaults(function=doctor)
    command = commands.add_parser(
        "demo",
        help="train on handwritten digits, fused against dense",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--out", type=Path, default=Path("demo-results"), help="folder of the figures")
    command.add_argument("--epochs", type=positive, default=40, help="passes over the training images")
    command.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches")
    command.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
    )
    command.set_defaults(function=demo)
    options = vars(parser.parse_args(arguments))
    options.pop("function")(**options)


if __name__ == "__main__":
    main()
