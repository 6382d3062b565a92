"""Custom ops of the backends' functions: schemas, fakes and derivatives, from the records of `backends/request.py`.

The arguments of an op are the leaves of its record, then the backend's name. The backward is registered on the op
(PyTorch makes the `torch.autograd.Function` from it): a `Function` of our own around an op cannot be traced by
`torch.compile` when no input needs a gradient (torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
def leaves(kind: Any) -> dict[str, Any]:
    """The types of a record's leaves by their names; the fields of a record inside it are leaves too."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        found |= leaves(hint) if hasattr(hint, "_fields") else {name: hint}
    return found


def flat(record: Any) -> list[Any]:
    """The leaves of a record."""
    found: list[Any] = []
    for value in record:
        found += flat(value) if hasattr(value, "_fields") else [value]
    return found


def rebuilt(kind: Any, values: Iterator[Any]) -> Any:
    """The record of these leaves."""
    hints = get_type_hints(kind).values()
    return kind(*(rebuilt(hint, values) if hasattr(hint, "_fields") else next(values) for hint in hints))


def schema(kind: Any, returns: str) -> str:
    arguments = ", ".join(f"{TYPES[hint]} {name}" for name, hint in leaves(kind).items())
    return f"({arguments}, str backend) -> {returns}"


def call(name: str, kind: Any, values: Sequence[Any], backend: str, *out: Tensor) -> Any:
    """A function of a backend on the record of these leaves, with contiguous tensors."""
    x = values[0]
    contiguous = (v.contiguous() if isinstance(v, Tensor) else v for v in values)
    arguments = (rebuilt(kind, contiguous), *out)
    function = getattr(backends.module(backend), name)
    device = x.device.type
    autocast = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    # Kernels launch on the current device; products inside a backend keep their precision under autocast.
    with torch.cuda.device_of(x), autocast:
        found = function(*arguments)
        if backends.after_call is not None:
            backends.after_call(function, arguments)
        return found


def register(name: str, kind: Any, returns: str, fake: Callable[[Any], Any]) -> Any:
    """The custom op of a backend's function. On the device "meta" the Triton backend goes as far as its launches."""

    def function(*arguments: Any) -> Any:
        return call(name, kind, arguments[:-1], arguments[-1])

    def shapes(*arguments: Any) -> Any:
        if arguments[0].is_meta and arguments[-1] == "triton":
            return function(*arguments)
        return fake(rebuilt(kind, iter(arguments[:-1])))

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
    names = list(leaves(kind))
    tensors = [i for i, hint in enumerate(leaves(kind).values()) if hint in (Tensor, Tensor | None)]

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*(o for o in outputs if not o.is_floating_point()))
        ctx.save_for_backward(*(inputs[i] for i in tensors), *(outputs if saves_outputs else ()))
        ctx.leaves = [None if i in tensors else value for i, value in enumerate(inputs)]

    def run(ctx: Any, *derivatives: Tensor) -> Any:
        saved = ctx.saved_tensors  # read once: activation checkpointing unpacks them as they are read
        *values, backend = ctx.leaves
        for i, tensor in zip(tensors, saved, strict=False):
            values[i] = tensor
        needed = ctx.needs_input_grad
        record, wanted = rebuilt(kind, iter(values)), rebuilt(kind, iter(needed))
        found = backward(record, wanted, backend, saved[len(tensors) :], derivatives)
        return *(found.get(name) if need else None for name, need in zip(names, needed, strict=False)), None

    op.register_autograd(run, setup_context=setup)
