"""Folds and triplets that are called without a custom op, so that the backward has what the forward prepared.

That is every eager call on plain tensors; calls of other kinds go through the operations of `folds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends.request import Close, Fold, FoldGrad, Wants
from ..backends.triplet_requests import Triplets, TripletsGrad
from .registration import OPERATIONS, VMAP, Function, flat, keep, kept, on_device_of, rebuilt, transformed

# The functions of the backends for a loss or states with what their backward needs, and for the derivatives from that.
FUNCTIONS = {Fold: ("fold_close", "fold_close_grad"), Triplets: ("keep_triplets", "kept_triplets_grad")}


def possible(tensors: Sequence[Tensor], backend: str, closing: str = "") -> bool:
    """Whether the backend has the closing formula, or "triplets", the call is eager and its tensors are plain, so that
    kernels can be launched; or only recorded."""
    if torch.compiler.is_compiling() or transformed() or closing not in backends.module(backend).CLOSED:
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return False
    if tensors[0].is_meta:
        return backend == "triton"
    return not torch._C._len_torch_dispatch_stack()


def apply(request: Close | Triplets, backend: str) -> Tensor:
    """The loss, or the states if there is no closing formula."""
    numbers, offsets = (request.margin, None) if isinstance(request, Triplets) else request.fold[1:3]
    batch = folded(request).batch
    found: Tensor = Direct.apply(batch.x, batch.y, numbers, offsets, request, backend)
    return found


def folded(request: Close | Triplets) -> Fold | Triplets:
    """What is folded before it is closed."""
    return request.fold if isinstance(request, Close) else request


def called(backend: str, name: str, x: Tensor, *given: Any) -> Any:
    """What a function of a backend returns."""
    function = getattr(backends.module(backend), name)
    with on_device_of(x):
        found = function(*given)
        if backends.after_call is not None:
            backends.after_call(function, given)
    return found


class Direct(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, numbers: Tensor, offsets: Tensor | None, request: Close | Triplets,
        backend: str,
    ) -> Tensor:  # fmt: skip
        kind = type(folded(request))
        values = [t.detach().contiguous() if isinstance(t, Tensor) else t for t in flat(folded(request))]
        f = rebuilt(kind, values)
        given = request._replace(fold=f) if isinstance(request, Close) else f
        found, saved = called(backend, FUNCTIONS[kind][0], x, given, wants(f, ctx.needs_input_grad))
        ctx.backend, ctx.kind, ctx.saved = backend, kind, without_tensors(saved)
        keep(ctx, [x, y, numbers, offsets, *values], tensors_in(saved))
        result: Tensor = found
        return result

    @staticmethod
    def backward(ctx: Any, derivative: Tensor) -> Any:
        (x, y, numbers, offsets, *values), tensors = kept(ctx)
        f, saved = rebuilt(ctx.kind, values), with_tensors(ctx.saved, iter(tensors))
        of = wants(f, ctx.needs_input_grad)
        with torch.no_grad():
            found = derivatives(f, saved, derivative, of, ctx.backend)
        needed = ctx.needs_input_grad[:4]
        given: list[Tensor | None] = [t if wanted else None for t, wanted in zip(found, needed, strict=True)]
        if torch.is_grad_enabled():
            given = Once.apply(derivative, x, y, numbers, offsets, *given)
        return (*given, None, None)


def derivatives(
    f: Fold | Triplets, saved: Any, derivative: Tensor, of: Wants, backend: str
) -> Sequence[Tensor | None]:  # fmt: skip
    """Those that are wanted, from that of the result."""
    name = FUNCTIONS[type(f)][1]
    if not torch._C._dispatch_tls_is_dispatch_key_included(VMAP):
        found: Sequence[Tensor] = called(backend, name, f.batch.x, f, saved, derivative, of)
        return found
    # The operations take a batch of derivatives.
    if isinstance(f, Triplets):
        *_, states, places, kept = saved
        grad = TripletsGrad(f, places, kept, derivative[0], of.x, of.y)
        dx, dy = OPERATIONS["fusedloss::fold_triplets_grad"](grad, backend)
        return dx, dy, f.by_margin(states, derivative[0]), None
    if derivative.dim():
        states, anchors = tensors_in(saved)[-1], "both" if f.columns else "rows"
        found = OPERATIONS["fusedloss::fold_grad"](FoldGrad(f, states, derivative, *of, anchors), backend)
        return found
    one = torch.ones((), dtype=derivative.dtype, device=f.batch.x.device)
    found = called(backend, name, f.batch.x, f, saved, one, of)
    return [(derivative * t).to(t.dtype) for t in found]


def wants(f: Fold | Triplets, needed: tuple[bool, ...]) -> Wants:
    x, y, numbers, offsets = needed[:4]
    if isinstance(f, Triplets):
        return Wants(x, y, numbers, False, False)
    of_x, of_y = (t is not None and offsets for t in f.split_offsets)
    return Wants(x, y, numbers, of_x, of_y and f.batch.y is not None)


class Once(torch.autograd.Function):
    """Derivatives that have none by anything that they were made from."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> Any:
        return tuple(None if t is None else t.view_as(t) for t in given[5:])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("fusedloss losses can be differentiated once: double backward is not implemented")


# Nested tuples with and without their tensors, which autograd saves apart.
HERE = object()


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for inner in value for t in tensors_in(inner)] if isinstance(value, tuple) else []


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
