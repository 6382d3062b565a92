"""Options of the benchmarks: `pytest bench --benchmark-only --sizes 4096 --losses batch-hard --device cuda`."""

from __future__ import annotations

import itertools

import pytest
import torch

from .workloads import CASES, available

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
    if "implementation" not in metafunc.fixturenames:
        return
    members = [
        (case, n, d, dtype, implementation, option.device)
        for case, n, d, dtype in itertools.product(option.losses, option.sizes or sizes, dimensions, dtypes)
        for implementation in available(CASES[case], n, dtype)
    ]
    metafunc.parametrize(("case", "n", "d", "dtype", "implementation", "device"), members)
