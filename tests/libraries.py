"""The libraries that `fusedloss.compat` stands in for, as they are installed."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import pytest
import torch


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
    """Lets torchvision, which open_clip and lightly import, load beside a torch for which its operators are not built:
    those that it describes while it is imported are declared. None of the losses calls one."""
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
