"""The GPU targets, and the tables of the timings that `bench.gpu` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .cpu_table import OURS, verdict
from .tables import ratio, seconds, size

REFERENCE = "reference"


class Target(NamedTuple):
    """At most this time of forward + backward on an H100, in bfloat16."""

    case: str
    n: int
    d: int
    seconds: float
    dtype: str = "bfloat16"


TARGETS = (
    Target("batch-hard", 65_536, 256, 4.1e-3),
    Target("contrastive", 65_536, 256, 3e-3),  # nearly every hinge is inactive
    Target("contrastive, all active", 65_536, 256, 11e-3),
    Target("nt-xent", 65_536, 256, 16.5e-3),
    Target("supcon", 65_536, 256, 16.5e-3),
    Target("siglip", 131_072, 768, 48.8e-3),  # N counts the rows of both towers: 65,536 a side
    Target("clip", 131_072, 512, 35e-3),
)
TARGET_COLUMNS = ["target", "dtype", "D", "N", "H100 at most", "measured", "verdict"]


def members_of(row: dict[str, Any]) -> list[str]:
    return [name for name, found in row.items() if isinstance(found, dict)]


def others_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every member but ours, the reference first."""
    found = dict.fromkeys(name for row in rows for name in members_of(row) if name != OURS)
    return sorted(found, key=lambda name: name != REFERENCE)


def target_cells(target: Target, rows: Sequence[dict[str, Any]]) -> list[str]:
    wanted = (target.case, target.n, target.d, target.dtype)
    row = next((row for row in rows if (row["case"], row["n"], row["d"], row["dtype"]) == wanted), None)
    work = [target.case, target.dtype, f"{target.d}", f"{target.n:,}", seconds(target.seconds)]
    if row is None:
        return [*work, "-", "not measured"]
    if "failed" in row[OURS]:
        return [*work, "-", "failed"]
    return [*work, seconds(row[OURS]["seconds"]), verdict(row[OURS]["seconds"], target.seconds)]


def is_target(row: dict[str, Any]) -> bool:
    key = row["case"], row["n"], row["d"], row["dtype"]
    return any(key == (target.case, target.n, target.d, target.dtype) for target in TARGETS)


def columns(others: Sequence[str]) -> list[str]:
    return ["case", "dtype", "D", "N", OURS, "of floor", *others, "peak", *(f"{name}'s" for name in others)]


def cells(row: dict[str, Any], others: Sequence[str]) -> list[str]:
    ours = row[OURS]
    return [
        row["case"],
        row["dtype"],
        f"{row['d']}",
        f"{row['n']:,}",
        "failed" if "failed" in ours else seconds(ours["seconds"]),
        f"{ours['of_gemm_floor']:.1%}" if "of_gemm_floor" in ours else "-",
        *(beside(ours, row.get(name), "seconds") for name in others),
        size(ours["peak_bytes"]) if "peak_bytes" in ours else "-",
        *(beside(ours, row.get(name), "peak_bytes") for name in others),
    ]


def beside(ours: dict[str, Any], theirs: dict[str, Any] | None, what: str) -> str:
    """A member's time or peak, and ours as a fraction of it."""
    if theirs is None or (what != "seconds" and "failed" in theirs):
        return "-"
    if "failed" in theirs:
        return theirs["failed"].split(":")[0][:40]  # of an exception only its name
    shown = (seconds if what == "seconds" else size)(theirs[what])
    both = ours.get(what, 0) > 0 and theirs[what] > 0  # a peak may be nothing
    return f"{shown} ({ratio(ours[what] / theirs[what])})" if both else shown
