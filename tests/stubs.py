"""Writes the types of the modules beside them (`modules.pyi`), from their signatures: `python -m tests.stubs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from inspect import Parameter
from pathlib import Path
from types import ModuleType

from fusedloss import modules
from fusedloss.distributed import sharded
from fusedloss.loss_module import ClassLossModule, LossModule

HEAD = '''"""The types of {what}, written by `python -m tests.stubs`."""
'''
HEADS = {
    modules: HEAD.format(what="the modules")
    + """
from collections.abc import Sequence

import torch
from torch import Tensor

from .loss_module import ClassLossModule, LossModule
""",
    sharded: HEAD.format(what="the sharded losses")
    + """
from typing import Any

import torch
from torch import Tensor

from .. import modules
from .shard_module import ShardedLoss
""",
}


def path(module: ModuleType) -> Path:
    return Path(str(module.__file__)).with_suffix(".pyi")


def stub(module: ModuleType) -> str:
    """The text, formatted as ruff does."""
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return HEADS[module] + "".join(map(of_class, own))


def of_class(cls: type[LossModule]) -> str:
    bases = "ClassLossModule" if issubclass(cls, ClassLossModule) else "LossModule"
    if issubclass(cls, sharded.ShardedLoss):
        bases = f"ShardedLoss, modules.{cls.whole.__name__}"
    call = [p.replace(default=...) if p.name in cls.options else p for p in cls.called.parameters]
    lines = method("__init__", inspect.signature(cls).parameters.values(), "None")
    lines += method("forward", call, "Tensor") + method("__call__", call, "Tensor")
    return f"\nclass {cls.__name__}({bases}):\n{lines}"


def method(name: str, parameters: Iterable[Parameter], result: str) -> str:
    texts = ["self"]
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        default = "..." if p.default is ... else repr(p.default).replace("'", '"')
        texts.append(f"{p.name}: {p.annotation}" + ("" if p.default is p.empty else f" = {default}"))
    line = f"    def {name}({', '.join(texts)}) -> {result}: ...\n"
    if len(line) <= 121:
        return line
    return f"    def {name}(\n" + "".join(f"        {text},\n" for text in texts) + f"    ) -> {result}: ...\n"


if __name__ == "__main__":
    for module in HEADS:
        path(module).write_text(stub(module))
