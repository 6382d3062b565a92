"""Finding tiles on the GPU at hand, for `python -m fusedloss tune`, or at first use with FUSEDLOSS_AUTOTUNE=1.

Tiles that spill or do not fit are left out before anything is timed; the rest are timed with a cold cache and warm
clocks, and one whose results differ from the default tile's does not count.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .. import backends
from ..backends.triton import tuning
from ..backends.triton.launch import Launch, architecture, recording
from ..backends.triton.tuning import Key, Tuned
from ..kernels import configs
from ..kernels.configs import Tile
from . import measure
from .compiling import compile_all, shared_limit, source, target
from .console import Advance, nothing, progress
from .measure import Run

Timer = Callable[[Sequence[Run]], float]
ANY_D = 1 << 20


class DeviceTimer:
    """Seconds of runs on this GPU, their geometric mean; infinite where a result is not that of the first call."""

    def __init__(self) -> None:
        self.clock = measure.Clock("cuda")
        self.expected: list[list[Tensor]] | None = None

    def __call__(self, runs: Sequence[Run]) -> float:
        from triton.runtime.errors import OutOfResources

        try:
            found = [listed(run()) for run in runs]
        except OutOfResources:
            return math.inf
        self.expected = self.expected or found
        if not all(map(agree, found, self.expected)):
            return math.inf
        return math.exp(sum(math.log(self.clock(run)["seconds"]) for run in runs) / len(runs))


def listed(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [t for t in results if isinstance(t, Tensor)]


def agree(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether results are the same up to the order of their sums; indices of near ties may differ."""
    for a, b in zip(found, expected, strict=True):
        if b.is_floating_point() and not torch.equal(a, b):
            finite = b.isfinite()
            apart = (a - b).where(finite, 0).double().norm()
            if not bool(apart <= 1e-2 * b.where(finite, 0).double().norm() + 1e-12):
                return False
    return True


def launches(runs: Sequence[Run], arch: str) -> list[Launch]:
    with recording(arch) as recorded:
        for run in runs:
            run()
    return recorded


def keys_of(recorded: Iterable[Launch]) -> list[Key]:
    """What the tiles of launches are chosen by, each once; some have no tile to choose."""
    return list(dict.fromkeys(launch.key for launch in recorded if launch.key))


def default_tile(key: Key, arch: str) -> Tile:
    return configs.choose(key.work, key.D or ANY_D, arch)


def fitting(runs: Sequence[Run], key: Key, tiles: Iterable[Tile], arch: str, advance: Advance) -> list[Tile]:
    """Tiles with which the kernel compiles and fits this GPU; of them those that spill nothing, or the least."""
    sources = {}
    for tile in dict.fromkeys(tiles):
        with tuning.trying(key, tile):
            sources[tile] = {source(launch) for launch in launches(runs, arch) if launch.key == key}
    found = compile_all(((code, target(arch)) for codes in sources.values() for code in codes), advance)
    spills = {}
    for tile, codes in sources.items():
        compiled = [found[code, target(arch)] for code in codes]
        if all("error" not in c and c["shared_bytes"] <= shared_limit(arch) for c in compiled):
            spills[tile] = sum(c["spills"] for c in compiled)
    return [tile for tile, count in spills.items() if count == min(spills.values())]


def sweep(runs: Sequence[Run], key: Key, arch: str, timer: Timer, advance: Advance = nothing) -> Tuned:
    """The best tile of a kernel: first its rows, columns and warps, then, with these, its depths."""
    default = best = default_tile(key, arch)
    with tuning.trying(key, default):
        seconds = {default: timer(runs)}
    stages = ((0.0, 0.8, configs.shapes), (0.8, 1.0, lambda tile: configs.depths(tile, key.work.kernel, key.D)))
    for begin, end, near in stages:
        middle = (begin + end) / 2
        compiling, timing = within(begin, middle, advance), within(middle, end, advance)
        todo = [t for t in fitting(runs, key, [best, *near(best)], arch, compiling) if t not in seconds]
        for done, tile in enumerate(todo):
            timing(done, len(todo))
            with tuning.trying(key, tile):
                seconds[tile] = timer(runs)
        best = min(seconds, key=seconds.__getitem__)
    slow = seconds[default] if math.isfinite(seconds[default]) else None
    return Tuned(key, best, seconds[best], slow, str(datetime.date.today()))


def within(begin: float, end: float, advance: Advance) -> Advance:
    """The progress of a part as that of the whole, which it takes from `begin` to `end`."""
    return lambda done, total: advance(begin + (end - begin) * done / total, 1)


def tune(
    runs: Sequence[Run], keys: Collection[Key], timer: Timer | None = None, advance: Advance = nothing
) -> list[Tuned]:  # fmt: skip
    """Sweep kernels of runs on this GPU one after the other, and remember the tiles."""
    arch, swept = architecture(), []
    for i, key in enumerate(keys):
        own = within(i / len(keys), (i + 1) / len(keys), advance)
        swept.append(sweep(runs, key, arch, timer or DeviceTimer(), own))
    found = [tuned for tuned in swept if math.isfinite(tuned.seconds)]
    if found:
        tuning.remember(found)
    return found


def at_first_use() -> None:
    """From now on tune what a call uses for the first time: FUSEDLOSS_AUTOTUNE=1. Nothing without a GPU and Triton."""
    if torch.cuda.is_available():
        tuning.wanted = set()
        backends.after_call = tune_wanted


def tune_wanted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Tune what a call of a backend's function has just used; not while a CUDA graph is captured."""
    if not tuning.wanted or torch.cuda.is_current_stream_capturing():
        return
    keys = sorted(tuning.wanted)
    # Copies: some functions write into their arguments.
    copies = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, arguments)
    tuning.wanted, backends.after_call = None, None
    try:
        with progress(f"tuning {', '.join(key.work.kernel for key in keys)}") as advance:
            tune([lambda: function(*copies)], keys, advance=advance)
    finally:
        at_first_use()
