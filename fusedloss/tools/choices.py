"""Names on the command line: what a misspelt one may have meant."""

from __future__ import annotations

import shutil
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches

FEW = 6  # names that an error lists in its line


def one_of(kind: str, names: Collection[str]) -> Callable[[str], str]:
    """A `type` of argparse that takes these names, and suggests some for another one."""

    def name(word: str) -> str:
        if word in names:
            return word
        raise ArgumentTypeError(f"unknown {kind} {word!r}; {suggestion(word, names)}")

    return name


def suggestion(word: str, names: Collection[str]) -> str:
    if len(names) <= FEW:
        return f"there are {', '.join(names)}"
    near = close(word, names)
    if near:
        return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?"
    return f"there are\n{columns(sorted(names))}"


def close(word: str, names: Collection[str]) -> list[str]:
    """Up to three names that begin with the word or have it in them, or else are spelt alike. Case and underscores do
    not count: SupConLoss is supcon_loss."""
    own = {plain(name): name for name in names}
    asked = plain(word)
    same = [name for name in own if asked in (name, name.removesuffix("loss"))]
    holding = sorted((name for name in own if asked and asked in name), key=lambda name: name.index(asked))
    return [own[name] for name in (same or holding or get_close_matches(asked, own))[:3]]


def plain(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())


def columns(names: Sequence[str]) -> str:
    """Names below each other, in as many columns as the terminal has room for."""
    width = max(map(len, names)) + 2
    count = max(1, shutil.get_terminal_size().columns // width)
    height = -(-len(names) // count)
    rows = [names[i::height] for i in range(height)]
    return "\n".join("".join(name.ljust(width) for name in row).rstrip() for row in rows)
