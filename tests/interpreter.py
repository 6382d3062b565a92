"""Triton's interpreter, the same on every machine, without what it does again and again, two thirds of its time.

In every call of a function inside a kernel it looks through `triton.language` for functions to replace, although the
launch has replaced all that the function can see; it makes the same table of dtypes for every value; and it looks for
integers that overflow, which sizes as small as those of the tests cannot.

A product of tiles is NumPy's, whose last bits depend on the CPU and on the place in the tile: <x_i, x_j> is another
number than <x_j, x_i>, which it is not on a GPU. So it is summed in float64 and rounded once.

Where the interpreter's private parts are other than those of Triton 3.7, nothing is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np


def quicken() -> None:
    try:
        from triton import language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    if not all(hasattr(interpreter, name) for name in ("_LangPatchScope", "_patch_lang", "_get_np_dtype")):
        return
    dtype_of, of_scalar = interpreter._get_np_dtype, functools.cache(interpreter._get_np_dtype)

    def looked_up(kind: Any) -> Any:
        return dtype_of(kind) if isinstance(kind.scalar, tl.pointer_type) else of_scalar(kind.scalar)

    interpreter._get_np_dtype = looked_up
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    patch, launching, patched = interpreter._patch_lang, [], {id(tl)}

    @functools.cache
    def seen(function: Callable[..., Any]) -> list[ModuleType]:
        return [value for value in function.__globals__.values() if value is tl or value is tl.core]

    def patch_once(function: Callable[..., Any]) -> Any:
        if launching and all(id(module) in patched for module in seen(function)):
            return interpreter._LangPatchScope()
        scope = patch(function)
        patched.update(map(id, seen(function)))  # what a call inside a kernel has patched stays so
        if not launching:
            launching.append(True)
            restore = scope.restore

            def ended() -> None:
                launching.clear()
                restore()

            scope.restore = ended
        return scope

    interpreter._patch_lang = patch_once
    dot = type(builder).create_dot

    def symmetric_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if not all(isinstance(t.data.dtype.type(), np.floating) for t in (a, b)):
            return dot(self, a, b, d, *options)
        with np.errstate(all="ignore"):
            product = np.matmul(a.data, b.data, dtype=np.float64)
            return interpreter.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    type(builder).create_dot = symmetric_dot
