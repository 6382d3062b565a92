"""Which calls of a drop-in were fused, and why others were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, TypeVar

T = TypeVar("T")
_counts: Counter[tuple[str, str]] = Counter()  # by the name of the class, and why a call was not fused ("" if it was)


class NotFused(Exception):
    """Raised with the reason why a call goes to the library."""


class Call(NamedTuple):
    """How many calls of one kind there were."""

    loss: str  # the name of the class
    fused: bool
    why: str  # why it was not fused, or ""
    times: int


def fused_calls(*, reset: bool = False) -> list[Call]:
    """The calls of the drop-ins of `fusedloss.compat` in this process, by class, the most frequent first.

    Args:
        reset: whether to count from 0 again afterwards.

    Returns:
        A list of `Call(loss, fused, why, times)`:

        ```python
        loss = losses.TripletMarginLoss(margin=0.1, swap=True)
        loss(embeddings, labels)
        fused_calls()  # [Call('TripletMarginLoss', False, 'swap of all triplets of a batch', 1)]
        ```
    """
    found = [Call(loss, not why, why, count) for (loss, why), count in _counts.most_common()]
    if reset:
        _counts.clear()
    return sorted(found, key=lambda call: call.loss)


def attempt(loss: str, ours: Callable[[], T], library: Callable[[], T]) -> T:
    """The result of `ours`, or that of `library` where `ours` cannot give the library's value.

    Input that fusedloss refuses as wrong goes to the library too, which judges it.
    """
    try:
        found = ours()
    except (NotFused, TypeError, ValueError) as reason:
        _counts[loss, str(reason)] += 1
        return library()
    _counts[loss, ""] += 1
    return found


def unchanged(loss: object, library: ModuleType, *methods: str) -> None:
    """Raise `NotFused` for a subclass that overrides these methods of the library's class."""
    for name in methods:
        if getattr(loss, name).__module__ != library.__name__:
            raise NotFused(f"{name} is overridden")
