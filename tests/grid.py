"""What the tests run over: data, the plans of the engine, and covering grids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import fusedloss

METRICS = ("euclidean", "sqeuclidean", "cosine", "manhattan")
DTYPES = {
    "triton": (torch.float32, torch.float16, torch.bfloat16),
    "blocked": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}

# A few rows make one tile of the default sizes. The other plans have several row blocks, column blocks, chunks of D and
# slabs, with ragged edges on all of them, and each takes one path that only large inputs take otherwise.
SMALL = dict(SPLIT_TARGET=1, ROW_CHUNK=32, ENTRIES=4)
PLANS = {
    "default": {},
    "small": SMALL,
    "split": SMALL | dict(SPLIT_TARGET=1 << 20),
    "sorted": SMALL | dict(SORT_FROM=0),
    "loop": SMALL | dict(UNROLLED=0),
}


@contextmanager
def running(backend: str, plan: str) -> Iterator[str]:
    """Run on a backend with a plan; yields the device for its tensors."""
    with pytest.MonkeyPatch.context() as patch, fusedloss.use_backend(backend):
        if backend == "blocked":
            if plan != "default":
                patch.setattr("fusedloss.blocked.BLOCK", 16)
            yield "cpu"
            return
        pytest.importorskip("triton")
        from fusedloss.kernels import configs

        if plan != "default":
            tile = configs.Tile(BM=16, BN=32, BD=16, num_warps=4, num_stages=1, slab=32)
            patch.setattr(configs, "choose", lambda kernel, itemsize, D: tile)
        for name, value in PLANS[plan].items():
            patch.setattr(configs, name, value)
        yield "cuda" if torch.cuda.is_available() else "cpu"


def covering(axes: Mapping[str, Sequence[Any]], strength: int = 2) -> list[dict[str, Any]]:
    """Few cases in which every combination of values of any `strength` axes occurs: a fault that takes two options to
    show is found without the full product."""
    wanted = dict.fromkeys(
        frozenset(zip(names, values, strict=True))
        for names in itertools.combinations(axes, strength)
        for values in itertools.product(*(axes[n] for n in names))
    )
    cases = []
    while wanted:
        case = dict(next(iter(wanted)))
        for name in axes.keys() - case.keys() if False else [n for n in axes if n not in case]:
            fits = [frozenset((case | {name: v}).items()) for v in axes[name]]
            case[name] = max(zip(axes[name], fits, strict=True), key=lambda vf: sum(w <= vf[1] for w in wanted))[0]
        wanted = dict.fromkeys(w for w in wanted if not w <= case.items())
        cases.append({name: case[name] for name in axes})
    return cases


def cases(axes: Mapping[str, Sequence[Any]], strength: Mapping[str, int]) -> Any:
    """A parametrization of (backend, case): a covering grid for each backend, of the given strength."""
    return pytest.mark.parametrize(
        ("backend", "case"),
        [
            pytest.param(backend, case, id="-".join([backend, *(str(v).removeprefix("torch.") for v in case.values())]))
            for backend, t in strength.items()
            for case in covering({**axes, "dtype": DTYPES[backend]}, t)
        ],
    )


def batch(N: int, D: int, *, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of length about 1 in float64 and their labels; the last row is alone in its class."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * N + D)
    labels = torch.randint(classes, (N,), generator=generator)
    labels[-1:] = classes
    return torch.randn(N, D, dtype=torch.float64, generator=generator) / D**0.5, labels
