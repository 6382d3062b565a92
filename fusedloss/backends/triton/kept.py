"""Starting kernels. What Triton compiled for a launch is kept for the next one, which then goes past Triton's binder.

`kernel[grid](...)` looks at every argument and option to find what it has compiled for them, which at small batches
takes longer than the kernel. A kept kernel is found by what Triton itself makes of the arguments (types, alignments,
numbers that it makes constants) and by all options, so that it is the one that Triton would take.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import triton
from triton.runtime import driver, jit

KNOWN = ("3.7",)  # releases that are known to launch as `start` does; with others Triton launches
knobs: Any = getattr(triton, "knobs", None)  # since 3.4
specialize = getattr(jit, "native_specialize_impl", None) if triton.__version__.rpartition(".")[0] in KNOWN else None

Kept = tuple[Any, tuple[Any, ...]]  # a compiled kernel, and its constants in the order of the signature
_kept: dict[tuple[Any, ...], Kept] = {}


def start(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Launch a kernel: its arguments come first in its signature, then its constants, which are options by name."""
    if specialize is None or watched(kernel):
        kernel[grid](*args, **options)
        return
    device = driver.active.get_current_device()
    key = key_of(kernel, device, args, options)
    found = _kept.get(key)
    if found is None:
        compiled = kernel[grid](*args, **options)
        if type(compiled) is triton.compiler.CompiledKernel:
            _kept[key] = compiled, constants(kernel, len(args), options)
        return
    compiled, values = found
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(device)
    compiled.run(x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None, *args, *values)


def watched(kernel: Any) -> bool:
    """Whether Triton has to launch by itself: kernels are interpreted, or something looks at launches or changes what
    is compiled, for example a profiler."""
    runtime = knobs.runtime
    return bool(
        type(kernel) is not jit.JITFunction
        or kernel.pre_run_hooks
        or kernel.debug
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
        or calls(runtime.launch_enter_hook)
        or calls(runtime.launch_exit_hook)
    )


def calls(hook: Any) -> bool:
    return hook is not None and (type(hook) is not knobs.HookChain or bool(hook.calls))


def key_of(kernel: Any, device: int, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """What a launch has in common with those that the same compiled kernel serves.

    Triton takes some numbers as they come (do_not_specialize), which are looked at here too: a few more keys.
    """
    backend = kernel.device_caches[device][-2]
    return (kernel.fn, device, specialize(backend, args, False, True, True), *options, *options.values())  # type: ignore[misc]


def constants(kernel: Any, count: int, options: dict[str, Any]) -> tuple[Any, ...]:
    """The values of all parameters after the first ones."""
    rest = list(signature(kernel.fn).parameters.values())[count:]
    return tuple(options.get(parameter.name, parameter.default) for parameter in rest)
