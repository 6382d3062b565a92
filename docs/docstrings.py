"""Docstrings as Markdown: they are written for `help()`, with reStructuredText's blocks and `$$` around formulas."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from griffe import Class, Docstring, Extension, Object

LITERAL = re.compile(r"::$(?=\n\n )", re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
NAME = re.compile(r"`(\w+)`")
SESSION = re.compile(r"^>>> .+(?:\n.+)*", re.MULTILINE)


def markdown(text: str) -> str:
    """A docstring with fences for its formulas and sessions."""
    text = FORMULA.sub(lambda found: f"```math\n{found[1].strip()}\n```", LITERAL.sub(":", text))
    return SESSION.sub(r"```pycon\n\g<0>\n```", text)


def of_runtime(cls: Class) -> str:
    """The first paragraph of a docstring that the class receives when it is made, its first name a link."""
    module = importlib.import_module(cls.module.path)
    summary = (inspect.getdoc(getattr(module, cls.name)) or "").split("\n\n")[0]
    return NAME.sub(r"[\g<0>][fusedloss.\1]", summary, count=1)


class Docstrings(Extension):
    """Docstrings as `markdown` has them; the modules of losses, which have none in the source, have a summary."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class_instance(self, *, cls: Class, **_: Any) -> None:
        if cls.docstring is None and cls.module.name in ("modules", "sharded"):
            cls.docstring = Docstring(of_runtime(cls), parent=cls)
