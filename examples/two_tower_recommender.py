"""A two-tower recommender, with and without the logQ correction for popular items.

    python examples/two_tower_recommender.py
    python examples/two_tower_recommender.py --ratings ml-100k/u.data

Users and items are here the source files of Python, scikit-learn and torch, and the modules they import: a few are
popular with nearly all, most with a handful, as in shops. One import of each file is hidden, to be recommended from its
others. With --ratings they are those of a file of lines "user item rating time", as MovieLens has them, separated by
tabs, commas or "::"; then the last item of each user is hidden.

In a batch of purchases the popular items are negatives more often than others, so that a plain softmax learns to avoid
them. `key_bias`, minus the logarithm of the probability that an item is in the batch, makes up for that. It needs
scikit-learn: pip install "fusedloss[examples]".
"""

import argparse
import os
import random
import re
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from common import add_device, parser, print_table, progress
from torch import Tensor, nn
from torch.nn.functional import normalize

import fusedloss

IMPORT = re.compile(r"^(?:from\s+([.\w]+)\s+import\b|import\s+([\w.]+(?:\s*,\s*[\w.]+)*))", re.MULTILINE)
NO_SOURCE = {"site-packages", "test", "tests", "__pycache__"}


class Purchases(NamedTuple):
    """Of each user which items are known, [users, items] of 0 and 1, and the one that is hidden, [users]."""

    known: Tensor
    hidden: Tensor


def imported(file: Path, package: tuple[str, ...]) -> list[str]:
    """The modules that a file of a package imports at its top level, once each."""
    found = {}
    for relative, absolute in IMPORT.findall(file.read_text(encoding="utf-8", errors="ignore")):
        for name in re.split(r"\s*,\s*", absolute or relative):
            dots = len(name) - len(name.lstrip("."))
            own = package[: len(package) - dots + 1] if dots else ()
            found[".".join((*own, name.lstrip(".")) if name.lstrip(".") else own)] = None
    return [*found]


def read_imports(seed: int) -> list[list[str]]:
    """Items by user; the hidden one is the last, so they are shuffled."""
    shuffle, users = random.Random(seed).shuffle, []
    for name in ("os", "sklearn", "torch"):
        spec = find_spec(name)
        top = Path(os.__file__ if name == "os" or spec is None or spec.origin is None else spec.origin).parent
        for folder, folders, files in os.walk(top):
            folders[:] = sorted({*folders} - NO_SOURCE)
            own = Path(folder).relative_to(top if name == "os" else top.parent).parts
            for file in sorted(name for name in files if name.endswith(".py")):
                users.append(imported(Path(folder, file), own))
                shuffle(users[-1])
    return users


def read_ratings(path: Path) -> list[list[str]]:
    """Items by user, the latest last. That an item was rated counts, not how."""
    lines = [re.split(r"::|[\t,]", line.strip()) for line in path.read_text().splitlines() if line.strip()]
    if not lines[0][3].isdigit():  # names of the columns
        lines = lines[1:]
    users = defaultdict(list)
    for user, item, _, _ in sorted(lines, key=lambda line: float(line[3])):
        users[user].append(item)
    return [*users.values()]


def purchases(users: list[list[str]], device: torch.device) -> Purchases:
    """Of items with 5 users or more and users with 3 of them or more."""
    count = Counter(item for items in users for item in items)
    number = {item: i for i, item in enumerate(sorted(item for item in count if count[item] >= 5))}
    kept = [[number[item] for item in items if item in number] for items in users]
    kept = [items for items in kept if len(items) >= 3]
    known = torch.zeros(len(kept), len(number), device=device)
    for row, items in zip(known, kept, strict=True):
        row[items[:-1]] = 1
    return Purchases(known, torch.tensor([items[-1] for items in kept], device=device))


class Towers(nn.Module):
    """A user is the items they have, an item its number. If you know more of either, give it to its tower too."""

    def __init__(self, items: int, dim: int = 64) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Linear(items, 128), nn.ReLU(), nn.Linear(128, dim))
        self.item = nn.Embedding(items, dim)

    def scores(self, known: Tensor) -> Tensor:
        return self.user(normalize(known)) @ self.item.weight.T


def train(known: Tensor, corrected: bool, args: argparse.Namespace) -> Towers:
    torch.manual_seed(args.seed)
    towers = Towers(known.shape[1]).to(known.device)
    optimizer = torch.optim.Adam(towers.parameters(), lr=3e-3)
    sold = known.nonzero()  # a row for every purchase: its user and its item
    probability = known.sum(0) / len(sold)  # that an item is drawn; in a stream of data, count as you go
    for _ in progress(range(args.epochs), "with logQ" if corrected else "without"):
        for batch in torch.randperm(len(sold), device=known.device).split(args.batch):
            user, item = sold[batch].T
            others = known[user].scatter(1, item[:, None], 0)  # not what is to be predicted
            loss = fusedloss.info_nce_loss(
                towers.user(normalize(others)), towers.item(item), metric="dot", temperature=1.0,
                key_bias=-probability[item].log() if corrected else None,
                ids=item,  # the same item, bought by another user of the batch, is no negative
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return towers


@torch.no_grad()
def recall_at_10(scores: Tensor, data: Purchases) -> dict[str, float]:
    """The share of users whose hidden item is among the ten with the highest scores that they do not have."""
    best = scores.masked_fill(data.known.bool(), -torch.inf).topk(10).indices
    return {"Recall@10": (best == data.hidden[:, None]).any(1).float().mean().item()}


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=8, quick=3)
    add_device(found)
    found.add_argument("--batch", type=int, default=512, help="purchases a step (%(default)s)")
    found.add_argument("--ratings", type=Path, help="a file of ratings, as of MovieLens")
    return found.parse_args()


def main(args: argparse.Namespace) -> None:
    data = purchases(read_ratings(args.ratings) if args.ratings else read_imports(args.seed), args.device)
    popularity = data.known.sum(0)
    users, items = data.known.shape
    print(f"{users} users, {items} items, {int(popularity.sum())} purchases and a hidden one of each user:")
    found = {"the most popular items": recall_at_10(popularity.expand(users, items), data)}
    for name, corrected in (("two towers, no logQ", False), ("two towers with logQ", True)):
        found[name] = recall_at_10(train(data.known, corrected, args).scores(data.known), data)
    print_table(found)


if __name__ == "__main__":
    main(options())
