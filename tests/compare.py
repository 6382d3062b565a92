"""The one comparison of the tests: a loss's value and all its gradients are as exact as eager PyTorch's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fusedloss import backends, reference
from fusedloss.backends.request import Wants

# Added to 1.5 times eager's error, which is almost 0 where eager is lucky; relative to the size of the output.
# The most that was needed in the grids of test_in_batch and test_given, 8 seeds blocked and 5 Triton (interpreted,
# 2026-11-22): float32 7.4e-7 and 3.8e-7, both for cosine in 3 dimensions, where the gradient cancels; float64 2.9e-15,
# the reference being as rounded as the loss; gradients in float16 0.98 roundings, in bfloat16 0.94.
ATOL = {torch.float32: 8 * torch.finfo(torch.float32).eps, torch.float64: 16 * torch.finfo(torch.float64).eps}


def check(
    loss: Callable[..., Tensor],
    arguments: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    oracle: Callable[..., Tensor] | None = None,
    forms: Sequence[Callable[..., Tensor]] = (),
    constant: Sequence[str] = (),
    roundings: int = 1,
    closer: bool = True,
    factor: float = 1.5,
) -> None:
    """Assert that err(loss) <= factor err(eager) + atol for the value and the gradient by every floating argument that
    is not `constant`, in the maximum and the L2 norm, against the oracle in float64 on the same rounded inputs.

    eager is the oracle in `dtype`, and where `closer` also in float32, by far the closer bound for 16-bit inputs.
    The atol of a 16-bit gradient is its rounding, `roundings` times where the weights of a product are rounded too.
    Where all is luck, `forms` are the oracle with its sums in other orders: the largest of their errors counts. One
    that overflows bounds nothing, but where the oracle is finite the loss is.
    """
    oracle = oracle or getattr(reference, loss.__name__)
    inputs = {name: v.to(dtype) if is_rows(v) else v for name, v in arguments.items()}
    exact = differentiate(oracle, inputs, torch.float64, "cpu", constant)
    with poisoned_memory():
        fused = differentiate(loss, inputs, dtype, device, constant)
    assert fused.keys() == exact.keys(), f"there are gradients of {[*fused]}, expected {[*exact]}"
    baselines = {dtype, accumulated(dtype)} if closer else {dtype}
    eager = {d: [differentiate(form, inputs, d, device, constant) for form in (oracle, *forms)] for d in baselines}
    for name, want in exact.items():
        assert want.count_nonzero(), f"{name} is zero everywhere: nothing is compared"
        stored = dtype if is_rows(inputs.get(name)) else accumulated(dtype)
        assert (fused[name].dtype, fused[name].shape) == (stored, want.shape), f"{name} is {fused[name].dtype}"
        assert fused[name].isfinite().all() or not want.isfinite().all(), f"{name} is not finite"
        atol = ATOL[accumulated(dtype)] + roundings * rounding(stored)
        for norm in (torch.inf, 2):
            error, size = distance(fused[name], want, norm), distance(want, 0 * want, norm)
            for baseline, found in eager.items():
                bound = factor * max(distance(outputs[name], want, norm) for outputs in found) + atol * size
                if not math.isfinite(bound):
                    continue
                assert error <= bound, f"{name}: L{norm} error {error:.3g} > {bound:.3g} ({baseline}), size {size:.3g}"


def differentiate(
    loss: Callable[..., Tensor], inputs: Mapping[str, Any], dtype: torch.dtype, device: str, constant: Sequence[str]
) -> dict[str, Tensor]:
    """The value of a loss and its gradient by every floating tensor that is not `constant`, by name."""
    own = {name: v.detach().to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
    for name, v in own.items():
        if isinstance(v, Tensor) and v.is_floating_point():
            own[name] = v.to(dtype if v.dim() else accumulated(dtype), copy=True).requires_grad_(name not in constant)
    value = loss(**own)
    # not 1, different from row to row, exact in every dtype
    upstream = torch.arange(value.numel(), device=device) % 5 + 0.5 if value.dim() else torch.tensor(3.0, device=device)
    value.backward(upstream.view(value.shape).to(value.dtype))
    grads = {name: v.grad for name, v in own.items() if isinstance(v, Tensor) and v.grad is not None}
    return {"value": value.detach(), **grads}


def is_rows(v: object) -> bool:
    return isinstance(v, Tensor) and v.is_floating_point() and v.dim() > 0


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a loss of inputs in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def distance(a: Tensor, b: Tensor, norm: float) -> float:
    return float((a.double().cpu() - b).flatten().norm(norm))


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error of a result stored in a 16-bit dtype; Triton's interpreter truncates to bfloat16."""
    if dtype not in (torch.float16, torch.bfloat16):
        return 0.0
    truncated = dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.finfo(dtype).eps / (1 if truncated else 2)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, and -7 for integers, so that an element which no kernel writes shows."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: fill(make(*args, **kwargs))

    def fill(t: Tensor) -> Tensor:
        return t.fill_(torch.nan if t.is_floating_point() else -7)

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        yield


@contextmanager
def wanted_of_backends() -> Iterator[list[Wants]]:
    """Which derivatives of row folds the backends are asked for within the block, a record for each backward."""
    asked: list[Wants] = []

    def after_call(function: Callable[..., Any], given: tuple[Any, ...]) -> None:
        if function.__name__ == "fold_close_grad":
            asked.append(given[3])
        elif function.__name__ == "fold_grad":
            asked.append(Wants(*given[0][3:8]))

    with mock.patch.object(backends, "after_call", after_call):
        yield asked
