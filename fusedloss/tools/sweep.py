"""Finding tiles on the GPU at hand: `python -m fusedloss tune`, or at first use with FUSEDLOSS_AUTOTUNE=1.

Tiles that spill or do not fit are left out before anything is timed; the rest are timed with a cold cache and warm
clocks, and one whose results differ from the default tile's does not count.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Sequence
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
from .console import progress, show
from .measure import Run
from .workloads import step, workloads

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


def fitting(runs: Sequence[Run], key: Key, tiles: Iterable[Tile], arch: str) -> list[Tile]:
    """Tiles with which the kernel compiles and fits this GPU; of them those that spill nothing, or the least."""
    sources = {}
    for tile in dict.fromkeys(tiles):
        with tuning.trying(key, tile):
            sources[tile] = {source(launch) for launch in launches(runs, arch) if launch.key == key}
    with progress(f"compiling {key.work.kernel}") as advance:
        found = compile_all(((code, target(arch)) for codes in sources.values() for code in codes), advance)
    spills = {}
    for tile, codes in sources.items():
        compiled = [found[code, target(arch)] for code in codes]
        if all("error" not in c and c["shared_bytes"] <= shared_limit(arch) for c in compiled):
            spills[tile] = sum(c["spills"] for c in compiled)
    return [tile for tile, count in spills.items() if count == min(spills.values())]


def sweep(runs: Sequence[Run], key: Key, arch: str, timer: Timer) -> Tuned:
    """The best tile of a kernel: first its rows, columns and warps, then, with these, its depths."""
    default = best = configs.choose(key.work, key.D or ANY_D, arch)
    with tuning.trying(key, default):
        seconds = {default: timer(runs)}
    for near in (configs.shapes, lambda tile: configs.depths(tile, key.work.kernel, key.D)):
        todo = [tile for tile in fitting(runs, key, [best, *near(best)], arch) if tile not in seconds]
        with progress(f"timing {key.work.kernel}") as advance:
            for done, tile in enumerate(todo):
                advance(done, len(todo))
                with tuning.trying(key, tile):
                    seconds[tile] = timer(runs)
        best = min(seconds, key=seconds.__getitem__)
    slow = seconds[default] if math.isfinite(seconds[default]) else None
    return Tuned(key, best, seconds[best], slow, str(datetime.date.today()))


def tune(runs: Sequence[Run], keys: Iterable[Key] | None = None, timer: Timer | None = None) -> list[Tuned]:
    """Sweep the kernels of runs on this GPU, or those of some keys, one after the other, and remember the tiles."""
    arch = architecture()
    keys = dict.fromkeys(launch.key for launch in launches(runs, arch) if launch.key) if keys is None else keys
    swept = [sweep(runs, key, arch, timer or DeviceTimer()) for key in keys]
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
        tune([lambda: function(*copies)], keys)
    finally:
        at_first_use()


def config_row(tuned: Tuned) -> str:
    """The row for TILES of configs.py."""
    gain = f"{milliseconds(tuned.seconds)}, default {milliseconds(tuned.default_seconds)}"
    origin = f"{tuning.device_name()}, {tuned.date}: {tuned.key.use}, {gain}"
    sizes = ", ".join(map(str, tuned.tile))
    kernel, terms, itemsize = tuned.key.work
    return f'Work("{kernel}", "{terms}", {itemsize}): [({tuned.key.D}, Tile({sizes}))],  # {origin}'


COLUMNS = ("kernel", "loss and scores", "D", "default", "best", "tile", "compared")


def cells(tuned: Tuned) -> list[str]:
    tile = " ".join(f"{name}={size}" for name, size in tuned.tile._asdict().items())
    most = f"<= {tuned.key.D}" if tuned.key.D else "any"
    times = [milliseconds(t) for t in (tuned.default_seconds, tuned.seconds)]
    gain = f"{tuned.default_seconds / tuned.seconds:.2f}x" if tuned.default_seconds else "-"
    kernel = f"{tuned.key.work.kernel} {tuned.key.work.terms}".rstrip()
    return [kernel, tuned.key.use, most, *times, tile, gain]


def milliseconds(t: float | None) -> str:
    return "does not fit" if t is None else f"{t * 1e3:.3g} ms"


def run(n: Sequence[int], **which: Any) -> None:
    """The command: tiles for losses, each the best for all batch sizes together."""
    tuning.wanted = backends.after_call = None  # not at first use as well
    backends.set_backend("triton")
    found: list[Tuned] = []
    sizes = [list(workloads(n=[N], **which)) for N in n]
    for works in zip(*sizes, strict=True):
        print(f"{works[0].name} {works[0].metric}, {works[0].dtype}, D = {works[0].D}", flush=True)
        new = tune([step(work, "cuda") for work in works])
        if not new:
            print("  its kernels have no tile to choose")
        found += new
    show("forward + backward", COLUMNS, [cells(tuned) for tuned in found])
    print("for kernels/configs.py:", *map(config_row, found), sep="\n")
    print(f"kept in {tuning.file()}")
