"""The installed libraries that `fusedloss.compat` stands in for, and how results are compared with theirs."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType

import pytest
import torch
from torch import Tensor


def library(name: str, extra: str) -> ModuleType:
    """The module, or a skip that says what to install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        complete_torchvision()
        return pytest.importorskip(
            name, reason=f"{name} is not installed: pip install -e '.[{extra}]'", exc_type=ImportError
        )


_operators: list[torch.library.Library] = []  # which live as long as this list


def complete_torchvision() -> None:
    """Lets torchvision, which open_clip and lightly import, load with a torch for which its operators are not built:
    the operators that it describes during its import are declared. No loss calls one."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # whoever needs it says so
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _operators.append(declared)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


Outcome = Mapping[str, Tensor]  # values, gradients and what a loss keeps, by name


def assert_same(found: Outcome, wanted: Outcome, context: object = "") -> None:
    """Compare float64 results, to 1e-10 of the largest number, or of 0.1 if that is larger."""
    assert found.keys() == wanted.keys(), context
    for name, want in wanted.items():
        assert (found[name].shape, found[name].dtype) == (want.shape, want.dtype), (context, name)
        error = (found[name] - want).abs().max()
        assert error <= 1e-10 * max(0.1, want.abs().max()), (context, name, float(error))


def assert_closer(
    found: Outcome, rounded: Outcome, exact: Outcome, dtype: torch.dtype, context: object = ""
) -> None:  # fmt: skip
    """Results in a dtype are as near to the exact ones as the library's are, plus a few roundings."""
    assert found.keys() == rounded.keys() == exact.keys(), context
    for name, want in exact.items():
        error, its = ((t[name].double() - want).abs().max() for t in (found, rounded))
        roundings = 1 if dtype == torch.bfloat16 else 8
        bound = 1.5 * its + roundings * torch.finfo(dtype).eps * want.abs().max()
        assert error <= bound, (context, name, float(error), float(its))
