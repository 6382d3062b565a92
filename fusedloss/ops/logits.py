"""Losses of given logits, whose gradient may take their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import resolve_backend
from ..backends.dtypes import loss_dtype, state_dtype
from ..backends.request import Elements, ElementsGrad, Logits, LogitsGrad
from .registration import Operation, plain, transformed


def _dz(g: Any) -> Tensor:
    """The tensor into which dz is written: z itself, if it may be overwritten."""
    z = g.forward.z
    return z if g.forward.overwrite else torch.empty_like(z, memory_format=torch.contiguous_format)


def _dz_fake(g: Any) -> Tensor:
    return g.forward.z.new_empty(g.forward.z.shape)


def _may_overwrite(r: Any) -> Any:
    """The request of a backward, which may overwrite z only if nothing needs z again."""
    once = not torch.is_grad_enabled() and not transformed()  # create_graph, vmap
    return r._replace(overwrite=r.overwrite and once and plain([r.z]))


logits_grad_op = Operation("logits_grad", LogitsGrad, "Tensor", _dz_fake, out=_dz)
elements_grad_op = Operation("elements_grad", ElementsGrad, "Tensor", _dz_fake, out=_dz)


def _logits_fake(r: Logits) -> Tensor:
    return r.z.new_empty(2 + r.shares, r.z.shape[0] * r.z.shape[2], dtype=state_dtype(r.z))


def _logits_backward(r: Logits, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    (states,), (dstates,), found = outputs, derivatives, {}
    if wanted.target:  # computed from the logits before they are overwritten
        found["target"] = _dtarget(r, states, dstates)
    if r.shares:
        d_first, d_lse, d_cost = dstates
        dstates = torch.stack([d_first, torch.addcmul(d_lse, d_cost, states[0]), d_cost])
    found["z"] = logits_grad_op(LogitsGrad(_may_overwrite(r), states, dstates), backend)
    return found


def _dtarget(r: Logits, states: Tensor, dstates: Tensor) -> Tensor:
    """The derivative by probabilities; as in `torch.xlogy` it is 0 where a share of 0 meets a logit of -inf."""
    d_first, _, d_cost = dstates.view(3, r.z.shape[0], 1, r.z.shape[2])
    lse, dtype = states[1].view_as(d_cost), loss_dtype(r.z)
    high = lse.to(dtype)
    apart = (high - r.z).add_((lse - high).to(dtype))  # a difference of large numbers, taken before it is a factor
    share = r.target if r.weight is None else r.target * r.weight[:, None]
    apart.masked_fill_((r.z == -torch.inf) & (share == 0), 0.0)
    by_share = torch.addcmul(d_first.to(dtype), d_cost.to(dtype), apart).mul_(1 - r.smoothing)
    return (by_share if r.weight is None else by_share * r.weight[:, None]).to(r.target.dtype)


fold_logits_op = Operation("fold_logits", Logits, "Tensor", _logits_fake, _logits_backward)


def fold_logits(
    z: Tensor, target: Tensor, weight: Tensor | None, smoothing: float = 0.0, *, shares: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Row states of logits [N, C, P], see `Logits`.

    They are differentiable by probabilities and by z, whose memory may hold the gradient afterwards if `overwrite`.
    """
    request = Logits(z, target, weight, smoothing, shares, overwrite)
    return fold_logits_op(request, resolve_backend(z)).unbind()


def _elements_fake(r: Elements) -> Tensor:
    if r.total:
        return r.z.new_empty((), dtype=state_dtype(r.z))
    return r.z.new_empty(r.z.shape, dtype=loss_dtype(r.z))


def _elements_backward(r: Elements, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    return {"z": elements_grad_op(ElementsGrad(_may_overwrite(r), derivatives[0]), backend)}


fold_elements_op = Operation(
    "fold_elements", Elements, "Tensor", _elements_fake, _elements_backward, saves_outputs=False
)  # fmt: skip


def fold_elements(
    z: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, loss: str, numbers: Sequence[float], *,
    total: bool, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of every logit, or if `total` their sum, see `Elements`.

    It is differentiable by z, whose memory may hold the gradient afterwards if `overwrite`.
    """
    request = Elements(z, target, weight, pos_weight, loss, [*numbers], total, overwrite)
    return fold_elements_op(request, resolve_backend(z))
