"""Losses of given logits: a softmax over the classes of a row, or every element by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels import configs, logits
from ...kernels.folds import KINDS
from ..dtypes import state_dtype
from ..request import Elements, ElementsGrad, Logits, LogitsGrad
from .launch import Launch, cdiv, merge, optional

ELEMENT_LOSSES = {
    "binary_cross_entropy": logits.binary_cross_entropy,
    "sigmoid_focal": logits.sigmoid_focal,
}


def class_tile(C: int, P: int) -> tuple[int, int]:
    """The rows and classes of a tile: it is long in the dimension whose elements are neighbours in memory."""
    across = 1 << (C - 1).bit_length() if C else 1
    BC = min(across, configs.CLASS_TILE if P == 1 else configs.CLASSES_APART)
    return max(1, configs.CLASS_TILE // BC), BC


def row_launch(kernel: Any, r: Logits, programs: int, *outs: Any) -> Launch:
    """The launch of a kernel on blocks of rows, whose classes are shared out among the programs."""
    N, C, P = r.z.shape
    BM, BC = class_tile(C, P)
    options = dict(INDICES=not r.target.is_floating_point(), SHARES=r.shares, BM=BM, BC=BC)
    options |= dict(num_warps=configs.CLASS_WARPS)
    smoothing = (1 - r.smoothing, r.smoothing / max(C, 1))
    args = (r.z, r.target, optional(r.weight), smoothing, (KINDS["lse"],), *outs, N * P, C, P)
    return Launch(kernel, (cdiv(N * P, BM), programs), args, options)


def fold_logits(r: Logits) -> Tensor:
    N, C, P = r.z.shape
    BM, BC = class_tile(C, P)
    splits = max(1, min(configs.SPLIT_TARGET // max(1, cdiv(N * P, BM)), cdiv(C, BC)))
    out = torch.empty(splits, 2 + r.shares, N * P, dtype=state_dtype(r.z), device=r.z.device)
    row_launch(logits.fold_logits, r, splits, out).run()
    if r.shares and splits > 1:
        shares, lse, cost = out.unbind(1)
        whole = lse.logsumexp(0)
        cost += shares * (whole - lse.where(lse > -torch.inf, whole))  # costs are relative to a part's lse
    return merge(out, tuple(KINDS[kind] for kind in ("sum", "lse", "sum")[: 2 + r.shares]))


def logits_grad(g: LogitsGrad, out: Tensor) -> None:
    _, C, P = g.forward.z.shape
    programs = cdiv(C, class_tile(C, P)[1])
    row_launch(logits.logits_grad, g.forward, programs, g.states, g.dstates, out).run()


def element_launch(kernel: Any, e: Elements, total: bool, *outs: Tensor) -> Launch:
    n = e.z.numel()
    factors = (() if f is None else (f,) if f.numel() == n else (f, f.numel()) for f in (e.weight, e.pos_weight))
    options = dict(LOSS=ELEMENT_LOSSES[e.loss], TOTAL=total, BLOCK=configs.ELEMENTS, num_warps=4)
    target = e.target.view(torch.uint8) if e.target.dtype == torch.bool else e.target
    args = (e.z, target, *factors, tuple(e.numbers), *outs, n)
    return Launch(kernel, (cdiv(n, configs.ELEMENTS),), args, options)


def fold_elements(e: Elements) -> Tensor:
    shape = (cdiv(e.z.numel(), configs.ELEMENTS),) if e.total else e.z.shape
    out = torch.empty(shape, dtype=torch.float32, device=e.z.device)
    element_launch(logits.fold_elements, e, e.total, out).run()
    return out.sum(dtype=state_dtype(e.z)) if e.total else out


def elements_grad(g: ElementsGrad, out: Tensor) -> None:
    element_launch(logits.elements_grad, g.forward, g.dloss.dim() == 0, g.dloss, out).run()
