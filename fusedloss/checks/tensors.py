"""Checks of floating tensors, the dtype of rows under autocast, and whether values can be read without a sync."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The types of devices that have autocast; found here, once, since compiled code cannot ask.
AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")))
# Names of arguments with rows to compare the first argument with, in places where other losses take labels.
COMPARED = ("x2", "positive", "negative", "key", "negatives", "z2", "text")


def readable(*tensors: Tensor) -> bool:
    """Whether values can be read without waiting for a device: plain CPU tensors, in code that is not compiled."""
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, torch.nn.Parameter)  # a fake tensor has no values, a distributed one not all
        and t.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)  # nor has a tensor inside torch.func's transforms
        for t in tensors
    )


def first_of(found: Tensor) -> int | None:
    """The index of the first True, if there is one."""
    return int(found.int().argmax()) if found.any() else None


def tensor(name: str, values: object, advice: str = "") -> Tensor:
    """A floating tensor. The advice says what to do with a tensor of another dtype."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    if values.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {values.dtype}{advice}")
    return values


def autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    return device.type in AUTOCAST and torch.is_autocast_enabled(device.type)


def rows(name: str, x: object) -> Tensor:
    """A floating [N, D] tensor, in autocast's dtype if autocast is on."""
    x = matrix(name, x)
    if autocast(x.device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def matrix(name: str, x: object) -> Tensor:
    """A floating [N, D] tensor, as it is."""
    advice = of_labels(name, x)
    x = tensor(name, x, advice)
    if x.dim() != 2 or x.shape[1] == 0:
        advice = f": flatten them, {name}.flatten(0, 1)" if x.dim() == 3 else advice
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, got {tuple(x.shape)}{advice}")
    return x


def of_labels(name: str, x: object) -> str:
    """Advice for the end of an error where labels were given in place of rows: which losses take labels."""
    if name not in COMPARED or not isinstance(x, Tensor) or x.dim() != 1:
        return ""
    return ": this loss takes rows there; losses by labels are supcon_loss, batch_hard_triplet_loss and others"


def one_a_row(name: str, given: Tensor, N: int) -> str:
    """Advice for the end of an error where labels or classes have columns: how to make one per row of N."""
    if given.dim() != 2 or given.shape[0] != N:
        return ""
    return f": take {name}.flatten()" if given.shape[1] == 1 else f": of one-hot ones take {name}.argmax(1)"


def unrounded(names: Sequence[str], tensors: Sequence[object]) -> list[Tensor]:
    """Several floating [N, D] tensors for a loss without products of all pairs, in which autocast rounds nothing. If
    autocast has made their dtypes differ, they are returned in the widest."""
    found = [matrix(n, t) for n, t in zip(names, tensors, strict=True)]
    if autocast(found[0].device):
        widest = functools.reduce(torch.promote_types, (t.dtype for t in found))
        return [t.to(widest) for t in found]
    return found


def given_rows(names: Sequence[str], tensors: Sequence[object]) -> list[Tensor]:
    """Several [N, D] tensors, in which row i is compared with row i of the others alone."""
    return alike(names, unrounded(names, tensors))


def same_rows(names: Sequence[str], tensors: Sequence[object]) -> list[Tensor]:
    """Several [N, D] tensors that belong together row by row."""
    return alike(names, [rows(n, t) for n, t in zip(names, tensors, strict=True)])


def alike(names: Sequence[str], checked: list[Tensor]) -> list[Tensor]:
    """Tensors of one shape, dtype and device."""
    for name, t in zip(names[1:], checked[1:], strict=True):
        if t.shape != checked[0].shape:
            raise ValueError(
                f"{name} must have the shape of {names[0]}, {tuple(checked[0].shape)}, got {tuple(t.shape)}"
            )
        same_kind(names[0], checked[0], name, t)
    return checked


def same_kind(name: str, x: Tensor, other_name: str, y: Tensor) -> None:
    if y.dtype != x.dtype:
        raise TypeError(f"{other_name} must have the dtype of {name}, {x.dtype}, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"{other_name} must be on the device of {name}, {x.device}, got {y.device}")


def same_dimensions(name: str, x: Tensor, other_name: str, other: object) -> Tensor:
    """Another [M, D] tensor to compare x with."""
    y = rows(other_name, other)
    comparable(name, x, other_name, y)
    return y


def rows_of_each(name: str, x: Tensor, other_name: str, other: object) -> Tensor:
    """Other rows for each row of x, [N, K, D]."""
    found = tensor(other_name, other)
    if found.dim() != 3 or found.shape[0] != x.shape[0]:
        raise ValueError(
            f"{other_name} must have shape ({x.shape[0]}, K, {x.shape[1]}), K rows for each of {name}, got "
            f"{tuple(found.shape)}"
        )
    return same_dimensions(name, x, other_name, found.flatten(0, 1)).unflatten(0, found.shape[:2])


def comparable(name: str, x: Tensor, other_name: str, y: Tensor) -> None:
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"{other_name} must have the D of {name}, {x.shape[1]}, got shape {tuple(y.shape)}")
    same_kind(name, x, other_name, y)


def ignored_rows(labels: Tensor, ignore_index: int) -> Tensor | None:
    """Which rows have the ignored label, [N] bool; None if no row has it and looking needs no sync."""
    found = labels == ignore_index
    return None if readable(found) and not found.any() else found


def without(x: Tensor, ignored: Tensor | None) -> Tensor:
    """x with zeros in the ignored rows, so that their values, even NaN, have no effect and their gradient is 0."""
    return x if ignored is None else x.masked_fill(ignored[:, None], 0.0)
