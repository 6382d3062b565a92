"""Tables, marks and progress on a terminal, with or without rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

COLOURS = {"missed": "red", "failed": "red", "reached": "green"}  # of cells that begin with the word
MARKS = {"ok": "green", "!": "yellow", "next": "bold cyan", "-": "dim"}
Advance = Callable[[float, float], None]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """A table, with a note below it that explains its columns."""
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (columns, *rows)]
        print(title, *lines, *filter(None, [note]), sep="\n")
        return
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name in columns[:1] else "right")
    for row in rows:
        table.add_row(*(Text(cell, COLOURS.get(cell.split(" ")[0], "")) for cell in row))
    console = stdout()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to wrap at
    console.print(table)
    if note:
        console.print(Text(note, "dim"))


def mark(name: str, text: str) -> None:
    """A line that begins with one of MARKS, in colour where the terminal has any and NO_COLOR does not forbid it."""
    line = f"{name:>4}  {text}"
    try:
        from rich.text import Text
    except ImportError:
        print(line)
        return
    coloured = Text(line)
    coloured.stylize(MARKS[name], 0, 4)
    stdout().print(coloured, soft_wrap=True)


def stdout() -> Any:
    """rich's console, where rich is."""
    from rich.console import Console

    return Console()


def progress(what: str) -> AbstractContextManager[Advance]:
    """A bar on stderr as a context of advance(done, total); none without rich or a terminal."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return nullcontext(nothing)
    console = Console(stderr=True)
    if not console.is_terminal:
        return nullcontext(nothing)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    class Bar(AbstractContextManager[Advance]):
        def __enter__(self) -> Advance:
            self.bar = Progress(*columns, console=console)
            task = self.bar.add_task(what, total=None)
            self.bar.start()
            return lambda done, total: self.bar.update(task, completed=done, total=total)

        def __exit__(self, *_: object) -> None:
            self.bar.stop()

    return Bar()


def nothing(done: float, total: float) -> None:
    pass


def duration(seconds: float) -> str:
    """Roughly, as one says it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
