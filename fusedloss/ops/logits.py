"""Losses of given logits, whose gradient may take their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import resolve_backend
from ..backends.dtypes import loss_dtype, state_dtype
from ..backends.request import Elements, ElementsGrad, Logits, LogitsGrad
from .registration import call, custom_op, differentiable, flat, no_double_backward, register, schema


def _dz_ops(name: str, kind: Any) -> tuple[Any, Any]:
    """Two ops of a backend's function that writes dz into a tensor: into new memory, and into that of z."""

    def into_new(z: Tensor, *arguments: Any) -> Tensor:
        out = torch.empty_like(z, memory_format=torch.contiguous_format)
        call(name, kind, z, *arguments, out=(out,))
        return out

    def in_place(z: Tensor, *arguments: Any) -> None:
        if z.is_contiguous():
            call(name, kind, z, *arguments, out=(z,))
        else:
            z.copy_(into_new(z, *arguments))

    new = custom_op(name, into_new, schema(kind, "Tensor"), lambda z, *arguments: _new_dz(into_new, z, *arguments))
    new.register_autograd(no_double_backward)
    mutating = schema(kind, "()").replace("(Tensor z", "(Tensor(a!) z", 1)
    over = custom_op(f"{name}_over", in_place, mutating, lambda *arguments: None, mutates=["z"])
    return new, over


def _new_dz(into_new: Any, z: Tensor, *arguments: Any) -> Tensor:
    return into_new(z, *arguments) if z.is_meta and arguments[-1] == "triton" else z.new_empty(z.shape)


def _dz(overwrite: bool, new: Any, over: Any, request: Any, backend: str) -> Tensor:
    """dz, in the place of z if it may be overwritten: autograd then refuses what saved z too and still needs it."""
    z, *others = flat(request)
    if not overwrite or torch.is_grad_enabled():  # create_graph: z is needed again
        return new(z, *others, backend)
    z = z.detach()
    over(z, *others, backend)
    return z


def _logits_fake(r: Logits) -> Tensor:
    return r.z.new_empty(2 + r.sums, r.z.shape[0] * r.z.shape[2], dtype=state_dtype(r.z))


fold_logits_op = register("fold_logits", Logits, "Tensor", _logits_fake)
logits_grad_op, logits_grad_over_op = _dz_ops("logits_grad", LogitsGrad)


def _logits_backward(r: Logits, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    (states,), (dstates,), found = outputs, derivatives, {}
    if wanted.target:  # the probabilities', from the logits before they are overwritten
        first, _, total = dstates.view(3, r.z.shape[0], 1, r.z.shape[2]).to(loss_dtype(r.z))
        shares = torch.addcmul(first, total, r.z.to(first.dtype)).mul_(1 - r.smoothing)
        found["target"] = (shares if r.weight is None else shares * r.weight[:, None]).to(r.target.dtype)
    found["z"] = _dz(r.overwrite, logits_grad_op, logits_grad_over_op, LogitsGrad(r, states, dstates), backend)
    return found


differentiable(fold_logits_op, Logits, _logits_backward)


def fold_logits(
    z: Tensor, target: Tensor, weight: Tensor | None, smoothing: float = 0.0, *, sums: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Row states of logits [N, C, P], see `Logits`.

    Differentiable by probabilities and by z, whose memory may hold its gradient afterwards if `overwrite`.
    """
    request = Logits(z, target, weight, smoothing, sums, overwrite and not torch.compiler.is_compiling())
    return fold_logits_op(*request, resolve_backend(z)).unbind()


def _elements_fake(r: Elements) -> Tensor:
    if r.total:
        return r.z.new_empty((), dtype=state_dtype(r.z))
    return r.z.new_empty(r.z.shape, dtype=loss_dtype(r.z))


fold_elements_op = register("fold_elements", Elements, "Tensor", _elements_fake)
elements_grad_op, elements_grad_over_op = _dz_ops("elements_grad", ElementsGrad)


def _elements_backward(r: Elements, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    request = ElementsGrad(r, derivatives[0])
    return {"z": _dz(r.overwrite, elements_grad_op, elements_grad_over_op, request, backend)}


differentiable(fold_elements_op, Elements, _elements_backward, saves_outputs=False)


def fold_elements(
    z: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, loss: str, numbers: Sequence[float], *,
    total: bool, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of every logit, or if `total` their sum, see `Elements`.

    Differentiable by z, whose memory may hold its gradient afterwards if `overwrite`.
    """
    overwrite = overwrite and not torch.compiler.is_compiling()
    request = Elements(z, target, weight, pos_weight, loss, [*numbers], total, overwrite)
    return fold_elements_op(*request, resolve_backend(z))
