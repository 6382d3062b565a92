"""The GPU targets, and the tables of the timings that `bench.gpu` makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fusedloss.kernels import configs

from .cpu_table import OURS, verdict
from .floor import sides
from .tables import ratio, seconds, size
from .workloads import CASES

REFERENCE, COMPILED, LIBRARY = "reference", "torch.compile", "pytorch-metric-learning"
LAUNCH_BOUND = 4096  # up to so many rows the number of launches counts
Key = tuple[str, int, int, str]  # case, N, D, dtype


class Target(NamedTuple):
    """The most that forward + backward may take on an H100, as a number or as a fraction of another member's."""

    case: str
    n: int
    d: int
    most: float
    what: str = "seconds"  # or peak_bytes, launches
    of: str | None = None
    dtype: str = "bfloat16"

    @property
    def key(self) -> Key:
        """The key of its row."""
        return self.case, self.n, self.d, self.dtype


TARGETS = (
    Target("batch-hard", 65_536, 256, 4.1e-3),
    Target("contrastive", 65_536, 256, 3e-3),  # nearly every hinge is inactive
    Target("contrastive, all active", 65_536, 256, 11e-3),
    Target("nt-xent", 65_536, 256, 16.5e-3),
    Target("supcon", 65_536, 256, 16.5e-3),
    Target("siglip", 131_072, 768, 48.8e-3),  # N counts the rows of both towers: 65,536 a side
    Target("clip", 131_072, 512, 35e-3),
    *(
        Target(case, 8192, 128, most, what, LIBRARY, "float32")  # as much as its distances alone take
        for case in ("contrastive", "batch-hard", "supcon", "circle")
        for what, most in (("seconds", 1 / 20), ("peak_bytes", 1 / 100))
    ),
    *(
        target
        for case in ("contrastive", "batch-hard", "supcon", "nt-xent", "clip")
        for target in (
            Target(case, LAUNCH_BOUND, 128, 6, "launches"),
            Target(case, LAUNCH_BOUND, 128, 1, "seconds", COMPILED),
        )
    ),
    *(Target(case, 1_048_576, 256, math.inf) for case in ("batch-hard", "contrastive", "supcon")),
)
TARGET_COLUMNS = ["target", "dtype", "D", "N", "H100 at most", "measured", "verdict"]
SHOWN = {"seconds": seconds, "peak_bytes": size, "launches": "{:.0f} launches".format}


def members_of(row: dict[str, Any]) -> list[str]:
    return [name for name, found in row.items() if isinstance(found, dict)]


def others_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every member but ours, the reference first."""
    found = dict.fromkeys(name for row in rows for name in members_of(row) if name != OURS)
    return sorted(found, key=lambda name: name != REFERENCE)


def key_of(row: dict[str, Any]) -> Key:
    return row["case"], row["n"], row["d"], row["dtype"]


def asked(target: Target) -> str:
    if math.isinf(target.most):
        return "it runs"
    if target.of:
        part = "" if target.most == 1 else f"{ratio(target.most)} of "
        return f"{part}{target.of}'s {'time' if target.what == 'seconds' else 'peak'}"
    return SHOWN[target.what](target.most)


def target_cells(target: Target, rows: Sequence[dict[str, Any]]) -> list[str]:
    row = next((row for row in rows if key_of(row) == target.key), {})
    work = [target.case, target.dtype, f"{target.d}", f"{target.n:,}", asked(target)]
    ours, theirs = row.get(OURS, {}), row.get(target.of, {})
    if "failed" in ours:
        return [*work, "-", "failed"]
    if target.what not in ours:
        return [*work, "-", "not measured"]
    found = ours[target.what]
    if target.of is None:
        return [*work, SHOWN[target.what](found), "reached" if math.isinf(target.most) else verdict(found, target.most)]
    if target.what not in theirs:
        return [*work, SHOWN[target.what](found), f"{target.of}: {theirs.get('failed', 'not measured')[:40]}"]
    return [*work, ratio(found / theirs[target.what]), verdict(found / theirs[target.what], target.most)]


def memory_cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The cells of the row whose peak is the largest fraction of its target."""
    shares = {}
    for row in rows:
        matrix = sides(CASES[row["case"]].loss, row["n"], row["classes"])
        if matrix and "peak_bytes" in row[OURS]:
            shares[key_of(row)] = row[OURS]["peak_bytes"] / (16 * sum(matrix) * row["d"] + configs.WORKSPACE)
    work = ["every loss", "-", "-", "-", f"peak of 16 (N + M) D bytes + {size(configs.WORKSPACE)}"]
    if not shares:
        return [*work, "-", "not measured"]
    case, n, d, dtype = worst = max(shares, key=shares.__getitem__)
    return [*work, f"{shares[worst]:.0%} ({case}, {dtype}, D={d}, N={n:,})", verdict(shares[worst], 1)]


def is_target(row: dict[str, Any]) -> bool:
    return any(key_of(row) == target.key for target in TARGETS)


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
        return theirs["failed"].split(":")[0][:40]  # only the name of an exception
    shown = (seconds if what == "seconds" else size)(theirs[what])
    both = ours.get(what, 0) > 0 and theirs[what] > 0  # a peak may be nothing
    return f"{shown} ({ratio(ours[what] / theirs[what])})" if both else shown
