"""The choice of backend: `launch` (Triton) or `blocked` (PyTorch), modules with the same functions."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BACKENDS = {"triton": "launch", "blocked": "blocked"}
TRITON_DEVICES = ("cuda", "xpu")  # ROCm devices are "cuda" too
_selected = "auto"


def set_backend(name: str) -> None:
    """Choose the backend of every later call: "auto" (the default), "triton" or "blocked".

    auto: Triton for CUDA, ROCm and XPU tensors, the blocked PyTorch backend for everything else and for float64.
    With TRITON_INTERPRET=1 in the environment "triton" takes CPU tensors too, in Triton's interpreter.
    """
    global _selected
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of 'auto', 'triton', 'blocked', got {name!r}")
    _selected = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """`set_backend` for the duration of a `with` block; the backward of a loss uses the backend of its forward."""
    before = _selected
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def resolve_backend(x: Tensor) -> str:
    """The backend that a call on x uses now."""
    has_triton = importlib.util.find_spec("triton") is not None
    if _selected == "auto":
        return "triton" if has_triton and x.device.type in TRITON_DEVICES and x.dtype != torch.float64 else "blocked"
    if _selected == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        supported = x.is_meta or x.device.type in TRITON_DEVICES or interpreted  # meta: launches are recorded
        if not has_triton or x.dtype == torch.float64 or not supported:
            raise ValueError(
                "backend 'triton' needs triton installed and float32, float16 or bfloat16 tensors on a GPU "
                f"(or TRITON_INTERPRET=1), got {x.dtype} on {x.device}, triton {'' if has_triton else 'not '}installed"
            )
    return _selected


def module(backend: str) -> Any:
    """The functions of a backend, which the custom ops call by their names."""
    return importlib.import_module(f".{BACKENDS[backend]}", __package__)
