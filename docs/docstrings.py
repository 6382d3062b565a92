"""Docstrings that are not in the source: those of the modules of losses, which are made with their classes."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from griffe import Class, Docstring, Extension

NAME = re.compile(r"`(\w+)`")


class Docstrings(Extension):
    """Gives such a class the first paragraph of its docstring, in which its first name is a link."""

    def on_class_instance(self, *, cls: Class, **_: Any) -> None:
        if cls.docstring is None and cls.module.name in ("modules", "sharded"):
            made = getattr(importlib.import_module(cls.module.path), cls.name)
            summary = (inspect.getdoc(made) or "").split("\n\n")[0]
            cls.docstring = Docstring(NAME.sub(r"[\g<0>][fusedloss.\1]", summary, count=1), parent=cls)
