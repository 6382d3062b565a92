"""The custom ops of given logits, and their backward; as in `ops`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .backends import resolve_backend
from .ops import call_backend, no_double_backward, register_fake
from .states import loss_dtype, state_dtype


def _logits_op(name: str, schema: str, fake: Any) -> Any:
    """The op of a fold of logits. Whether its backward may overwrite them is no business of the backend."""

    def without(function: Any) -> Any:
        return lambda *args: function(*args[:-2], args[-1])

    function = without(partial(call_backend, name))
    op = torch.library.custom_op(
        f"fusedloss::{name}", function, mutates_args=(),
        schema=f"(Tensor z, {schema}, bool overwrite, str backend) -> Tensor",
    )  # fmt: skip
    register_fake(op, name, function, without(fake))
    return op


def _dz_ops(name: str, schema: str) -> tuple[Any, Any]:
    """Two ops of a backend function that writes dz into its last tensor: into new memory, and in the place of z."""

    def into_new(z: Tensor, *args: Any) -> Tensor:
        out = torch.empty_like(z, memory_format=torch.contiguous_format)
        call_backend(name, z, *args[:-1], out, args[-1])
        return out

    def in_place(z: Tensor, *args: Any) -> None:
        call_backend(name, z, *args[:-1], z, args[-1])

    library, arguments = torch.library.custom_op, f"{schema}, str backend)"
    new = library(f"fusedloss::{name}", into_new, mutates_args=(), schema=f"(Tensor z, {arguments} -> Tensor")
    register_fake(new, name, into_new, lambda z, *_: z.new_empty(z.shape))
    new.register_autograd(no_double_backward)
    over = library(f"fusedloss::{name}_over", in_place, mutates_args=["z"], schema=f"(Tensor(a!) z, {arguments} -> ()")
    return new, over


def _dz(overwrite: bool, new: Any, over: Any, z: Tensor, *args: Any) -> Tensor:
    """dz, in the place of z if it may be overwritten: autograd then refuses what saved z too and still needs it."""
    if not overwrite or torch.is_grad_enabled():  # create_graph: z is needed again
        return new(z, *args)
    z = z.detach()
    over(z, *args)
    return z


fold_logits_op = _logits_op(
    "fold_logits",
    "Tensor target, Tensor? weight, float smoothing, bool sums",
    lambda z, target, weight, smoothing, sums, *_: z.new_empty(
        2 + sums, z.shape[0] * z.shape[2], dtype=state_dtype(z)
    ),
)  # fmt: skip
logits_grad_op, logits_grad_over_op = _dz_ops(
    "logits_grad", "Tensor target, Tensor? weight, Tensor states, Tensor dstates, float smoothing"
)


def _logits_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    z, target, weight, ctx.smoothing, _, ctx.overwrite, ctx.backend = inputs
    ctx.save_for_backward(z, target, weight, output)


def _logits_backward(ctx: Any, dstates: Tensor) -> Any:
    z, target, weight, states = ctx.saved_tensors
    dtarget = None
    if ctx.needs_input_grad[1]:  # by the probabilities, from the logits before they are overwritten
        first, _, total = dstates.view(3, z.shape[0], 1, z.shape[2]).to(loss_dtype(z))
        shares = torch.addcmul(first, total, z.to(first.dtype)).mul_(1 - ctx.smoothing)
        dtarget = (shares if weight is None else shares * weight[:, None]).to(target.dtype)
    given = (z, target, weight, states, dstates, ctx.smoothing, ctx.backend)
    dz = _dz(ctx.overwrite, logits_grad_op, logits_grad_over_op, *given)
    return dz, dtarget, *[None] * 5


fold_logits_op.register_autograd(_logits_backward, setup_context=_logits_setup)


def fold_logits(
    z: Tensor, target: Tensor, weight: Tensor | None, smoothing: float = 0.0, *, sums: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Row states of logits [N, C, P]; rows are the samples n and places p, [N P] each.

    target [N P], the own class of each row (-1 for none): the logit of that class, log sum exp of the others and, if
    `sums`, the weighted sum of all. target [N, C, P], probabilities: with the shares b = weight (smoothed target) of
    the classes the sum of b, log sum exp of all classes and the sum of b times logit.
    Differentiable by probabilities and by z, whose memory may hold its gradient afterwards if `overwrite`.
    """
    spec = (smoothing, sums, overwrite and not torch.compiler.is_compiling(), resolve_backend(z))
    return fold_logits_op(z, target, weight, *spec).unbind()


fold_elements_op = _logits_op(
    "fold_elements",
    "Tensor target, Tensor? weight, Tensor? pos_weight, str loss, float[] numbers, bool total",
    lambda z, target, weight, pos_weight, loss, numbers, total, *_: (
        z.new_empty((), dtype=state_dtype(z)) if total else z.new_empty(z.shape, dtype=loss_dtype(z))
    ),
)
elements_grad_op, elements_grad_over_op = _dz_ops(
    "elements_grad", "Tensor target, Tensor? weight, Tensor? pos_weight, Tensor dout, str loss, float[] numbers"
)


def _elements_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    *tensors, loss, numbers, _, ctx.overwrite, ctx.backend = inputs
    ctx.spec = (loss, numbers)
    ctx.save_for_backward(*tensors)


def _elements_backward(ctx: Any, dout: Tensor) -> Any:
    saved = ctx.saved_tensors
    dz = _dz(ctx.overwrite, elements_grad_op, elements_grad_over_op, *saved, dout, *ctx.spec, ctx.backend)
    return dz, *[None] * 8


fold_elements_op.register_autograd(_elements_backward, setup_context=_elements_setup)


def fold_elements(
    z: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, loss: str, numbers: Sequence[float], *,
    total: bool, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of every logit, in the shape of z, or if `total` their sum.

    weight, pos_weight: factors of the elements and of their positive part, as many as z has or of a period of it.
    Differentiable by z, whose memory may hold its gradient afterwards if `overwrite`.
    """
    spec = (loss, list(numbers), total, overwrite and not torch.compiler.is_compiling(), resolve_backend(z))
    return fold_elements_op(z, target, weight, pos_weight, *spec)
