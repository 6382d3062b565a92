"""Options: numbers, names and flags."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import tensors

REAL: Any = (int, float, numbers.Real)  # the last covers NumPy's numbers, and is slow to check
WITHOUT_FLOAT64 = ("mps", "xpu")  # types of devices


def one_of(name: str, value: object, allowed: Sequence[Any]) -> Any:
    """The allowed value that equals the given one, so that a NumPy integer becomes an int."""
    if not isinstance(value, (str, *REAL)) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return allowed[allowed.index(value)]


def number(
    name: str, value: Any, *, low: float = 0.0, high: float = math.inf, above: bool = False, learnable: bool = False,
    unit: str = "",
) -> Any:  # fmt: skip
    """A finite number from low (or above it, if `above`) to high, as an int or float; or, if `learnable`, a floating
    tensor of one element, which becomes 0-d and float32 or wider. Its value is checked only on a CPU."""
    if isinstance(value, Tensor):
        if not learnable or value.shape not in ((), (1,)) or not value.is_floating_point():
            kind = "a number or a floating tensor of one element" if learnable else "a number"
            raise TypeError(f"{name} must be {kind}, got a {value.dtype} tensor of shape {tuple(value.shape)}")
        if tensors.readable(value):
            number(name, value.item(), low=low, high=high, above=above, unit=unit)
        return value.reshape(()).to(torch.float32 if value.device.type in WITHOUT_FLOAT64 else torch.float64)
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    found = value if type(value) in (int, float) else float(value)  # NumPy's numbers become Python's
    # Comparisons, all False for NaN: under torch.compile a float may be symbolic, which `math.isfinite` does not take.
    if not (low < found if above else low <= found) or not found <= high or not abs(found) < math.inf:
        most = f" and at most {high:g} {unit}".rstrip() if high < math.inf else ""
        raise ValueError(f"{name} must be finite and {'above' if above else 'at least'} {low}{most}, got {value}")
    return found


def several(name: str, value: Any, *, low: float = 0.0, high: float = math.inf, unit: str = "") -> Any:
    """What `number` takes, or a floating tensor of several numbers, [n], of either sign, which stays as it is."""
    if not isinstance(value, Tensor) or value.dim() != 1 or value.shape[0] == 1:
        return number(name, value, low=low, high=high, learnable=True, unit=unit)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating, got {value.dtype}")
    if tensors.readable(value) and not bool((value.abs() <= high).all() & value.isfinite().all()):
        most = f" and at most {high:g} {unit}".rstrip() if high < math.inf else ""
        raise ValueError(f"{name} must be finite{most} everywhere, got {value.detach().abs().max().item()}")
    return value


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def index(name: str, value: object, *, low: int = 0, high: int | None = None) -> int:
    """An int, or an equivalent such as a NumPy integer; not a tensor, whose value would have to be read."""
    if isinstance(value, int) and not isinstance(value, bool):
        found = value  # it may be symbolic, and then has no __index__
    elif isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    else:
        found = operator.index(value)
    if found < low:
        raise ValueError(f"{name} must be at least {low}, got {found}")
    if high is not None and found > high:
        raise ValueError(f"{name} must be at most {high}, got {found}")
    if found >= 2**63:  # tensors would be compared with its last 64 bits
        raise ValueError(f"{name} must be below 2**63, got {found}")
    return found
