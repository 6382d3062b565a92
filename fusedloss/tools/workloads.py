"""Every loss with inputs of a size: what is recorded for the compile report, tuned, and captured in CUDA graphs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fusedloss

from .measure import Run

LOSSES: dict[str, Callable[..., Tensor]] = {
    name: f
    for name, f in vars(fusedloss).items()
    if name.endswith("_loss") and inspect.isfunction(f) and f.__module__.startswith("fusedloss.losses")
}
CLASSES = ("weight", "proxies", "centers")  # what losses of embeddings and classes call one row a class
NUMBERS = {"logit_scale": 10.0, "logit_bias": -10.0}  # learned, where they are no options
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Options that other kernels, or other pieces of them, compute.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "batch_all_triplet_loss": ({"soft_margin": True}, {"triplets": "semihard"}),
    "batch_hard_triplet_loss": ({"negatives": "semihard"},),
    "cross_entropy_loss": ({"label_smoothing": 0.1},),
    "info_nce_loss": ({"symmetric": True},),
    "linear_cross_entropy_loss": ({"label_smoothing": 0.1},),
    "pairwise_contrastive_loss": ({"power": 1},),
}


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
        default = inspect.signature(LOSSES[name]).parameters.get("metric")
        for score in [""] if default is None else metric or [default.default]:
            for options in ({}, *VARIANTS.get(name, ())):
                yield Workload(name, N, D, kind, score, tuple(options.items()), classes)


def arguments(work: Workload, device: str, seed: int = 0) -> dict[str, Any]:
    """Random rows that want their gradient, about as far apart as in training, and labels of 32 rows a class."""
    generator = torch.Generator("cpu" if device == "meta" else device).manual_seed(seed)
    loss, dtype = LOSSES[work.loss], DTYPES[work.dtype]

    def rows(n: int, d: int) -> Tensor:
        if device == "meta":
            return torch.empty(n, d, dtype=dtype, device=device, requires_grad=True)
        found = torch.randn(n, d, generator=generator, device=device) / d**0.5
        return found.to(dtype).requires_grad_()

    def indices(most: int) -> Tensor:
        if device == "meta":
            return torch.empty(work.N, dtype=torch.int64, device=device)
        return torch.randint(most, (work.N,), generator=generator, device=device)

    found: dict[str, Any] = {}
    parameters = [p for p in inspect.signature(loss).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    names = {p.name for p in parameters}
    for name in (p.name for p in parameters if p.default is p.empty):
        if name == "logits":
            found[name] = rows(work.N, work.classes)
        elif name == "target" and names & {"x1", "x2"}:
            found[name] = indices(2)
        elif name == "target" and loss in (fusedloss.binary_cross_entropy_loss, fusedloss.sigmoid_focal_loss):
            found[name] = (rows(work.N, work.classes).detach() > 0).to(dtype)
        elif name in ("labels", "target"):
            found[name] = indices(work.classes if name == "target" else max(2, work.N // 32))
        elif name in NUMBERS:
            found[name] = torch.tensor(NUMBERS[name], device=device, requires_grad=True)
        else:
            found[name] = rows(work.classes if name in CLASSES else work.N, work.D)
    return found


def step(work: Workload, device: str, inputs: dict[str, Any] | None = None) -> Run:
    """Forward and backward of a workload: the value, and the gradients of all that want one."""
    inputs = inputs or arguments(work, device)
    wanted = [t for t in inputs.values() if t.requires_grad]
    loss = LOSSES[work.loss]

    def run() -> tuple[Tensor, ...]:
        value = loss(**inputs, **work.keywords)
        return value.detach(), *torch.autograd.grad(value, wanted)

    return run
