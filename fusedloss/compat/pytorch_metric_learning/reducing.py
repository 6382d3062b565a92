"""What the library's reducers make of pairs and triplets, computed from sums per anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import reducers
from torch import Tensor

from ...losses.reduce import reduce
from ..calls import NotFused

Loss = dict[str, Any]  # what a reducer takes: losses, their indices, and their kind


class Sums(NamedTuple):
    """Sums over every anchor's pairs, or triplets. [N] each"""

    terms: Tensor  # the sum of the losses
    counts: Tensor  # how many there are
    active: Callable[[], Tensor]  # how many cost something


def zero() -> Loss:
    return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}


def reduced(value: Tensor) -> Loss:
    """A loss that the reducers leave as it is."""
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def elements(losses: Tensor, indices: Tensor | None = None, **more: Any) -> Loss:
    """One loss per row, for any reducer."""
    indices = torch.arange(losses.shape[0], device=losses.device) if indices is None else indices
    return {"losses": losses, "indices": indices, "reduction_type": "element", **more}


def reducer_of(loss: Any, name: str) -> Any:
    """The reducer of one of a loss's parts."""
    reducer = loss.reducer
    if type(reducer) is reducers.MultipleReducers:
        named = dict(reducer.reducers.items())
        reducer = named.get(name, reducer.default_reducer)
    if reducer.collect_stats:
        raise NotFused("the reducer collects stats")
    return reducer


def summed(reducer: Any, sums: Sums, x: Tensor, labels: Tensor, triplets: bool = False) -> Loss:
    """What a reducer of pairs (or triplets) makes of the sums over those of every anchor x."""
    terms, counts, active = sums
    kind = type(reducer)
    if kind is reducers.MeanReducer:
        return reduced(reduce(terms, "mean", counts.sum(), x))
    if kind is reducers.SumReducer:
        return reduced(reduce(terms, "sum", 0, x))
    if kind is reducers.AvgNonZeroReducer:
        return reduced(reduce(terms, "active", 0, x, active()))
    if kind is reducers.ClassWeightedReducer:
        weights = reducer.weights.to(x.device, terms.dtype)[labels]
        return reduced(reduce(terms * weights, "mean", counts.sum(), x))
    if kind is reducers.PerAnchorReducer and default_mean(reducer) and not triplets:
        return elements((terms / counts.clamp(min=1)).to(x.dtype))
    raise NotFused(f"{kind.__name__} of {'triplets' if triplets else 'pairs'}, which wants each of them")


def default_mean(reducer: Any) -> bool:
    return bool(reducer.aggregation_func is reducers.PerAnchorReducer().aggregation_func)
