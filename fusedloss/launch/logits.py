"""Losses of given logits: softmax over the classes of a row, or every element for itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import configs, logits
from ..states import state_dtype
from .common import Launch, cdiv, merge
from .folds import encoded

ELEMENT_LOSSES = {
    "binary_cross_entropy": logits.binary_cross_entropy,
    "sigmoid_focal": logits.sigmoid_focal,
}


def row_launch(
    kernel: Any, z: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, outs: tuple[Any, ...], sums: bool,
    splits: int | None,
) -> Launch:  # fmt: skip
    """`fold_logits`, whose classes are split, or `logits_grad`, a program of which has one block of classes."""
    N, C, P = z.shape
    BM, BC = class_tile(C, P)
    options = dict(INDICES=not target.is_floating_point(), SUMS=sums, BM=BM, BC=BC, num_warps=configs.CLASS_WARPS)
    numbers = (1 - smoothing, smoothing / max(C, 1))
    args = (z, target, () if weight is None else (weight,), numbers, *outs, N * P, C, P)
    return Launch(kernel, (cdiv(N * P, BM), cdiv(C, BC) if splits is None else splits), args, options)


def class_tile(C: int, P: int) -> tuple[int, int]:
    """Rows and classes of a tile: along what lies side by side in memory, as far as there is of it."""
    across = 1 << (C - 1).bit_length() if C else 1
    BC = min(across, configs.CLASS_TILE if P == 1 else configs.CLASSES_APART)
    return max(1, configs.CLASS_TILE // BC), BC


def fold_logits(z: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, sums: bool) -> Tensor:
    """Row states [folds, R] of logits [N, C, P]."""
    N, C, P = z.shape
    BM, BC = class_tile(C, P)
    splits = max(1, min(configs.SPLIT_TARGET // max(1, cdiv(N * P, BM)), cdiv(C, BC)))
    out = torch.empty(splits, 2 + sums, N * P, dtype=state_dtype(z), device=z.device)
    row_launch(logits.fold_logits, z, target, weight, smoothing, (out,), sums, splits).run()
    return merge(out, encoded(("sum", "lse", "sum")[: 2 + sums]))


def logits_grad(
    z: Tensor, target: Tensor, weight: Tensor | None, states: Tensor, dstates: Tensor, smoothing: float, out: Tensor
) -> None:
    """dz into out, which may be z."""
    outs = ((states, dstates), out)
    row_launch(logits.logits_grad, z, target, weight, smoothing, outs, len(states) == 3, None).run()


def element_launch(
    kernel: Any, z: Tensor, target: Tensor, factors: tuple[Tensor | None, Tensor | None], numbers: list[float],
    outs: tuple[Tensor, ...], loss: str, total: bool,
) -> Launch:  # fmt: skip
    n = z.numel()
    loaded = tuple(() if f is None else (f,) if f.numel() == n else (f, f.numel()) for f in factors)
    options = dict(LOSS=ELEMENT_LOSSES[loss], TOTAL=total, BLOCK=configs.ELEMENTS, num_warps=4)
    target = target.view(torch.uint8) if target.dtype == torch.bool else target
    return Launch(kernel, (cdiv(n, configs.ELEMENTS),), (z, target, *loaded, tuple(numbers), *outs, n), options)


def fold_elements(
    z: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, loss: str, numbers: list[float],
    total: bool,
) -> Tensor:  # fmt: skip
    """The loss of every element in the shape of z, or the sum of all."""
    shape = (cdiv(z.numel(), configs.ELEMENTS),) if total else z.shape
    out = torch.empty(shape, dtype=torch.float32, device=z.device)
    element_launch(logits.fold_elements, z, target, (weight, pos_weight), numbers, (out,), loss, total).run()
    return out.sum(dtype=state_dtype(z)) if total else out


def elements_grad(
    z: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, dout: Tensor, loss: str,
    numbers: list[float], out: Tensor,
) -> None:  # fmt: skip
    """dz into out, which may be z."""
    outs, total = (dout, out), dout.dim() == 0
    element_launch(logits.elements_grad, z, target, (weight, pos_weight), numbers, outs, loss, total).run()
