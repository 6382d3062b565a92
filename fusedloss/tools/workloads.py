"""Every loss with inputs of a size: what is recorded for the compile report, tuned, and captured in CUDA graphs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..losses.catalog import CATALOG, Role
from ..options import rules_of
from .measure import Run

LOSSES = CATALOG  # every loss is a workload
ROWS_OF_A_CLASS = 32  # with one label, on average
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Workload(NamedTuple):
    """A loss with options at a size: N rows of D dimensions, or of as many logits as there are classes."""

    loss: str
    N: int
    D: int
    dtype: str  # of DTYPES
    metric: str = ""  # for the losses that have the option
    options: tuple[tuple[str, Any], ...] = ()
    classes: int = 1024

    @property
    def name(self) -> str:
        return ", ".join([self.loss, *(f"{option}={value}" for option, value in self.options)])

    @property
    def keywords(self) -> dict[str, Any]:
        return dict(self.options) | ({"metric": self.metric} if self.metric else {})


def workloads(
    loss: Sequence[str], n: Sequence[int], d: Sequence[int], dtype: Sequence[str], metric: Sequence[str] | None,
    classes: int,
) -> Iterator[Workload]:  # fmt: skip
    """Losses as called by default, with each of the metrics, and their variants."""
    for name, N, D, kind in itertools.product(loss, n, d, dtype):
        for score in scores(name, metric):
            for options in ({}, *LOSSES[name].variants):
                yield Workload(name, N, D, kind, score, tuple(options.items()), classes)


def scores(loss: str, metric: Sequence[str] | None) -> list[str]:
    """The values of a loss's option of that name: those of the given ones that it has, or its default."""
    default = inspect.signature(LOSSES[loss].function).parameters.get("metric")
    if default is None:
        return [""]
    rule: Any = rules_of(LOSSES[loss].function)["metric"]  # one of those
    return [m for m in metric or [default.default] if m in rule.keywords["allowed"]]


def arguments(work: Workload, device: str, seed: int = 0) -> dict[str, Any]:
    """Random rows that want their gradient, about as far apart as in training, and random labels."""
    centers = [work.keywords["sub_centers"]] if "sub_centers" in work.keywords else []
    generator = torch.Generator("cpu" if device == "meta" else device).manual_seed(seed)
    dtype = DTYPES[work.dtype]

    def rows(*shape: int) -> Tensor:
        if device == "meta":
            return torch.empty(*shape, dtype=dtype, device=device, requires_grad=True)
        found = torch.randn(*shape, generator=generator, device=device) / shape[-1] ** 0.5
        return found.to(dtype).requires_grad_()

    def indices(most: int) -> Tensor:
        if device == "meta":
            return torch.empty(work.N, dtype=torch.int64, device=device)
        return torch.randint(most, (work.N,), generator=generator, device=device)

    def learned(value: float) -> Tensor:
        return torch.tensor(value, device=device, requires_grad=True)

    made: dict[Role, Callable[[], Tensor]] = {
        **dict.fromkeys((Role.ROWS, Role.KEYS, Role.VIEW), lambda: rows(work.N, work.D)),
        Role.LABELS: lambda: indices(max(2, work.N // ROWS_OF_A_CLASS)),
        Role.SIMILAR: lambda: indices(2),
        Role.GRADES: lambda: indices(6),
        Role.CLASSES: lambda: rows(work.classes, *centers, work.D),
        Role.CLASS: lambda: indices(work.classes),
        Role.LOGITS: lambda: rows(work.N, work.classes),
        Role.ANSWERS: lambda: (rows(work.N, work.classes).detach() > 0).to(dtype),
        Role.SCALE: lambda: learned(10.0),
        Role.BIAS: lambda: learned(-10.0),
    }
    return {name: made[role]() for name, role in LOSSES[work.loss].required.items()}


def step(work: Workload, device: str, inputs: dict[str, Any] | None = None) -> Run:
    """Forward and backward of a workload: the value, and the gradients of all that want one."""
    inputs = inputs or arguments(work, device)
    wanted = [t for t in inputs.values() if t.requires_grad]
    loss = LOSSES[work.loss].function

    def run() -> tuple[Tensor, ...]:
        value = loss(**inputs, **work.keywords)
        return value.detach(), *torch.autograd.grad(value, wanted)

    return run
