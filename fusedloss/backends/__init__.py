"""The choice of backend, `triton` or `blocked` (PyTorch).

Both have the same functions, of the records in `request`. Only `triton` has those that compute a loss of mined pairs up
to the mean (`triton/hinges.py`), see `ops.closes`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("triton", "blocked")
TRITON_DEVICES = ("cuda", "xpu")  # ROCm devices are "cuda" too
HAS_TRITON = importlib.util.find_spec("triton") is not None
_default = "auto"
_chosen: ContextVar[str | None] = ContextVar("fusedloss_backend", default=None)
_traced: str | None = None  # for all threads, for torch.compile, which cannot read a ContextVar (torch 2.13)

# Called with every function of a backend and its arguments after a call; `tools.sweep` fills it to tune at first use.
after_call: Callable[[Callable[..., Any], tuple[Any, ...]], None] | None = None


def _checked(name: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of 'auto', 'triton', 'blocked', got {name!r}")
    return name


def set_backend(name: str) -> None:
    """Choose the backend of every later call, in all threads: "auto" (the default), "triton" or "blocked".

    "auto" means Triton for CUDA, ROCm and XPU tensors, and the blocked PyTorch backend for everything else and for
    float64. With TRITON_INTERPRET=1 in the environment, "triton" takes CPU tensors too, in Triton's interpreter.
    """
    global _default
    _default = _checked(name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend for the duration of a `with` block, in this thread or task only.

    The backward of a loss uses the backend of its forward.
    """
    global _traced
    before = _chosen.set(_checked(name)), _traced
    _traced = name
    try:
        yield
    finally:
        _chosen.reset(before[0])
        _traced = before[1]


def resolve_backend(x: Tensor) -> str:
    """The backend that a call on x uses now."""
    chosen = (_traced if torch.compiler.is_compiling() else _chosen.get()) or _default
    if chosen == "blocked":
        return chosen
    if chosen == "auto":
        fits = x.device.type in TRITON_DEVICES and x.dtype != torch.float64
        return "triton" if fits and HAS_TRITON else "blocked"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    supported = x.is_meta or x.device.type in TRITON_DEVICES or interpreted  # meta: launches are recorded
    if not HAS_TRITON or x.dtype == torch.float64 or not supported:
        raise ValueError(
            "backend 'triton' needs triton installed and float32, float16 or bfloat16 tensors on a GPU "
            f"(or TRITON_INTERPRET=1), got {x.dtype} on {x.device}, triton {'' if HAS_TRITON else 'not '}installed"
        )
    return chosen


@functools.cache
def module(backend: str) -> Any:
    """The module of a backend, whose functions `ops` calls by name."""
    return importlib.import_module(f".{backend}", __package__)
