"""Options of the benchmarks: `pytest bench --benchmark-only --sizes 4096 --losses batch-hard --device cuda`."""

from __future__ import annotations

import pytest
import torch

from .workloads import CASES, IMPLEMENTATIONS

# device -> (sizes, dimensions, dtypes); the CPU set takes a few minutes
DEFAULTS = {
    "cpu": ((512, 2048), (128,), ("float32",)),
    "cuda": ((4096, 16384), (128, 256), ("float32", "bfloat16")),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedloss")
    group.addoption("--sizes", type=int, nargs="+", help="batch sizes N")
    group.addoption("--losses", nargs="+", choices=list(CASES), default=list(CASES), help="losses (all)")
    group.addoption("--device", choices=list(DEFAULTS), default="cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.option
    sizes, dimensions, dtypes = DEFAULTS[option.device]
    values = {
        "case": option.losses,
        "n": option.sizes or sizes,
        "d": dimensions,
        "dtype": dtypes,
        "implementation": list(IMPLEMENTATIONS),
        "device": [option.device],
    }
    for name, choices in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices)
