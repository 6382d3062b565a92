"""How numbers and tables are written, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def seconds(t: float) -> str:
    if t < 0.9995e-3:  # a bound above which three digits would read 1e+03
        return f"{t * 1e6:.3g} µs"
    return f"{t * 1e3:.3g} ms" if t < 0.9995 else f"{t:.2f} s"


def size(b: float) -> str:
    return f"{b / 2**30:.2f} GiB" if b >= 2**30 else f"{b / 2**20:.1f} MiB"


def ratio(fraction: float) -> str:
    return f"1/{1 / fraction:.1f}" if fraction <= 1 else f"{fraction:.1f}x"


def gain(fraction: float) -> str:
    """How many times less a fraction is: "5.1x", "402x"; below 1x it is more."""
    times = 1 / fraction
    return f"{times:,.0f}x" if times >= 9.95 else f"{times:.1f}x"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
