"""Losses whose closing formula is computed beside the folds, where a backend can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import backends, groups
from ..backends import resolve_backend
from ..backends.request import Close, Fold, Wants
from ..checks import Batch
from .folds import requested
from .registration import Function, flat, keep, kept, on_device_of, rebuilt, transformed


def close(
    batch: Batch, loss: str, metric: str, closing: str, reduction: str, *, constants: tuple[float, ...] = (),
    count: int | Tensor | None = None, classes: Tensor | None = None, weights: Tensor | None = None, **folded: Any,
) -> Tensor | None:  # fmt: skip
    """The loss that a closing formula makes of `fold`'s states, or None where PyTorch has to compute the formula.

    closing: a name of `CLOSINGS`; its states are those of pos and neg.
    reduction: "sum", or a mean.
    constants, count, classes, weights: see `Close`; the count is its divisor.
    """
    if reduction == "none" or groups.current() is not None or groups.sharded() is not None:
        return None
    request = requested(batch, loss, metric, **folded)
    x, y, numbers, offsets = request.batch.x, request.batch.y, request.numbers, request.offsets
    backend, given = resolve_backend(x), [t for t in flat(request) if isinstance(t, Tensor)]
    if backend != "triton" or not direct(given):
        return None
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if closing == "sums" and not wanted:
        return None
    c = Close(request, closing, constants, reduction != "sum", count, classes, weights)
    found: Tensor = Closed.apply(x, y, numbers, offsets, c, backend)
    return found


def direct(tensors: list[Tensor]) -> bool:
    """Whether a call is eager and its tensors are plain, so that kernels can be launched; or only recorded."""
    if torch.compiler.is_compiling() or transformed() or torch.autograd.forward_ad._current_level >= 0:
        return False
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return False
    return tensors[0].is_meta or not torch._C._len_torch_dispatch_stack()


class Closed(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, numbers: Tensor, offsets: Tensor | None, c: Close, backend: str
    ) -> Tensor:  # fmt: skip
        values = [t.detach().contiguous() if isinstance(t, Tensor) else t for t in flat(c.fold)]
        c = c._replace(fold=rebuilt(Fold, values))
        with on_device_of(x):
            loss, saved = backends.module(backend).fold_close(c, wants(c.fold, ctx.needs_input_grad))
        ctx.backend, ctx.saved = backend, without_tensors(saved)
        keep(ctx, values, [*tensors_in(saved)])
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        values, tensors = kept(ctx)
        f = rebuilt(Fold, values)
        with torch.no_grad(), on_device_of(f.batch.x):
            saved = with_tensors(ctx.saved, iter(tensors))
            of = wants(f, ctx.needs_input_grad)
            found = backends.module(ctx.backend).fold_close_grad(f, saved, dloss, of)
        needed = ctx.needs_input_grad[:4]
        found = [t if wanted else None for t, wanted in zip(found, needed, strict=True)]
        if torch.is_grad_enabled():
            found = Once.apply(dloss, *found)
        return (*found, None, None)


def wants(f: Fold, needed: tuple[bool, ...]) -> Wants:
    x, y, numbers, offsets = needed[:4]
    of_x, of_y = (t is not None and offsets for t in f.split_offsets)
    return Wants(x, y, numbers, of_x, of_y and f.batch.y is not None)


class Once(torch.autograd.Function):
    """Derivatives that have none."""

    @staticmethod
    def forward(ctx: Any, dloss: Tensor, *derivatives: Tensor | None) -> Any:
        return tuple(None if t is None else t.view_as(t) for t in derivatives)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("fusedloss losses can be differentiated once: double backward is not implemented")


# Nested tuples with and without their tensors, which autograd saves apart.
HERE = object()


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for inner in value:
            yield from tensors_in(inner)


def without_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return mapped(value, [without_tensors(inner) for inner in value])
    return HERE if isinstance(value, Tensor) else value


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, tuple):
        return mapped(value, [with_tensors(inner, tensors) for inner in value])
    return next(tensors) if value is HERE else value


def mapped(like: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)
