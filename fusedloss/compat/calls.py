"""Which calls of a drop-in were fused, and why others were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, TypeVar

T = TypeVar("T")
_counts: Counter[tuple[str, str]] = Counter()  # by the class's name and why a call was not fused, "" if it was


class NotFused(Exception):
    """Why a call goes to the library."""


class Call(NamedTuple):
    """So many calls of one kind."""

    loss: str  # the name of the class
    fused: bool
    why: str  # why it was not fused, or ""
    times: int


def fused_calls(*, reset: bool = False) -> list[Call]:
    """What the drop-ins of `fusedloss.compat` have run in this process, by class, the most frequent first.

    Args:
        reset: count from 0 again.

    Returns:
        A list of `Call(loss, fused, why, times)`::

            loss = losses.TripletMarginLoss(margin=0.1, swap=True)
            loss(embeddings, labels)
            fused_calls()  # [Call('TripletMarginLoss', False, 'swap of all triplets of a batch', 1)]
    """
    found = [Call(loss, not why, why, count) for (loss, why), count in _counts.most_common()]
    if reset:
        _counts.clear()
    return sorted(found, key=lambda call: call.loss)


def attempt(loss: str, ours: Callable[[], T], library: Callable[[], T]) -> T:
    """What ours returns, or, where it cannot be the library's value, what the library returns.

    What fusedloss refuses as bad input is the library's to judge.
    """
    try:
        found = ours()
    except (NotFused, TypeError, ValueError) as reason:
        _counts[loss, str(reason)] += 1
        return library()
    _counts[loss, ""] += 1
    return found


def unchanged(loss: object, library: ModuleType, *methods: str) -> None:
    """What a subclass computes otherwise than that module of the library is not fused."""
    for name in methods:
        if getattr(loss, name).__module__ != library.__name__:
            raise NotFused(f"{name} is overridden")
