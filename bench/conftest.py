"""Options of the benchmarks: `pytest bench --benchmark-only --losses clip batch-hard --sizes 4096 --device cuda`."""

from __future__ import annotations

import itertools

import pytest
import torch

from .workloads import CASES, IMPLEMENTATIONS, ROUNDING, Case, available

# Without a GPU: one case of each loss, with so few rows that every member ends within about a second.
SHORT = {case.loss: name for name, case in reversed(CASES.items())}
ROWS, FEW_ROWS = 512, {"nt_xent_loss": 256, "linear_cross_entropy_loss": 64, "arcface_loss": 64}

# device -> (losses, dimensions, dtypes)
DEFAULTS = {
    "cpu": (sorted(SHORT.values(), key=list(CASES).index), (128,), ("float32",)),
    "cuda": (list(CASES), (128, 256), ("float32", "bfloat16")),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedloss")
    group.addoption("--losses", nargs="+", choices=list(CASES), help="losses (one case of each; all on a GPU)")
    group.addoption("--members", nargs="+", choices=list(IMPLEMENTATIONS), help="implementations (all installed)")
    group.addoption("--sizes", type=int, nargs="+", help="batch sizes N")
    group.addoption("--dimensions", type=int, nargs="+", help="dimensions D")
    group.addoption("--dtypes", nargs="+", choices=list(ROUNDING), help="of the embeddings")
    group.addoption("--device", choices=list(DEFAULTS), default="cuda" if torch.cuda.is_available() else "cpu")


def sizes_of(case: Case, device: str) -> tuple[int, ...]:
    if device == "cuda":
        return 4096, 16384
    rows = FEW_ROWS.get(case.loss, ROWS)
    return (min(rows, case.peer_rows or rows, case.dense_rows or rows),)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.option
    losses, dimensions, dtypes = DEFAULTS[option.device]
    if "implementation" not in metafunc.fixturenames:
        return
    members = [
        (name, n, d, dtype, member, option.device)
        for name in option.losses or losses
        for n, d, dtype in itertools.product(
            option.sizes or sizes_of(CASES[name], option.device),
            option.dimensions or dimensions,
            option.dtypes or dtypes,
        )
        for member in available(CASES[name], n, dtype, option.device)
        if member in (option.members or IMPLEMENTATIONS)
    ]
    metafunc.parametrize(("case", "n", "d", "dtype", "implementation", "device"), members)
