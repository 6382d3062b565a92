"""From a record to a function of a backend: each has a `torch.autograd.Function` and a custom op.

An `Operation` is made from one function of the backends, one fake and at most one backward. A plain eager call goes
through the Function: it costs a third of a call of the op, whose first call imports torch._dynamo, and `torch.func`
works through it. The op serves calls that cannot run the code or must not look into it: torch.compile, export, tensor
subclasses, and code under a dispatch mode (fake tensors, make_fx, selective checkpointing).
The arguments of both are the leaves of a record of `backends/request.py`, then the backend's name. The op takes floats
as tensors on the CPU, whose values may change without a new compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import filterfalse
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .. import backends, checks

TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", bool: "bool", int: "int", int | None: "SymInt?",
    float: "Tensor", list[str]: "str[]", list[float]: "Tensor",
}  # fmt: skip
OPERATIONS: dict[str, Operation] = {}  # by the name of the op


@functools.cache
def inner(kind: Any) -> Any:
    """The record in the first field of a record, if there is one."""
    first = next(iter(get_type_hints(kind).values()))
    return first if hasattr(first, "_fields") else None


@functools.cache
def leaves(kind: Any) -> dict[str, Any]:
    """The types of a record's leaves by name: first those of the record inside it, then its own."""
    hints = get_type_hints(kind)
    return hints if inner(kind) is None else leaves(inner(kind)) | dict(list(hints.items())[1:])


def flat(record: Any) -> list[Any]:
    """The leaves of a record."""
    first, *others = record
    return [*flat(first), *others] if isinstance(first, tuple) else [*record]


def rebuilt(kind: Any, values: Sequence[Any]) -> Any:
    """The record that has these leaves."""
    first = inner(kind)
    if first is None:
        return kind(*values)
    own = len(values) - len(kind._fields) + 1  # where its own leaves begin
    return kind(rebuilt(first, values[:own]), *values[own:])


def schema(kind: Any, returns: str) -> str:
    arguments = ", ".join(f"{TYPES[hint]} {name}" for name, hint in leaves(kind).items())
    return f"({arguments}, str backend) -> {returns}"


def plain(values: Sequence[Any]) -> bool:
    """Whether a call is eager, and its tensors have values and are not of a subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._dispatch_tls_is_dispatch_key_included(VMAP):
        return False
    tensors = [value for value in values if isinstance(value, Tensor)]
    return not any(type(tensor) not in PLAIN or tensor.is_meta for tensor in tensors)


VMAP = torch._C._dispatch_key_parse("VmapMode")  # is_grads_batched, which looks into Functions; parsed once
PLAIN = (Tensor, torch.nn.Parameter)
unwrap = torch._C._functorch.unwrap_if_dead


def transformed() -> bool:
    """Whether this is inside a transform of torch.func."""
    return torch._C._are_functorch_transforms_active()


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Kernels launch on the current device; products inside a backend keep their precision under autocast."""
    device = torch.cuda.device_of(x) if x.is_cuda else nullcontext()
    return without_autocast(x.device.type, device) if checks.autocast(x.device) else device


@contextmanager
def without_autocast(kind: str, device: AbstractContextManager[Any]) -> Iterator[None]:
    with device, torch.autocast(kind, enabled=False):
        yield


def keep(ctx: Any, leaves: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Save for the backward: leaves, some of which are tensors, and tensors that the forward made."""
    ctx.leaves, ctx.places = [*leaves], [i for i, value in enumerate(leaves) if isinstance(value, Tensor)]
    ctx.save_for_backward(*(leaves[i] for i in ctx.places), *outputs)
    for i in ctx.places:
        ctx.leaves[i] = None


def kept(ctx: Any) -> tuple[list[Any], Sequence[Tensor]]:
    saved, leaves = (
        ctx.saved_tensors,
        [*ctx.leaves],
    )  # read once: activation checkpointing unpacks them when they are read
    for i, tensor in zip(ctx.places, saved, strict=False):
        leaves[i] = tensor
    return leaves, saved[len(ctx.places) :]


def as_tensor(values: Any) -> Any:
    """A float, or a list of floats, as the op takes it; as a product, since compiled code lets a product vary."""
    if isinstance(values, list):
        return torch.stack([*map(as_tensor, values)]) if values else torch.empty(0, dtype=torch.float64, device="cpu")
    return values if isinstance(values, Tensor) else torch.ones((), dtype=torch.float64, device="cpu") * values


class Function(torch.autograd.Function):
    """A Function whose forward has no defaults: PyTorch's `apply` reads the signature in every call to fill them in."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if transformed():
            return super().apply(*arguments)
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]


class Operation:
    """A function of the backends, given by name, on one kind of record. Without a backward its derivative is an error.

    backward(record, wanted, backend, outputs, derivatives of the outputs) returns gradients by the names of the leaves.
    `wanted` is a record that says for each leaf whether its gradient is wanted; other gradients are dropped.
    out(record) is the tensor into which the backends write their result, if they do not return it.
    """

    def __init__(
        self, name: str, kind: Any, returns: str, fake: Callable[[Any], Any],
        backward: Callable[..., dict[str, Tensor]] | None = None, *, saves_outputs: bool = True,
        out: Callable[[Any], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.fake = name, kind, fake
        self.backward, self.saves_outputs, self.out = backward, saves_outputs, out
        self.floats = [i for i, hint in enumerate(leaves(kind).values()) if hint in (float, list[float])]
        self.function = self._function()
        self.op = self._op(schema(kind, returns))
        OPERATIONS[f"fusedloss::{name}"] = self

    def __call__(self, record: Any, backend: str) -> Any:
        return self.apply(*flat(record), backend)

    def apply(self, *arguments: Any) -> Any:
        if plain(arguments):
            # Tensors that a transform of torch.func has saved, for a vjp, are wrapped.
            given = [unwrap(value) if isinstance(value, Tensor) else value for value in arguments]
            in_graph = self.backward is not None or torch.is_grad_enabled() or transformed()
            return self.function.apply(*given) if in_graph else self.run(*given)
        given = [*arguments]
        for i in self.floats:
            given[i] = as_tensor(given[i])
        return self.op(*given)

    def run(self, *arguments: Any) -> Any:
        """The backend's function, with contiguous tensors."""
        *values, backend = arguments
        for i in self.floats:
            if isinstance(values[i], Tensor):
                values[i] = values[i].tolist()
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                values[i] = value.contiguous()
        record = rebuilt(self.kind, values)
        out = None if self.out is None else self.out(record)
        function, given = getattr(backends.module(backend), self.name), (record,) if out is None else (record, out)
        with on_device_of(values[0]):
            found = function(*given)
            if backends.after_call is not None:
                backends.after_call(function, given)
            if out is None:
                return found
            torch.autograd.graph.increment_version(out)  # kernels write without autograd's knowledge
            return out

    # What the Function and the op are made of.

    def shapes(self, *arguments: Any) -> Any:
        """Empty results of the right shapes; on the device "meta" the Triton backend runs up to its launches."""
        *values, backend = arguments
        return (
            self.run(*arguments) if values[0].is_meta and backend == "triton" else self.fake(rebuilt(self.kind, values))
        )

    def setup_context(self, ctx: Any, inputs: Any, output: Any) -> None:
        if self.backward is None:
            return
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.set_materialize_grads(False)  # zeros for what is kept for the backward would take as much memory again
        ctx.mark_non_differentiable(*filterfalse(torch.is_floating_point, outputs))
        keep(ctx, inputs, outputs if self.saves_outputs else ())

    def gradients(self, ctx: Any, *derivatives: Tensor | None) -> tuple[Tensor | None, ...]:
        if self.backward is None:
            raise RuntimeError("fusedloss losses can be differentiated once: double backward is not implemented")
        (*values, backend), outputs = kept(ctx)
        *needed, _ = ctx.needs_input_grad
        if all(d is None for d in derivatives):
            return (None,) * len(ctx.needs_input_grad)
        found = self.backward(rebuilt(self.kind, values), rebuilt(self.kind, needed), backend, outputs, derivatives)
        by_leaf = [found.get(name) if wanted else None for name, wanted in zip(leaves(self.kind), needed, strict=True)]
        return (*by_leaf, None)

    def vmap(self, info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        """The calls one after another, since each fills the machine by itself."""
        calls = []
        for i in range(info.batch_size):
            slices = (a.select(d, i) if isinstance(d, int) else a for a, d in zip(arguments, in_dims, strict=True))
            calls.append(self.apply(*slices))
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = tuple(map(torch.stack, zip(*calls, strict=True)))
        return stacked, (0,) * len(stacked)

    def _function(self) -> Any:
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(
                "fusedloss losses have a backward only: forward-mode derivatives (torch.func.jvp, jacfwd, hessian, "
                "torch.autograd.forward_ad) are not implemented, use torch.func.vjp, grad or jacrev"
            )

        methods = {
            "forward": self.run, "setup_context": self.setup_context, "backward": self.gradients, "vmap": self.vmap,
            "jvp": jvp,
        }  # fmt: skip
        name = "".join(word.title() for word in self.name.split("_"))
        return type(name, (Function,), {key: staticmethod(value) for key, value in methods.items()})

    def _op(self, schema: str) -> Any:
        op = torch.library.custom_op(f"fusedloss::{self.name}", self.run, mutates_args=(), schema=schema)
        op.register_fake(self.shapes)
        op.register_autograd(self.gradients, setup_context=self.setup_context)
        op.register_vmap(self.vmap)
        return op
