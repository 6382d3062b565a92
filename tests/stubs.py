"""Writes `fusedloss/modules.pyi`, the types of the modules, from their signatures: `python -m tests.stubs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from inspect import Parameter
from pathlib import Path

import fusedloss
from fusedloss import modules
from fusedloss.loss_module import ClassLossModule, LossModule

STUB = Path(fusedloss.__file__).parent / "modules.pyi"
HEAD = '''"""The types of the modules, written by `python -m tests.stubs`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .loss_module import ClassLossModule, LossModule
'''


def stub() -> str:
    """The text, formatted as ruff does."""
    classes = [cls for cls in vars(modules).values() if inspect.isclass(cls) and hasattr(cls, "function")]
    return HEAD + "".join(map(of_class, classes))


def of_class(cls: type[LossModule]) -> str:
    base = ClassLossModule if issubclass(cls, ClassLossModule) else LossModule
    taken = (p for p in inspect.signature(cls.function).parameters.values() if p.name in cls.called.names)
    call = [p.replace(default=...) if p.name in cls.options else p for p in taken]
    lines = method("__init__", inspect.signature(cls).parameters.values(), "None")
    lines += method("forward", call, "Tensor") + method("__call__", call, "Tensor")
    return f"\nclass {cls.__name__}({base.__name__}):\n{lines}"


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
    STUB.write_text(stub())
