"""The code of the README and of the pages in docs: one program a page, and one a word that follows `python`.

A program runs top to bottom as it stands. The blocks of ```text after its own are what it prints.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import random
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from fusedloss.compat import fused_calls
from tests import torchrun

ROOT = torchrun.ROOT
FENCE = re.compile(r"^( *)```(\w*)(?: (\w+))?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
PROCESSES = {"init_process_group": 2, "accelerate": 2, "lightning": 1}  # by what a program imports; the last starts two


def all_pages() -> list[str]:
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def fences(page: str) -> list[tuple[str, str, str]]:
    """Of every fenced block the language, the program it belongs to, and the lines."""
    found, program = [], ""
    for indent, language, word, body in FENCE.findall((ROOT / page).read_text()):
        program = word if language == "python" else program
        found.append((language, program, textwrap.dedent(body) if indent else body))
    return found


def programs(page: str) -> dict[str, str]:
    """The page's code by the word after `python`; "" is that of most of a page."""
    return {program: blocks(page, "python", program) for language, program, _ in fences(page) if language == "python"}


def blocks(page: str, language: str, program: str = "") -> str:
    return "\n".join(body for *kind, body in fences(page) if kind == [language, program])


def packages(code: str) -> set[str]:
    """What a program imports, a library too that `fusedloss.compat` stands in for."""
    nodes = [*ast.walk(ast.parse(code))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.removeprefix("fusedloss.compat.").partition(".")[0] for name in names}


def processes(code: str) -> int:
    """How many processes are to be started for a program; 0: it may run in this one."""
    return max(count if re.search(rf"\b{name}\b", code) else 0 for name, count in PROCESSES.items())


@contextlib.contextmanager
def as_in_a_fresh_process(folder: Path) -> Iterator[None]:
    """What a program finds, and may change, is not what the one before has left."""
    directory, path, main = os.getcwd(), [*sys.path], sys.modules["__main__"]
    dtype, threads, numbers = torch.get_default_dtype(), torch.get_num_threads(), random.getstate()
    fused_calls(reset=True)
    os.chdir(folder)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(1)  # a page that shows numbers has its own
            random.seed(1)
            yield
    finally:
        os.chdir(directory)
        sys.path[:], sys.modules["__main__"] = path, main
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        random.setstate(numbers)


def printed_here(code: str, name: str, folder: Path) -> str:
    """What a program prints that runs as the main module of this process, in which torch is imported once for all."""
    module, out = ModuleType("__main__"), io.StringIO()
    with as_in_a_fresh_process(folder), contextlib.redirect_stdout(out):
        sys.modules["__main__"] = module
        exec(compile(code, name, "exec"), vars(module))
    return out.getvalue()


def printed_in_processes(code: str, folder: Path) -> str:
    (folder / "page.py").write_text(code + torchrun.END)
    return torchrun.run("page.py", folder=folder, processes=processes(code))


def printed(code: str, name: str, folder: Path) -> str:
    return printed_in_processes(code, folder) if processes(code) else printed_here(code, name, folder)


def differences(printed: str, shown: str) -> list[str]:
    """The lines that are printed and not shown, or shown and not printed.

    Words and whole numbers have to be the same. A number with a point may be off by 0.05 or 5 %, since training ends
    elsewhere on another machine; one with an exponent is an error, and at most ten times as large.
    """
    found, wanted = ([line for line in text.splitlines() if line] for text in (printed, shown))
    if len(found) != len(wanted):
        return [f"{len(wanted)} lines are shown, {len(found)} are printed:", *found]
    pairs = zip(found, wanted, strict=True)
    return [f"{want!r} is shown, {line!r} is printed" for line, want in pairs if not agree(line, want)]


def agree(found: str, wanted: str) -> bool:
    if NUMBER.sub("#", found).split() != NUMBER.sub("#", wanted).split():
        return False
    return all(map(near, NUMBER.findall(found), NUMBER.findall(wanted)))


def near(found: str, wanted: str) -> bool:
    value, want = float(found), float(wanted)
    if "e" in wanted:
        return abs(value) <= 10 * abs(want)
    return abs(value - want) <= (max(0.05, 0.05 * abs(want)) if "." in wanted else 0)
