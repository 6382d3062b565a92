"""Custom ops of the backends' functions: schemas, fakes and derivatives, from the records of `backends/request.py`.

The arguments of an op are the leaves of its record, then the backend's name. The backward is registered on the op
(PyTorch makes the `torch.autograd.Function` from it): a `Function` of our own around an op cannot be traced by
`torch.compile` when no input needs a gradient (torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import filterfalse
from operator import itemgetter
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .. import backends

TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", bool: "bool", int: "int", int | None: "int?",
    float: "float", list[str]: "str[]", list[float]: "float[]",
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {}  # what an op calls, by its name


@functools.cache
def inner(kind: Any) -> Any:
    """The record in the first field of a record, if there is one."""
    first = next(iter(get_type_hints(kind).values()))
    return first if hasattr(first, "_fields") else None


@functools.cache
def leaves(kind: Any) -> dict[str, Any]:
    """The types of a record's leaves by their names: those of the record inside it, then its own."""
    hints = get_type_hints(kind)
    return hints if inner(kind) is None else leaves(inner(kind)) | dict(list(hints.items())[1:])


def flat(record: Any) -> list[Any]:
    """The leaves of a record."""
    first, *others = record
    return [*flat(first), *others] if isinstance(first, tuple) else [*record]


def rebuilt(kind: Any, values: Sequence[Any]) -> Any:
    """The record of these leaves."""
    if inner(kind) is None:
        return kind(*values)
    own = len(kind._fields) - 1
    return kind(rebuilt(inner(kind), values[: len(values) - own]), *values[len(values) - own :])


def schema(kind: Any, returns: str) -> str:
    arguments = ", ".join(f"{TYPES[hint]} {name}" for name, hint in leaves(kind).items())
    return f"({arguments}, str backend) -> {returns}"


def call(name: str, kind: Any, *arguments: Any, out: tuple[Tensor, ...] = ()) -> Any:
    """A function of a backend on the record of these leaves, with contiguous tensors. The last names the backend."""
    *values, backend = arguments
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            values[i] = value.contiguous()
    function, given = getattr(backends.module(backend), name), (rebuilt(kind, values), *out)
    device = values[0].device
    autocast = torch.amp.is_autocast_available(device.type)
    # Kernels launch on the current device; products inside a backend keep their precision under autocast.
    with torch.cuda.device_of(values[0]), torch.autocast(device.type, enabled=False) if autocast else nullcontext():
        found = function(*given)
        if backends.after_call is not None:
            backends.after_call(function, given)
        return found


def register(name: str, kind: Any, returns: str, fake: Callable[[Any], Any]) -> Any:
    """The custom op of a backend's function. On the device "meta" the Triton backend goes as far as its launches."""

    function = functools.partial(call, name, kind)

    def shapes(*arguments: Any) -> Any:
        if arguments[0].is_meta and arguments[-1] == "triton":
            return function(*arguments)
        return fake(rebuilt(kind, arguments[:-1]))

    return custom_op(name, function, schema(kind, returns), shapes)


def custom_op(name: str, function: Any, schema: str, fake: Any, mutates: Sequence[str] = ()) -> Any:
    op = torch.library.custom_op(f"fusedloss::{name}", function, mutates_args=mutates, schema=schema)
    op.register_fake(fake)
    FUNCTIONS[f"fusedloss::{name}"] = function
    return op


def register_grad(name: str, kind: Any, returns: str, fake: Callable[[Any], Any]) -> Any:
    """The op of a gradient: a double backward through it is an error that says so."""
    op = register(name, kind, returns, fake)
    op.register_autograd(no_double_backward)
    return op


def no_double_backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("fusedloss losses can be differentiated once: double backward is not implemented")


def differentiable(
    op: Any, kind: Any, backward: Callable[..., dict[str, Tensor]], *, saves_outputs: bool = True
) -> None:
    """Make an op differentiable: backward(record, wanted, backend, outputs, their derivatives) -> gradients by name.

    `wanted` is a record of whether each leaf wants its gradient; the gradients of others are dropped.
    """
    names = [*leaves(kind)]
    tensors = [i for i, hint in enumerate(leaves(kind).values()) if hint in (Tensor, Tensor | None)]
    saved_leaves = itemgetter(*tensors)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*filterfalse(torch.is_floating_point, outputs))
        ctx.save_for_backward(*saved_leaves(inputs), *(outputs if saves_outputs else ()))
        ctx.leaves = [*inputs]
        for i in tensors:
            ctx.leaves[i] = None

    def run(ctx: Any, *derivatives: Tensor) -> Any:
        saved = ctx.saved_tensors  # read once: activation checkpointing unpacks them as they are read
        *values, backend = ctx.leaves
        for i, tensor in zip(tensors, saved, strict=False):
            values[i] = tensor
        *needed, _ = ctx.needs_input_grad
        outputs = saved[len(tensors) :]
        found = backward(rebuilt(kind, values), rebuilt(kind, needed), backend, outputs, derivatives)
        gradients: list[Tensor | None] = [None] * len(ctx.leaves)
        for i, name in enumerate(names):
            if needed[i]:
                gradients[i] = found.get(name)
        return tuple(gradients)

    op.register_autograd(run, setup_context=setup)
