"""Choosing and remembering tiles: those that `tools/sweep.py` found on this device, else those of `kernels/configs.py`.

The tiles of a sweep are kept in DEVICE.json in $FUSEDLOSS_CACHE_DIR, else in fusedloss/ of the user's cache directory.
They hold for every batch size and for all D of a bucket, so that another batch size neither tunes nor compiles again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import sys
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...kernels import configs
from ...kernels.configs import Tile, Work

BUCKETS = (64, 128, 256, 512)  # the largest D of each bucket
FORMAT = 4


class Key(NamedTuple):
    """The key by which a tile is chosen."""

    work: Work
    use: str  # the loss and its scores
    D: int  # the bucket, 0 above the last


class Tuned(NamedTuple):
    """The best tile of a sweep, its time, and the time of the default tile (None if that did not fit), in seconds."""

    key: Key
    tile: Tile
    seconds: float
    default_seconds: float | None
    date: str


def bucket(D: int) -> int:
    return (*BUCKETS, 0)[bisect_left(BUCKETS, D)]


_trial: dict[Key, Tile] = {}  # tiles under trial
_defaults = False  # whether only default tiles are used
wanted: set[Key] | None = None  # if tiles are tuned at first use: keys that were used without a tuned tile


def choose(key: Key, D: int, arch: str) -> Tile:
    """The tile of a kernel: the one under trial, the tuned one, or the default."""
    if key in _trial:
        return _trial[key]
    if _defaults:
        return configs.choose(key.work, D, arch)
    tuned = remembered().get(key) if torch.cuda.is_available() else None
    if tuned is not None:
        return tuned.tile
    if wanted is not None:
        wanted.add(key)
    return configs.choose(key.work, D, arch)


@contextmanager
def trying(key: Key, tile: Tile) -> Iterator[None]:
    """Use a tile for the duration of a block."""
    before = dict(_trial)
    _trial[key] = tile
    try:
        yield
    finally:
        _trial.clear()
        _trial.update(before)


@contextmanager
def defaults() -> Iterator[None]:
    """Use no tuned tiles, and tune none, for the duration of a block: those of this GPU are not those of another."""
    global _defaults
    before, _defaults = _defaults, True
    try:
        yield
    finally:
        _defaults = before


# ---------------------------------------------------------------------------------------------------------- memory


def device_name() -> str:
    return torch.cuda.get_device_name()


def cache_directory() -> Path:
    own = os.environ.get("FUSEDLOSS_CACHE_DIR")
    if own:
        return Path(own)
    home = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, default = home.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    return Path(os.environ.get(variable) or Path.home() / default) / "fusedloss"


def file() -> Path:
    """The file with the tuned tiles of this device."""
    return cache_directory() / (re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-") + ".json")


@functools.cache
def remembered() -> Mapping[Key, Tuned]:
    """The tuned tiles of this device; none, with a warning, if the file is broken or not for this device."""
    try:
        return {tuned.key: tuned for tuned in kept()}
    except ValueError as error:
        warnings.warn(f"tuned tiles ignored: {error}; `python -m fusedloss tune` writes it anew", stacklevel=2)
        return {}


def kept() -> list[Tuned]:
    """The entries of this device's file, if there is one.

    Raises:
        ValueError: It is broken or not for this device.
    """
    path = file()
    if not path.exists():
        return []
    try:
        return parse(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def origin() -> dict[str, Any]:
    """The device and versions for which tuned tiles are valid."""
    return {"format": FORMAT, "device": device_name(), "triton": importlib.metadata.version("triton")}


def parse(content: Any) -> list[Tuned]:
    """The entries of a file's content.

    Raises:
        ValueError: The file is for another device or Triton, or an entry is not a tile.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object is needed, got {type(content).__name__}")
    for name, value in origin().items():
        if content.get(name) != value:
            raise ValueError(f"{name} must be {value!r}, got {content.get(name)!r}")
    return [parse_entry(entry) for entry in content["tiles"]]


def parse_entry(entry: Mapping[str, Any]) -> Tuned:
    work, tile = Work(**entry["work"]), Tile(**entry["tile"])
    key = Key(work, entry["use"], entry["D"])
    if not any(key.work in rows for rows in configs.TILES.values()):
        raise ValueError(f"no kernel has the key {key.work}")
    if not isinstance(key.use, str) or key.D not in (*BUCKETS, 0):
        raise ValueError(f"no tile is chosen by {key}")
    for name, size in tile._asdict().items():
        allowed = configs.SIZES[name]
        if type(size) is not int or size not in allowed:
            raise ValueError(f"{name} of {work.kernel!r} must be one of {allowed}, got {size!r}")
    seconds, default = entry["seconds"], entry["default_seconds"]
    if not all(type(t) is float and 0 < t < float("inf") for t in (seconds, seconds if default is None else default)):
        raise ValueError(f"seconds must be positive numbers, got {seconds!r} and {default!r}")
    return Tuned(key, tile, seconds, default, str(entry["date"]))


def remember(found: list[Tuned]) -> Path:
    """Add tiles to this device's file, which is replaced as a whole, and use them from now on."""
    tiles = {**remembered(), **{tuned.key: tuned for tuned in found}}
    entries = []
    for (work, use, D), tile, *found_by in tiles.values():
        entry = {"work": work._asdict(), "use": use, "D": D, "tile": tile._asdict()}
        entries.append(entry | dict(zip(Tuned._fields[2:], found_by, strict=True)))
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({**origin(), "tiles": entries}, indent=1) + "\n")
    part.replace(path)
    remembered.cache_clear()
    return path


def forget() -> None:
    """Delete this device's file."""
    file().unlink()
    remembered.cache_clear()
