"""Rows as they occur in practice (of length 1, short, long, or far from the origin), and tensors of such rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedloss.losses.catalog import Role

ROWS = (Role.ROWS, Role.KEYS, Role.VIEW, Role.REF_ROWS, Role.QUEUE, Role.CLASSES)
ORDERS = 16  # the largest error counts: where roundings cancel, a few orders may all be lucky
LOGITS = 2.0  # the spread of given logits of length 1


class Regime(NamedTuple):
    """Entries with spread `length` / sqrt(D) around `offset` times the spread; given logits have spread 2 `length`."""

    length: float = 1.0
    offset: float = 0.0


NORMAL = Regime()


def placed(tensors: Mapping[str, Tensor], roles: Mapping[str, Role], regime: Regime) -> dict[str, Tensor]:
    """Tensors of a loss, whose rows have length 1, in a regime; rows and logits in float64, all others as they are."""
    found = dict(tensors)
    for name, t in tensors.items():
        if roles[name] in ROWS or roles[name] is Role.LOGITS:
            spread = LOGITS if roles[name] is Role.LOGITS else t.shape[-1] ** -0.5
            of_spread_1 = t.detach().double() * t.shape[-1] ** 0.5
            found[name] = regime.length * spread * (of_spread_1 + regime.offset)
    return found


def holds(dtype: torch.dtype, regime: Regime, tensors: Mapping[str, Any], exact: Mapping[str, Tensor]) -> bool:
    """Whether a dtype can hold a case: rounding leaves most of the spread of the rows, and the largest entries of the
    rows and of the exact gradients by them (given by name) are normal numbers of the dtype, or 0.

    The value of a loss, and its gradients by numbers, are float32 or wider, so they always fit.
    """
    limits = torch.finfo(dtype)
    rows = [(name, t) for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point() and t.dim()]
    found = [t for _, t in rows] + [exact[name] for name, _ in rows if name in exact]
    largest = [float(t.abs().max()) for t in found if t.numel()]
    told_apart = regime.offset * limits.eps < 0.1
    return told_apart and all(size == 0 or limits.tiny <= size <= limits.max for size in largest)


def forms(dense: Callable[..., Tensor], names: Sequence[str], shift: float = 0.0) -> list[Callable[..., Tensor]]:
    """A dense loss of rows less a common shift, and variants that eager PyTorch might equally well compute: with sums
    over the dimensions in another order, and with other last bits of the rows (the arguments of these names)."""

    def form(seed: int, **given: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            rows = given[name]
            given[name] = rows = rows - shift if shift else rows
            if seed:
                bits = torch.randint(2, rows.shape, generator=generator).double() * torch.finfo(rows.dtype).eps / 2
                given[name] = (rows * (1 - bits).to(rows)).roll(seed, -1)
        return dense(**given)

    return [partial(form, seed) for seed in range(ORDERS)]
