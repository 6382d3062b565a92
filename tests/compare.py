"""The one comparison of the tests: value and all gradients against float64, no worse than eager PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fusedloss import reference

SLACK = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}


class Error(NamedTuple):
    """How far an output is from float64 in one norm: the fused loss, eager PyTorch, and the size of the output itself."""

    what: str
    fused: float
    eager: float
    size: float


def errors(
    loss: Callable[..., Any],
    arguments: Mapping[str, Any],
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    oracle: Callable[..., Any] | None = None,
    baseline: torch.dtype | None = None,
    constant: Sequence[str] = (),
) -> list[Error]:
    oracle = oracle or getattr(reference, loss.__name__)
    rounded = {k: v.to(dtype) if is_rows(v) else v for k, v in arguments.items()}
    with poisoned_memory():
        fused = outcome(loss, rounded, None, device, constant)
    exact = outcome(oracle, rounded, torch.float64, "cpu", constant)
    eager = outcome(oracle, rounded, baseline or dtype, device, constant)
    assert fused.keys() == exact.keys(), f"gradients of {[*fused]}, expected {[*exact]}"
    found = []
    for what, value in fused.items():
        want = dtype if what in rounded and is_rows(rounded[what]) else torch.promote_types(dtype, torch.float32)
        assert (value.dtype, value.shape) == (want, exact[what].shape), f"{what}: {value.dtype} {tuple(value.shape)}"
        off, eager_off = (t.double().cpu() - exact[what] for t in (value, eager[what]))
        for norm in (torch.inf, 2):
            found.append(Error(f"{what} L{norm}", *(float(t.flatten().norm(norm)) for t in (off, eager_off, exact[what]))))
    return found


def is_rows(value):
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0

def outcome(loss, arguments, dtype, device, constant):
    """The value of a loss, and its gradient by every floating tensor that is not `constant`, by name."""
    inputs = {}
    for name, v in arguments.items():
        if isinstance(v, Tensor):
            v = v.detach().to(device)
            if v.is_floating_point():
                v = v.to(dtype or v.dtype) if v.dim() else v.to(torch.float64 if dtype==torch.float64 or arguments["embeddings" if "embeddings" in arguments else next(iter(arguments))].dtype==torch.float64 else torch.float32)
                v = v.clone().requires_grad_(name not in constant)
        inputs[name] = v
    value = loss(**inputs)
    upstream = torch.arange(value.numel(), device=device) % 5 - 1.5 if value.dim() else torch.tensor(3.0, device=device)
    value.backward(upstream.to(value.dtype))
    grads = {k: v.grad for k, v in inputs.items() if isinstance(v, Tensor) and v.grad is not None}
    return {"value": value.detach(), **grads}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN (-7 for integers), so an output element that no kernel writes shows."""

    def poison(make):
        return lambda *args, **kwargs: fill(make(*args, **kwargs))

    def fill(t):
        return t.fill_(torch.nan if t.is_floating_point() else -7)

    with mock.patch.object(torch, "empty", poison(torch.empty)), mock.patch.object(torch, "empty_like", poison(torch.empty_like)):
        yield
