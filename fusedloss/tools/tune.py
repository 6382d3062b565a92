"""`python -m fusedloss tune`: the tiles to be tried and how long that takes, the sweep, and the files it leaves.

run -> plan -> dry_run, or sweep.tune for every loss; list_kept; reset
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import backends
from ..backends.triton import tuning
from ..backends.triton.launch import architecture
from ..backends.triton.tuning import Key, Tuned
from ..kernels import configs
from . import sweep
from .compiling import source
from .console import duration, progress, show
from .gpus import GPUS
from .workloads import Workload, step, workloads

# What an estimate is made of. A compilation: measured with Triton 3.7.1 for sm_90, 2026-11. A timing: half a second of
# runs (`measure.Clock`), the first of them, and the cache overwritten between them.
COMPILE_SECONDS = {2: 4.0, 4: 12.0}  # on one core, by the bytes of a number
TIMING_SECONDS = 0.7

NOTHING = "the kernels of these losses have no tile to choose"

TILE_NOTE = (
    "BM: rows of a program, BN: columns of a tile, BD: dimensions of a chunk, held: dimensions kept on chip, near: "
    "columns of a tile where labels may be equal, maxnreg: most registers of a thread (0: no limit)"
)


class Planned(NamedTuple):
    """A kernel to be tuned."""

    key: Key
    tiles: int  # candidates, at most: those that do not fit are not timed
    seconds: float


Group = tuple[list[Workload], list[Planned]]  # a loss at all batch sizes, and its kernels


def plan(n: Sequence[int], arch: str, **which: Any) -> list[Group]:
    """What to tune, recorded on the device "meta": no GPU is needed. A kernel that losses share is tuned once."""
    seen: set[Key] = set()
    groups = []
    sizes = [list(workloads(n=[N], **which)) for N in n]
    for works in map(list, zip(*sizes, strict=True)):
        found = planned(works, arch)
        groups.append((works, [kernel for kernel in found if kernel.key not in seen]))
        seen.update(kernel.key for kernel in found)
    return groups


def planned(works: Sequence[Workload], arch: str) -> list[Planned]:
    with backends.use_backend("triton"), tuning.defaults():
        launches = sweep.launches([step(work, "meta") for work in works], arch)
    kernels = []
    for key in sweep.keys_of(launches):
        tile = sweep.default_tile(key, arch)
        tiles = len({tile, *configs.shapes(tile), *configs.depths(tile, key.work.kernel, key.D)})
        codes = len({source(launch) for launch in launches if launch.key == key})
        compiling = codes * COMPILE_SECONDS[key.work.itemsize] / (os.cpu_count() or 1)
        kernels.append(Planned(key, tiles, tiles * (compiling + len(works) * TIMING_SECONDS)))
    return kernels


def estimate(groups: Sequence[Group]) -> str:
    kernels = [kernel for _, found in groups for kernel in found]
    tiles, seconds = sum(kernel.tiles for kernel in kernels), sum(kernel.seconds for kernel in kernels)
    return f"{len(kernels)} kernels with {tiles:,} tiles to try: about {duration(seconds)}"


def dry_run(n: Sequence[int], arch: str | None, **which: Any) -> None:
    """Print what would be tuned, on this GPU or for an architecture."""
    name = arch or architecture()
    here = torch.cuda.is_available() and arch is None
    model = f", {GPUS[name].name}" if name in GPUS and not here else ""
    groups = plan(n, name, **which)
    if not any(kernels for _, kernels in groups):
        print(NOTHING)
        return
    rows = [
        [works[0].name, works[0].metric or "-", works[0].dtype, str(works[0].D), kernel_name(kernel.key),
         str(kernel.tiles), duration(kernel.seconds)]
        for works, kernels in groups for kernel in kernels
    ]  # fmt: skip
    columns = ("loss", "metric", "dtype", "D", "kernel", "tiles", "time")
    note = (
        "tiles: at most; those that spill registers or do not fit are not timed. A kernel that losses share is tuned "
        "once, and some losses have none with a tile to choose."
    )
    show(f"to be tuned on {tuning.device_name() if here else name + model}", columns, rows, note)
    print(f"{estimate(groups)}, on {os.cpu_count()} cores; kernels compiled before take less. Nothing was run.")
    if not torch.cuda.is_available():
        print("There is no GPU here: `tune` needs the one it tunes for.")


def run(n: Sequence[int], **which: Any) -> None:
    """Tiles for losses, each the best for all batch sizes together."""
    tuning.wanted = backends.after_call = None  # not at first use as well
    backends.set_backend("triton")
    groups = [(works, kernels) for works, kernels in plan(n, architecture(), **which) if kernels]
    if not groups:
        print(NOTHING)
        return
    print(estimate(groups), flush=True)
    total, done, found = sum(len(kernels) for _, kernels in groups), 0, list[Tuned]()
    with progress("tuning kernels") as advance:
        for works, kernels in groups:
            first = works[0]
            print(f"{done + 1} of {total}: {first.name} {first.metric}, {first.dtype}, D = {first.D}", flush=True)

            def of_all(part: float, whole: float, done: int = done, own: int = len(kernels)) -> None:
                advance(done + own * part / whole, total)

            keys = [kernel.key for kernel in kernels]
            found += sweep.tune([step(work, "cuda") for work in works], keys, advance=of_all)
            done += len(kernels)
    show_tuned("forward + backward", found)
    print("for kernels/configs.py:", *map(config_row, found), sep="\n")
    print(f"kept in {tuning.file()}")


# -------------------------------------------------------------------------------------------------- what was tuned


def kernel_name(key: Key) -> str:
    return f"{key.work.kernel} {key.work.terms}".rstrip()


def config_row(tuned: Tuned) -> str:
    """The row for TILES of configs.py."""
    gain = f"{milliseconds(tuned.seconds)}, default {milliseconds(tuned.default_seconds)}"
    origin = f"{tuning.device_name()}, {tuned.date}: {tuned.key.use}, {gain}"
    sizes = ", ".join(map(str, tuned.tile))
    kernel, terms, itemsize = tuned.key.work
    return f'Work("{kernel}", "{terms}", {itemsize}): [({tuned.key.D}, Tile({sizes}))],  # {origin}'


COLUMNS = ("kernel", "loss and scores", "bits", "D", "BM", "BN", "BD", "warps", "stages", "held", "near", "maxnreg",
           "default", "best", "faster")  # fmt: skip


def cells(tuned: Tuned) -> list[str]:
    key, most = tuned.key, f"<= {tuned.key.D}" if tuned.key.D else "any"
    times = [milliseconds(t) for t in (tuned.default_seconds, tuned.seconds)]
    gain = f"{tuned.default_seconds / tuned.seconds:.2f}x" if tuned.default_seconds else "-"
    return [kernel_name(key), key.use, str(8 * key.work.itemsize), most, *map(str, tuned.tile), *times, gain]


def show_tuned(title: str, found: Sequence[Tuned]) -> None:
    note = f"{TILE_NOTE}; default, best: time of forward + backward with the default tile and with this one"
    show(title, COLUMNS, [cells(tuned) for tuned in found], note)


def milliseconds(t: float | None) -> str:
    return "does not fit" if t is None else f"{t * 1e3:.3g} ms"


def list_kept() -> None:
    """Print the tiles kept for this GPU, and the files of others."""
    folder = tuning.cache_directory()
    files = sorted(folder.glob("*.json"))
    if not files:
        print(f"no tuned tiles in {folder}")
        return
    rows = []
    for path in files:
        try:
            content = json.loads(path.read_text())
            facts = [str(content[name]) for name in ("device", "triton")]
            rows.append([path.name, *facts, str(len(content["tiles"]))])
        except (OSError, ValueError, TypeError, KeyError):
            rows.append([path.name, "not readable", "-", "-"])
    show(f"tuned tiles in {folder}", ("file", "GPU", "Triton", "tiles"), rows)
    if not torch.cuda.is_available():
        print("There is no GPU here, whose tiles could be shown one by one.")
        return
    try:
        found = tuning.kept()
    except ValueError as error:
        sys.exit(f"not used: {error}; `python -m fusedloss tune` writes it anew")
    if found:
        show_tuned(f"{tuning.device_name()}", found)
    else:
        print(f"none of this GPU, {tuning.device_name()}")


def reset() -> None:
    """Delete the file of this GPU."""
    if not torch.cuda.is_available():
        sys.exit(f"tune --reset deletes the tiles of this GPU; there is none. Files are in {tuning.cache_directory()}")
    if not tuning.file().exists():
        print(f"nothing to delete: there is no {tuning.file()}")
        return
    print(f"deleting {tuning.file()}, the tuned tiles of {tuning.device_name()}", flush=True)
    tuning.forget()
