"""The losses of `kernels/losses.py` on tiles of PyTorch tensors, and faster forms of some of them.

A loss is written once, as device code: its source runs here with PyTorch's functions in place of Triton's, and needs no
Triton. A GPU compiler drops values that a kernel does not use, but here they are computed. Where that costs noticeable
time, there is also a form in PyTorch that makes fewer passes over a tile; a test checks that both are equal.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..request import PIECES


class Term(NamedTuple):
    """A term of a loss on a tile, and its derivatives by the scores and by each number; computed when called."""

    value: Callable[[], Tensor]
    by_s: Callable[[], Tensor | float] | None = (
        None  # called last, since it may overwrite the scores; None: the term is a constant
    )
    by_numbers: Callable[[], Sequence[Tensor | float]] = list


Numbers = Sequence[Any]  # floats, or tensors of one element
Loss = Callable[[Tensor, Numbers, bool], Iterator[Term]]  # of scores of pairs that are all positive or all negative

# ------------------------------------------------------------------------------------------------- from device code


def where(condition: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """`torch.where` whose result for two numbers is float32, whatever the default dtype is."""
    numbers = not isinstance(a, Tensor) and not isinstance(b, Tensor)
    return torch.where(condition, torch.tensor(a, dtype=torch.float32, device=condition.device) if numbers else a, b)


TRITON = SimpleNamespace(
    jit=lambda function: function,
    language=SimpleNamespace(constexpr=None, where=where, exp=torch.exp, abs=torch.abs, static_range=range),
)
OWN: dict[str, Callable[..., Any]] = {  # what PyTorch computes in one pass
    "relu": lambda z: z.clamp(min=0),
    "below": lambda z: z.clamp(max=0),
    "log1p": torch.log1p,
    "tanh": torch.tanh,
    "softplus": lambda z: F.logsigmoid(-z).neg_(),
    "logistic": torch.sigmoid,
    "ones": torch.ones_like,
}


@cache
def device_code() -> dict[str, Any]:
    """The functions of `kernels/losses.py`."""
    path, real = Path(__file__).parents[2] / "kernels" / "losses.py", builtins.__import__

    def imported(name: str, *others: Any) -> Any:  # PyTorch itself imports modules in the middle of a call
        return TRITON if name.startswith("triton") else real(name, *others)

    namespace: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": imported}}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    namespace.update(OWN)
    return namespace


def written_once(name: str) -> Loss:
    """A loss as it is written in the device code."""

    def loss(s: Tensor, numbers: Numbers, positive: bool) -> Iterator[Term]:
        taken, terms = [s], device_code()[name](s, tuple(numbers), positive)
        return iter([term(s, *(own_tile(part, s, taken) for part in parts)) for parts in terms])

    return loss


def own_tile(part: Tensor | float, s: Tensor, taken: list[Tensor]) -> Tensor | float:
    """A term or derivative in the dtype of the scores, in a tile of its own: derivatives are overwritten."""
    if isinstance(part, Tensor):
        if part.dtype != s.dtype or any(part is other for other in taken):
            part = part.to(s.dtype, copy=True)
        taken.append(part)
    return part


def term(s: Tensor, value: Tensor | float, *derivatives: Tensor | float) -> Term:
    constant = torch.full_like(s, value) if isinstance(value, float) else value
    if not derivatives:
        return Term(lambda: constant)
    return Term(lambda: constant, lambda: derivatives[0], lambda: derivatives[1:])


# ------------------------------------------------------------------------------------------------------ faster forms


def signed_hinge(s: Tensor, margin: Any, positive: bool) -> Tensor:
    """How far a positive is beyond the margin, or, as a negative number, how far a negative is short of it."""
    h = s - margin
    return h.clamp_(min=0) if positive else h.clamp_(max=0)


def active(h: Tensor) -> Tensor:
    return h.ne(0).to(h.dtype)


def contrastive(s: Tensor, numbers: Numbers, positive: bool) -> Iterator[Term]:
    h = signed_hinge(s, numbers[0], positive)
    yield Term(lambda: (h * h).mul_(0.5), lambda: h, lambda: [-h])
    yield Term(lambda: active(h))
    yield Term(lambda: ones(h))


def linear_contrastive(s: Tensor, numbers: Numbers, positive: bool) -> Iterator[Term]:
    h = signed_hinge(s, numbers[0], positive)
    yield Term(h.abs, h.sign_, lambda: [-h.sign()])
    yield Term(lambda: active(h))


def ones(s: Tensor) -> Tensor:
    return s.new_ones(()).expand(s.shape)


def affine(s: Tensor, scale: Any, bias: Any) -> Tensor:
    z = s * scale
    return z if isinstance(bias, float) and bias == 0 else z.add_(bias)


def softmax(s: Tensor, numbers: Numbers, positive: bool) -> Iterator[Term]:
    scale, bias = numbers
    z = cache(lambda: affine(s, scale, bias))
    logit = Term(z, lambda: scale, lambda: [s.clone(), 1.0])
    yield logit
    yield logit
    yield Term(lambda: ones(s))


def sigmoid(s: Tensor, numbers: Numbers, positive: bool) -> Iterator[Term]:
    scale, bias = numbers
    z = affine(s, scale, bias)
    slope = cache(z.sigmoid)
    yield Term(lambda: F.logsigmoid(-z).neg_(), lambda: slope() * scale, lambda: [slope() * s, slope().clone()])
    yield Term(lambda: ones(s))


# `python -m bench.pieces` measures what these forms save (bench/results/pieces-2026-11-25.json).
FASTER: dict[str, Loss] = {
    "contrastive": contrastive,
    "linear_contrastive": linear_contrastive,
    "softmax": softmax,
    "sigmoid": sigmoid,
}
SYMMETRIC = ("softmax",)  # the same terms for positives and negatives
LOSSES = {name: FASTER.get(name) or written_once(name) for name in PIECES}
