"""Arguments are checked here, once, at the boundary: ValueError or TypeError naming the argument and what was seen."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

METRICS = ("euclidean", "sqeuclidean", "cosine", "manhattan")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Batch(NamedTuple):
    """Checked embeddings and labels; `refs` and `ref_labels` are None when the batch is compared with itself."""

    x: Tensor
    refs: Tensor | None
    labels: Tensor
    ref_labels: Tensor | None
    own: bool  # whether the first rows of refs are x

    @property
    def pairs(self) -> int:
        """How many there are, without those of a row with itself."""
        N = len(self.x)
        return N * (N - 1 if self.refs is None else len(self.refs) - self.own)


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def number(name: str, value: object, *, low: float = 0.0, above: bool = False, tensor: bool = True) -> None:
    """A finite number >= low (> low if `above`), or, where a tensor is taken, a 0-d floating one, which is not read."""
    if isinstance(value, Tensor):
        if not tensor or value.dim() != 0 or not value.is_floating_point():
            kind = "a number or a 0-d floating tensor" if tensor else "a number"
            raise TypeError(f"{name} must be {kind}, got a {value.dtype} tensor of shape {tuple(value.shape)}")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    elif not math.isfinite(value) or value < low or (above and value == low):
        raise ValueError(f"{name} must be finite and {'above' if above else 'at least'} {low}, got {value}")


def rows(name: str, x: object) -> Tensor:
    """A floating [N, D] tensor, in the autocast dtype where autocast is on."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, got {tuple(x.shape)}")
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocast and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def same_rows(names: Sequence[str], tensors: Sequence[object]) -> list[Tensor]:
    """Several [N, D] tensors that belong together row by row."""
    checked = [rows(n, t) for n, t in zip(names, tensors, strict=True)]
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
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"{other_name} must have the D of {name}, {x.shape[1]}, got shape {tuple(y.shape)}")
    same_kind(name, x, other_name, y)
    return y


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def index(name: str, value: object, *, low: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def integers(name: str, labels: object, x: Tensor) -> Tensor:
    """One integer label a row of x, as int32 or int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be an integer tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {labels.dtype}")
    if labels.dim() != 1 or len(labels) != len(x):
        raise ValueError(f"{name} must have shape ({len(x)},), one label a row, got {tuple(labels.shape)}")
    if labels.device != x.device:
        raise ValueError(f"{name} must be on the device of the embeddings, {x.device}, got {labels.device}")
    return labels if labels.dtype in (torch.int32, torch.int64) else labels.to(torch.int64)


def batch(
    embeddings: object, labels: object, ref_embeddings: object, ref_labels: object, batch_in_refs: object
) -> Batch:
    flag("batch_in_refs", batch_in_refs)
    x = rows("embeddings", embeddings)
    x_labels = integers("labels", labels, x)
    if (ref_embeddings is None) != (ref_labels is None):
        missing, given = ("ref_labels", "ref_embeddings") if ref_labels is None else ("ref_embeddings", "ref_labels")
        raise ValueError(f"{missing} must be given together with {given}, got None")
    if ref_embeddings is None:
        if batch_in_refs:
            raise ValueError("batch_in_refs must be False where there are no ref_embeddings, got True")
        return Batch(x, None, x_labels, None, False)
    refs = same_dimensions("embeddings", x, "ref_embeddings", ref_embeddings)
    y_labels = integers("ref_labels", ref_labels, refs)
    if batch_in_refs and len(refs) < len(x):
        raise ValueError(
            f"ref_embeddings must begin with the {len(x)} rows of embeddings for batch_in_refs, got {tuple(refs.shape)}"
        )
    if x_labels.dtype != y_labels.dtype:
        x_labels, y_labels = x_labels.long(), y_labels.long()
    return Batch(x, refs, x_labels, y_labels, bool(batch_in_refs))


def similar_pairs(target: object, similar: object, x: Tensor) -> Tensor:
    """Which given pairs are similar, from a target in either convention. [N] bool"""
    one_of("similar", similar, (0, 1))
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.shape != x.shape[:1]:
        raise ValueError(f"target must have shape ({len(x)},), one value a pair, got {tuple(target.shape)}")
    if target.device != x.device:
        raise ValueError(f"target must be on the device of x1, {x.device}, got {target.device}")
    return target > 0 if similar == 1 else target == 0
