"""What is measured: the in-batch losses, every implementation of them, and the check that they agree."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedloss import measure, reference
from fusedloss.measure import Loss, Run

CLASSES = 32


class Case(NamedTuple):
    """A loss as `pytorch-metric-learning` computes it too, by its public name in fusedloss."""

    loss: str
    options: dict[str, Any]


# Random unit rows are about sqrt(2) apart and never more than 2. At margin 1 nearly every negative is inactive, so that
# work may be skipped; at 2.5 every negative is active. Both are shown, as training moves from one to the other.
PEER_FORM = {"power": 1, "reduction": "active"}
CASES = {
    "contrastive": Case("pairwise_contrastive_loss", {"neg_margin": 1.0, **PEER_FORM}),
    "contrastive, all active": Case("pairwise_contrastive_loss", {"neg_margin": 2.5, **PEER_FORM}),
    "batch-hard": Case("batch_hard_triplet_loss", {"margin": 0.2}),
}


# ------------------------------------------------------------------------------------------------- implementations


def metric_learning_contrastive(*, neg_margin: float, power: int, reduction: str, pos_margin: float = 0.0) -> Loss:
    from pytorch_metric_learning import distances, losses

    if (power, reduction) != (1, "active"):
        raise ValueError(f"pytorch-metric-learning has power 1 and reduction 'active', got {power} and {reduction!r}")
    distance = distances.LpDistance(normalize_embeddings=False)
    return losses.ContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin, distance=distance)


def metric_learning_batch_hard(*, margin: float) -> Loss:
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=margin, distance=distance, reducer=reducers.MeanReducer())
    return lambda x, labels: loss(x, labels, miner(x, labels))


METRIC_LEARNING: dict[str, Callable[..., Loss]] = {
    "pairwise_contrastive_loss": metric_learning_contrastive,
    "batch_hard_triplet_loss": metric_learning_batch_hard,
}


def compiled(loss: str, options: dict[str, Any]) -> Loss:
    function = getattr(reference, loss)
    # fullgraph: a break would time eager code; static shapes: what a fixed batch size gets
    return torch.compile(lambda x, labels: function(x, labels, **options), fullgraph=True, dynamic=False)


IMPLEMENTATIONS = {
    **measure.IMPLEMENTATIONS,
    "torch.compile": compiled,
    "pytorch-metric-learning": lambda loss, options: METRIC_LEARNING[loss](**options),
}
NEEDS = {"pytorch-metric-learning": "pytorch_metric_learning"}
ONLY_FLOAT32 = {"pytorch-metric-learning"}  # torch.cdist has no 16-bit kernel


def available(dtype: str) -> list[str]:
    """The implementations that are installed and take the dtype."""
    installed = [name for name in IMPLEMENTATIONS if importlib.util.find_spec(NEEDS.get(name, "torch"))]
    return [name for name in installed if dtype == "float32" or name not in ONLY_FLOAT32]


def in_batch(
    case: str, implementation: str, n: int, d: int, classes: int = CLASSES, device: str = "cpu", dtype: str = "float32"
) -> Run:
    """Maker for `fusedloss.measure`: forward and backward of a case, returning the value and the gradient."""
    loss = IMPLEMENTATIONS[implementation](*CASES[case])
    run = measure.training_step(loss, *measure.batch(n, d, classes, device, dtype))
    if implementation == "torch.compile":
        run()  # the compiler's own time and memory are not the loss's
    return run


# ---------------------------------------------------------------------------------------------------------- checks


class Error(NamedTuple):
    """Error of a result against float64, relative."""

    value: float
    gradient: float


ROUNDING = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}  # of a result in that dtype, with room for its sums


class Oracle:
    """Float64 results of a case on some data, and the errors that dense PyTorch has in the data's dtype."""

    def __init__(self, case: Case, x: Tensor, labels: Tensor) -> None:
        dense = IMPLEMENTATIONS["reference"](*case)
        self.name, self.data = case.loss, (x, labels)
        self.value, self.gradient = measure.training_step(dense, x.detach().double().requires_grad_(), labels)()
        self.rounding = ROUNDING[str(x.dtype).removeprefix("torch.")]
        self.dense = self.errors(dense)

    def errors(self, loss: Loss) -> Error:
        """The gradient's error is that of its rows, 99 of 100: a near tie may be mined the other way."""
        value, gradient = (t.double() for t in measure.training_step(loss, *self.data)())
        rows = (gradient - self.gradient).norm(dim=1) / self.gradient.norm(dim=1).square().mean().sqrt()
        most = rows.sort().values[int(0.99 * (len(rows) - 1))]
        return Error(float((value - self.value).abs() / self.value.abs()), float(most))

    def check(self, loss: Loss) -> Error:
        """The error of an implementation, which must be no larger than dense PyTorch's (x 1.5)."""
        found = self.errors(loss)
        for what, error, dense in zip(Error._fields, found, self.dense, strict=True):
            if not error <= 1.5 * dense + self.rounding:
                raise AssertionError(f"{self.name}: {what} is off by {error:.1e}, dense PyTorch's by {dense:.1e}")
        return found


def saved_bytes(loss: Loss, x: Tensor, labels: Tensor) -> int:
    """Memory that the forward keeps for the backward, the inputs included."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = loss(x, labels)
    del value
    return sum(storages.values())
