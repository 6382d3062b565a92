"""Writes `fusedloss/modules.pyi`, the types of the modules, from their signatures: `python -m tests.stubs`."""

from __future__ import annotations

import inspect
from inspect import Parameter

import fusedloss
from fusedloss import modules
from fusedloss.loss_module import ClassLossModule, LossModule

STUB = fusedloss.Path(fusedloss.__file__).parent / "modules.pyi"
HEAD = '''"""Written by `python -m tests.stubs`."""

import torch
from torch import Tensor

from .loss_module import ClassLossModule, LossModule
'''
