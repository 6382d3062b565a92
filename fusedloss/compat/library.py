"""Importing the library of some drop-ins, and handing through what they do not replace."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any


def require(name: str, package: str, least: str, extra: str) -> ModuleType:
    """The library's module of that name, or an error that names the extra to install."""
    advice = f"pip install 'fusedloss[{extra}]'"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}, which cannot be imported ({error}): {advice}") from error
    found = version(package)
    if _numbers(found) < _numbers(least):
        raise ImportError(f"this needs {package}>={least}, found {found}: {advice}")
    return module


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def handed_through(library: ModuleType, names: list[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that defines these names and takes all others from the library's module,
    submodules too."""

    def __getattr__(name: str) -> Any:
        if not name.startswith("__"):
            try:
                return getattr(library, name)
            except AttributeError:
                if hasattr(library, "__path__") and importlib.util.find_spec(f"{library.__name__}.{name}"):
                    return importlib.import_module(f"{library.__name__}.{name}")
        raise AttributeError(f"neither fusedloss.compat nor {library.__name__} has a {name!r}")

    return __getattr__, lambda: sorted({*names, *dir(library)})
