"""Arguments are checked here, once, at the boundary: ValueError or TypeError naming the argument and what was seen."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

METRICS = ("euclidean", "sqeuclidean", "cosine", "manhattan")
REAL: Any = (int, float, numbers.Real)  # the last has NumPy's, and is slow to ask
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WITHOUT_FLOAT64 = ("mps", "xpu")  # types of devices
# Types of devices that have autocast: asked here, once, since compiled code cannot ask.
AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")))


class Batch(NamedTuple):
    """Rows to be compared, and their labels. [N, D] with [M, D], or with themselves"""

    x: Tensor
    y: Tensor | None  # None: x
    x_labels: Tensor
    y_labels: Tensor
    # Row i of x is row ref_offset + i of y, and that pair is left out. 0 where there is no y; None: no row is on both.
    ref_offset: int | None
    ignored: int | None = None  # rows with this label are in no pair

    @property
    def anchors(self) -> int | Tensor:
        """How many rows of x count."""
        return self.x.shape[0] if self.ignored is None else (self.x_labels != self.ignored).sum()

    @property
    def pairs(self) -> int | Tensor:
        """How many there are, without those of a row with itself."""
        others = self.y_labels.shape[0] if self.ignored is None else (self.y_labels != self.ignored).sum()
        return self.anchors * (others - int(self.ref_offset is not None))


def one_of(name: str, value: object, allowed: Sequence[Any]) -> Any:
    """The one of them that equals it, so that a NumPy integer becomes an int."""
    if not isinstance(value, (str, *REAL)) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return allowed[allowed.index(value)]


def number(
    name: str, value: Any, *, low: float = 0.0, high: float = math.inf, above: bool = False, learnable: bool = False,
    unit: str = "",
) -> Any:  # fmt: skip
    """A finite number from low (above it if `above`) to high, as an int or float; or, if `learnable`, a floating tensor
    of one element, as a 0-d one, as wide as a float and read only on a CPU."""
    if isinstance(value, Tensor):
        if not learnable or value.shape not in ((), (1,)) or not value.is_floating_point():
            kind = "a number or a floating tensor of one element" if learnable else "a number"
            raise TypeError(f"{name} must be {kind}, got a {value.dtype} tensor of shape {tuple(value.shape)}")
        if readable(value):
            number(name, value.item(), low=low, high=high, above=above, unit=unit)
        return value.reshape(()).to(torch.float32 if value.device.type in WITHOUT_FLOAT64 else torch.float64)
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    found = value if type(value) in (int, float) else float(value)  # NumPy's become Python's
    # Comparisons, all False for NaN: under torch.compile a float may be symbolic, which `math.isfinite` does not take.
    if not (low < found if above else low <= found) or not found <= high or not abs(found) < math.inf:
        most = f" and at most {high:g} {unit}".rstrip() if high < math.inf else ""
        raise ValueError(f"{name} must be finite and {'above' if above else 'at least'} {low}{most}, got {value}")
    return found


def tensor(name: str, values: object) -> Tensor:
    """A floating tensor."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    if values.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {values.dtype}")
    return values


def autocast(device: torch.device) -> bool:
    """Whether it is on."""
    return device.type in AUTOCAST and torch.is_autocast_enabled(device.type)


def rows(name: str, x: object) -> Tensor:
    """A floating [N, D] tensor, in the autocast dtype where autocast is on."""
    x = matrix(name, x)
    if autocast(x.device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def matrix(name: str, x: object) -> Tensor:
    """A floating [N, D] tensor, as it is."""
    x = tensor(name, x)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, got {tuple(x.shape)}")
    return x


def unrounded(names: Sequence[str], tensors: Sequence[object]) -> list[Tensor]:
    """Several floating [N, D] tensors, for a loss without products of all pairs, which autocast leaves as they are; of
    several dtypes, which autocast makes, in the widest."""
    found = [matrix(n, t) for n, t in zip(names, tensors, strict=True)]
    if autocast(found[0].device):
        widest = functools.reduce(torch.promote_types, (t.dtype for t in found))
        return [t.to(widest) for t in found]
    return found


def given_rows(names: Sequence[str], tensors: Sequence[object]) -> list[Tensor]:
    """Several [N, D] tensors of which row i is compared with row i alone."""
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


def comparable(name: str, x: Tensor, other_name: str, y: Tensor) -> None:
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"{other_name} must have the D of {name}, {x.shape[1]}, got shape {tuple(y.shape)}")
    same_kind(name, x, other_name, y)


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def index(name: str, value: object, *, low: int = 0) -> int:
    """An int, or what is one, such as a NumPy integer; no tensor, whose value would have to be read."""
    if isinstance(value, int) and not isinstance(value, bool):
        found = value  # which may be symbolic, and then has no other attribute
    elif isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    else:
        found = operator.index(value)
    if found < low:
        raise ValueError(f"{name} must be at least {low}, got {found}")
    if found >= 2**63:  # tensors would be compared with its last 64 bits
        raise ValueError(f"{name} must be below 2**63, got {found}")
    return found


def readable(*tensors: Tensor) -> bool:
    """Whether values can be looked at without waiting for them: plain CPU tensors, in code that is not compiled."""
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, torch.nn.Parameter)  # a fake one has no values, a distributed one not all
        and t.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)  # nor has one inside torch.func's transforms
        for t in tensors
    )


IGNORED, WRONG = -1, -2  # rows without a class: not counted, and out of range


def class_indices(
    name: str, target: object, shape: torch.Size, C: int, x: Tensor, ignore_index: int | None = None
) -> Tensor:
    """The class of every row of x, from 0 to C - 1; IGNORED where the target is ignore_index. int64, flat

    Out of range it is an error on a CPU, where looking is no sync, and WRONG elsewhere.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a tensor of class indices, got {type(target).__name__}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{name} must be class indices of an integer dtype, got {target.dtype}")
    if target.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, one class a row, got {tuple(target.shape)}")
    if target.device != x.device:
        raise ValueError(f"{name} must be on the device of the rows, {x.device}, got {target.device}")
    given = target.reshape(-1).to(torch.int64)
    if readable(given) and given.numel():
        low, high = (int(extreme) for extreme in given.aminmax())
        if low >= 0 and high < C and (ignore_index is None or not low <= ignore_index <= high):
            return given
    inside = (given >= 0) & (given < C)
    found = given.where(inside, WRONG)
    if ignore_index is not None:
        found = found.masked_fill(given == ignore_index, IGNORED)
    if readable(found) and bool((found == WRONG).any()):
        ignored = "" if ignore_index is None else f" or ignore_index ({ignore_index})"
        raise ValueError(f"{name} must be class indices from 0 to {C - 1}{ignored}, got {given[found == WRONG][0]}")
    return found


def floating(name: str, values: Tensor, x: Tensor, *, constant: bool) -> Tensor:
    """A tensor on the device of x, which needs no gradient if it is a constant."""
    if values.device != x.device:
        raise ValueError(f"{name} must be on the device of the rows, {x.device}, got {values.device}")
    if constant and values.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, which it does not receive: detach it, got {values.shape}"
        )
    return values


def of_classes(name: str, values: Tensor, C: int, x: Tensor, *, constant: bool) -> Tensor:
    """A floating tensor [C]."""
    found = floating(name, values, x, constant=constant)
    if found.shape != (C,):
        raise ValueError(f"{name} must have shape ({C},), one value a class, got {tuple(found.shape)}")
    return found


def factors(name: str, values: Tensor, z: Tensor) -> Tensor:
    """A floating tensor that broadcasts to the shape of z; flat, of as many elements as z has or of a period of it."""
    found = floating(name, values, z, constant=True)
    lead = z.dim() - found.dim()
    if lead < 0 or any(n not in (1, m) for n, m in zip(found.shape, z.shape[lead:], strict=True)):
        raise ValueError(f"{name} must broadcast to the shape of logits, {tuple(z.shape)}, got {tuple(found.shape)}")
    while found.dim() and found.shape[0] == 1:
        found = found[0]
    repeats = found.shape == z.shape[z.dim() - found.dim() :]
    return (found if repeats else found.expand(z.shape)).flatten()


def logits(x: object, overwrite: bool, *, classes: bool = False) -> Tensor:
    """A floating tensor, of shape [N, C, ...] if it has classes, whose memory the backward may use where it says so."""
    x = tensor("logits", x)
    if classes and (x.dim() < 2 or x.shape[1] == 0):
        raise ValueError(f"logits must have shape (N, C, ...) with C >= 1, got {tuple(x.shape)}")
    if overwrite and x.requires_grad and (x if x._base is None else x._base).is_leaf:
        raise ValueError(f"overwrite_logits must be False for a leaf, whose values it would destroy, got {overwrite}")
    return x


def answers(name: str, target: object, z: Tensor) -> Tensor:
    """A constant from 0 to 1 for every logit; looked at where that is no sync."""
    t = like_logits(name, target, z, constant=True)
    if readable(t) and t.numel() and t.dtype != torch.bool:
        low, high = (extreme.item() for extreme in t.detach().aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name} must be from 0 to 1 everywhere, got values from {low:g} to {high:g}")
    return t


def like_logits(name: str, target: object, z: Tensor, *, constant: bool) -> Tensor:
    """A real tensor in the shape of z, which needs no gradient if it is a constant."""
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


def integers(name: str, labels: object, x: Tensor) -> Tensor:
    """One integer label a row of x, as int32 or int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be an integer tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {labels.dtype}")
    if labels.shape != x.shape[:1]:
        raise ValueError(f"{name} must have shape ({x.shape[0]},), one label a row, got {tuple(labels.shape)}")
    if labels.device != x.device:
        raise ValueError(f"{name} must be on the device of the embeddings, {x.device}, got {labels.device}")
    return labels if labels.dtype in (torch.int32, torch.int64) else labels.to(torch.int64)


def batch(
    embeddings: object, labels: object, ref_embeddings: object, ref_labels: object, ref_offset: int | None,
    ignore_index: int | None,
) -> Batch:  # fmt: skip
    x = rows("embeddings", embeddings)
    x_labels = integers("labels", labels, x)
    if (ref_embeddings is None) != (ref_labels is None):
        missing, given = ("ref_labels", "ref_embeddings") if ref_labels is None else ("ref_embeddings", "ref_labels")
        raise ValueError(f"{missing} must be given together with {given}, got None")
    if ref_embeddings is None:
        if ref_offset is not None:
            raise ValueError(f"ref_offset must be None where there are no ref_embeddings, got {ref_offset!r}")
        return ignoring(Batch(x, None, x_labels, x_labels, 0), ignore_index)
    y = same_dimensions("embeddings", x, "ref_embeddings", ref_embeddings)
    y_labels = integers("ref_labels", ref_labels, y)
    if x_labels.dtype != y_labels.dtype:
        x_labels, y_labels = x_labels.long(), y_labels.long()
    found = ignoring(Batch(x, y, x_labels, y_labels, ref_offset), ignore_index)
    check_place(found)
    return found


def ignoring(b: Batch, ignore_index: int | None) -> Batch:
    """The batch without the pairs of rows that have the label ignore_index, which hold zeros then."""
    if ignore_index is None:
        return b
    x_labels, y_labels = b.x_labels.long(), b.y_labels.long()  # narrower ones would be compared with its last bits
    of_x, of_y = ignored_rows(x_labels, ignore_index), ignored_rows(y_labels, ignore_index)
    if of_x is None and of_y is None:
        return b
    y = None if b.y is None else without(b.y, of_y)
    return Batch(without(b.x, of_x), y, x_labels, y_labels, b.ref_offset, ignore_index)


def ignored_rows(labels: Tensor, ignore_index: int) -> Tensor | None:
    """Which rows have the label that is ignored, [N] bool; None where none has, if looking is no sync."""
    found = labels == ignore_index
    return None if readable(found) and not found.any() else found


def without(x: Tensor, ignored: Tensor | None) -> Tensor:
    """x with zeros in the ignored rows: what they hold, NaN too, goes nowhere, and their gradient is 0."""
    return x if ignored is None else x.masked_fill(ignored[:, None], 0.0)


def check_place(b: Batch) -> None:
    """Whether the rows are those of the references from ref_offset on; looked at where that is no sync: elsewhere
    losses would be wrong."""
    x, y, x_labels, y_labels, first, _ = b
    if y is None or first is None:
        return
    N, M = x.shape[0], y.shape[0]
    if first + N > M:
        raise ValueError(
            f"ref_embeddings must have the {N} rows of embeddings from row {first} on, got {M} rows{found_at(x, y)}"
        )
    if readable(x, y) and (i := first_of(apart(x, y[first : first + N]))) is not None:
        raise ValueError(
            f"ref_embeddings must have the rows of embeddings from row {first} (ref_offset) on, but row "
            f"{first + i} is not row {i} of embeddings{found_at(x, y)}"
        )
    if readable(x_labels, y_labels) and (i := first_of(x_labels != y_labels[first : first + N])) is not None:
        raise ValueError(
            f"ref_labels must have the labels from row {first} (ref_offset) on, but row {first + i} has label "
            f"{y_labels[first + i]}, row {i} of labels {x_labels[i]}"
        )


def apart(x: Tensor, y: Tensor) -> Tensor:
    """Which rows are not the same; NaN is equal to NaN. [N] bool"""
    x, y = x.detach(), y.detach()
    return ((x != y) & ~((x != x) & (y != y))).any(-1)


def found_at(x: Tensor, y: Tensor) -> str:
    """What to do where rows x are not those of y that they should be, for the end of an error."""
    N, M = x.shape[0], y.shape[0]
    if readable(x, y) and 0 < N <= M:
        for at in (~apart(x[:1], y[: M - N + 1])).nonzero().flatten().tolist():
            if not apart(x, y[at : at + N]).any():
                return f"; they are there from row {at} on: ref_offset={at}"
    return "; where no row of embeddings is a reference leave it out"


def first_of(found: Tensor) -> int | None:
    """The index of the first that is True."""
    return int(found.int().argmax()) if found.any() else None


def similar_pairs(target: object, similar: int, x: Tensor) -> Tensor:
    """How similar given pairs are, from a target in either convention: bool, or of a floating one shares from 0 to 1,
    in the dtype of the loss. [N]

    Another value is an error on a CPU, where looking is no sync; elsewhere the share is NaN.
    """
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
    if target.dtype == torch.bool:
        return target if similar == 1 else ~target
    graded, read = target.is_floating_point(), readable(target)
    if graded or read:
        values = target if graded else target.long()  # unsigned ones have no -1
        known = (values >= 0) & (values <= 1)
        known = known | (values == -1) if similar == 1 else known
        if read and (i := first_of(~known)) is not None:
            signs = " (or -1, not similar)" if similar == 1 else ", where similar is 0"
            raise ValueError(f"target must be from 0 to 1{signs}, got {target[i].item()} in row {i}")
    if not graded:
        return target == similar
    share = target.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=0)
    return (share if similar == 1 else 1 - share).masked_fill(~known, torch.nan)
