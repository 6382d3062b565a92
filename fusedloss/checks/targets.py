"""Targets: classes of rows, given logits and their answers, similar pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import tensors
from .tensors import first_of, ignored_rows, one_a_row, tensor, without

IGNORED, WRONG = -1, -2  # the classes of rows that do not count, and of rows whose class is out of range


def class_indices(
    name: str, target: object, shape: torch.Size, C: int, x: Tensor, ignore_index: int | None = None
) -> Tensor:
    """The class of every row of x, from 0 to C - 1, or IGNORED where the target is ignore_index. int64, flat

    A target out of range is an error on a CPU, where looking needs no sync; elsewhere the class is WRONG.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a tensor of class indices, got {type(target).__name__}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{name} must be class indices of an integer dtype, got {target.dtype}")
    if target.shape != shape:
        advice = one_a_row(name, target, x.shape[0])
        raise ValueError(f"{name} must have shape {tuple(shape)}, one class a row, got {tuple(target.shape)}{advice}")
    if target.device != x.device:
        raise ValueError(f"{name} must be on the device of the rows, {x.device}, got {target.device}")
    given = target.reshape(-1).to(torch.int64)
    if tensors.readable(given) and given.numel():
        low, high = (int(extreme) for extreme in given.aminmax())
        if low >= 0 and high < C and (ignore_index is None or not low <= ignore_index <= high):
            return given
    inside = (given >= 0) & (given < C)
    found = given.where(inside, WRONG)
    if ignore_index is not None:
        found = found.masked_fill(given == ignore_index, IGNORED)
    if tensors.readable(found) and bool((found == WRONG).any()):
        ignored = "" if ignore_index is None else f" or ignore_index ({ignore_index})"
        raise ValueError(f"{name} must be class indices from 0 to {C - 1}{ignored}, got {given[found == WRONG][0]}")
    return found


def with_classes(x: Tensor, target: object, C: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Rows x, with zeros in place of the ignored ones, and the class of every row."""
    index = class_indices("target", target, x.shape[:1], C, x, ignore_index)
    return without(x, None if ignore_index is None else ignored_rows(index, IGNORED)), index


def floating(name: str, values: object, x: Tensor, *, constant: bool) -> Tensor:
    """A floating tensor on the device of x, which must not require a gradient if it is a constant."""
    values = tensor(name, values)
    if values.device != x.device:
        raise ValueError(f"{name} must be on the device of the rows, {x.device}, got {values.device}")
    if constant and values.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, which it does not receive: detach it, got {values.shape}"
        )
    return values


def of_each(name: str, values: object, what: str, n: int, x: Tensor, *, constant: bool) -> Tensor:
    """A floating tensor [n], one value for each of n things, such as the rows; `what` names one of them."""
    found = floating(name, values, x, constant=constant)
    if found.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one value a {what}, got {tuple(found.shape)}")
    return found


def factors(name: str, values: Tensor, z: Tensor) -> Tensor:
    """A floating tensor that broadcasts to z, flattened: as many elements as z has, or one period of them."""
    found = floating(name, values, z, constant=True)
    lead = z.dim() - found.dim()
    if lead < 0 or any(n not in (1, m) for n, m in zip(found.shape, z.shape[lead:], strict=True)):
        raise ValueError(f"{name} must broadcast to the shape of logits, {tuple(z.shape)}, got {tuple(found.shape)}")
    while found.dim() and found.shape[0] == 1:
        found = found[0]
    repeats = found.shape == z.shape[z.dim() - found.dim() :]
    return (found if repeats else found.expand(z.shape)).flatten()


def logits(x: object, overwrite: bool, *, classes: bool = False) -> Tensor:
    """A floating tensor, [N, C, ...] if it has classes; if `overwrite`, one that the backward may overwrite."""
    x = tensor("logits", x)
    if classes and (x.dim() < 2 or x.shape[1] == 0):
        raise ValueError(f"logits must have shape (N, C, ...) with C >= 1, got {tuple(x.shape)}")
    if overwrite and x.requires_grad and (x if x._base is None else x._base).is_leaf:
        raise ValueError(f"overwrite_logits must be False for a leaf, whose values it would destroy, got {overwrite}")
    return x


def like_logits(name: str, target: object, z: Tensor, *, constant: bool) -> Tensor:
    """A real tensor in the shape of z, which must not require a gradient if it is a constant."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(target).__name__}")
    if target.is_complex():
        raise TypeError(f"{name} must be real, got {target.dtype}")
    if target.shape != z.shape:
        raise ValueError(f"{name} must have the shape of logits, {tuple(z.shape)}, got {tuple(target.shape)}")
    if target.device != z.device:
        raise ValueError(f"{name} must be on the device of logits, {z.device}, got {target.device}")
    if constant and target.requires_grad:
        raise ValueError(f"{name} must not require a gradient, which it does not receive: detach it")
    return target


def answers(name: str, target: object, z: Tensor) -> Tensor:
    """A constant for every logit, from 0 to 1, which is checked where that needs no sync."""
    t = like_logits(name, target, z, constant=True)
    if tensors.readable(t) and t.numel() and t.dtype != torch.bool:
        low, high = (extreme.item() for extreme in t.detach().aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name} must be from 0 to 1 everywhere, got values from {low:g} to {high:g}")
    return t


def of_given_pairs(target: object, x: Tensor) -> Tensor:
    """A real constant for every row of x."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.shape != x.shape[:1]:
        raise ValueError(f"target must have shape ({x.shape[0]},), one value a pair, got {tuple(target.shape)}")
    if target.device != x.device:
        raise ValueError(f"target must be on the device of x1, {x.device}, got {target.device}")
    if target.is_complex():
        raise TypeError(f"target must be real, got {target.dtype}")
    if target.requires_grad:
        raise ValueError("target must not require a gradient, which it does not receive: detach it")
    return target


def grades(target: object, x: Tensor) -> Tensor:
    """How similar given pairs ought to be, in a dtype that sorts: int64, float32 or float64. [N]

    NaN is an error on a CPU, where looking needs no sync.
    """
    found = of_given_pairs(target, x)
    if not found.is_floating_point():
        return found.to(torch.int64)
    if tensors.readable(found) and (i := first_of(found.isnan())) is not None:
        raise ValueError(f"target must not be NaN anywhere, got nan in row {i}")
    return found.to(torch.promote_types(found.dtype, torch.float32))


def similar_pairs(target: object, similar: int, x: Tensor) -> Tensor:
    """How similar given pairs are, from a target in either convention: bool, or, from a floating target, shares from 0
    to 1 in the dtype of the loss. [N]

    Any other value is an error on a CPU, where looking needs no sync; elsewhere the share is NaN.
    """
    target = of_given_pairs(target, x)
    if target.dtype == torch.bool:
        return target if similar == 1 else ~target
    graded, read = target.is_floating_point(), tensors.readable(target)
    if graded or read:
        values = target if graded else target.long()  # unsigned integers have no -1
        known = (values >= 0) & (values <= 1)
        known = known | (values == -1) if similar == 1 else known
        if read and (i := first_of(~known)) is not None:
            signs = " (or -1, not similar)" if similar == 1 else ", where similar is 0"
            raise ValueError(f"target must be from 0 to 1{signs}, got {target[i].item()} in row {i}")
    if not graded:
        return target == similar
    share = target.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=0)
    return (share if similar == 1 else 1 - share).masked_fill(~known, torch.nan)
