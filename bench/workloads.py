"""What is measured: the losses, every implementation of them, and the check that they agree."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedloss
from fusedloss import measure, reference
from fusedloss.measure import Loss, Run

CLASSES = 32


class Case(NamedTuple):
    """A loss by its public name in fusedloss, as the peers compute it too."""

    loss: str
    options: dict[str, Any]
    classes: int = CLASSES
    peer_rows: int | None = None  # the most rows with which its peer ends in this life
    dense_rows: int | None = None  # and dense PyTorch; larger batches are checked at this size


# Losses of pairs, row i of one half of the batch with row i of the other, instead of labels.
PAIRED = ("nt_xent_loss", "info_nce_loss", "clip_loss", "siglip_loss", "n_pair_loss")
# Losses of the rows and one row a class, which are the last rows of the batch and receive their gradient too.
WITH_CLASSES = ("linear_cross_entropy_loss", "arcface_loss", "proxy_anchor_loss")
# Losses of given logits, as many as there are classes; and those whose targets are 1 for the class of a row, else 0.
GIVEN_LOGITS = ("cross_entropy_loss", "sigmoid_focal_loss", "binary_cross_entropy_loss")
ELEMENTS = GIVEN_LOGITS[1:]


# Random unit rows are about sqrt(2) apart and never more than 2. At margin 1 nearly every negative is inactive, so that
# work may be skipped; at 2.5 every negative is active. Both are shown, as training moves from one to the other.
PEER_FORM = {"power": 1, "reduction": "active"}
CASES = {
    "contrastive": Case("pairwise_contrastive_loss", {"neg_margin": 1.0, **PEER_FORM}),
    "contrastive, all active": Case("pairwise_contrastive_loss", {"neg_margin": 2.5, **PEER_FORM}),
    "batch-hard": Case("batch_hard_triplet_loss", {"margin": 0.2}),
    "all triplets": Case("batch_all_triplet_loss", {"margin": 0.2, "reduction": "active"}, 256, 4096, 256),
    "all triplets, 32 classes": Case(
        "batch_all_triplet_loss", {"margin": 0.2, "reduction": "active"}, peer_rows=1024, dense_rows=256
    ),
    "semi-hard": Case("batch_semihard_triplet_loss", {"margin": 0.2}, dense_rows=256),
    "supcon": Case("supcon_loss", {"temperature": 0.1}),
    "circle": Case("circle_loss", {"margin": 0.4, "gamma": 80.0}),
    "multi-similarity": Case("multi_similarity_loss", {}),
    "generalised lifted": Case("generalized_lifted_structure_loss", {}),
    # The peer's compare every positive pair with every negative pair: N = 512 takes seconds.
    "lifted": Case("lifted_structure_loss", {}, peer_rows=128),
    "nt-xent": Case("nt_xent_loss", {"temperature": 0.5}, peer_rows=512),
    "info-nce": Case("info_nce_loss", {"temperature": 0.07}),
    "clip": Case("clip_loss", {"logit_scale": 20.0}),
    "siglip": Case("siglip_loss", {"logit_scale": 10.0, "logit_bias": -10.0}),
    "n-pair": Case("n_pair_loss", {}),
    "linear cross entropy, 100,000 classes": Case("linear_cross_entropy_loss", {}, 100_000, 4096, 512),
    "arcface, 100,000 classes": Case("arcface_loss", {"margin": 0.5, "scale": 64.0}, 100_000, 512, 512),
    "proxy anchor, 10,000 classes": Case("proxy_anchor_loss", {}, 10_000, 4096, 1024),
    "cross entropy, 32,000 logits": Case("cross_entropy_loss", {}, 32_000, 4096, 1024),
    "binary cross entropy, 10,000 logits": Case("binary_cross_entropy_loss", {}, 10_000, 4096, 1024),
    "sigmoid focal, 10,000 logits": Case("sigmoid_focal_loss", {}, 10_000, 4096, 1024),
}


def data(case: Case, n: int, d: int, device: str, dtype: str, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs of a case: rows, which require their gradient, and n labels."""
    classes = classes or case.classes
    if case.loss in GIVEN_LOGITS:
        x, labels = measure.batch(n, classes, classes, device, dtype)
        return (2 * classes**0.5 * x.detach()).requires_grad_(), labels
    if case.loss in WITH_CLASSES:
        x, labels = measure.batch(n + classes, d, classes, device, dtype)
        return x, labels[:n]
    return measure.batch(n, d, classes, device, dtype)


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


def metric_learning_all_triplets(*, margin: float, reduction: str) -> Loss:
    from pytorch_metric_learning import distances, losses

    if reduction != "active":
        raise ValueError(f"pytorch-metric-learning has reduction 'active', got {reduction!r}")
    return losses.TripletMarginLoss(margin=margin, distance=distances.LpDistance(normalize_embeddings=False))


def metric_learning(name: str, **names: str) -> Callable[..., Loss]:
    """One of its losses of all pairs, which has these names for our options."""

    def make(**options: Any) -> Loss:
        from pytorch_metric_learning import losses

        loss: Loss = getattr(losses, name)(**{names.get(option, option): v for option, v in options.items()})
        return loss

    return make


def metric_learning_nt_xent(*, temperature: float) -> Loss:
    from pytorch_metric_learning import losses

    loss = losses.NTXentLoss(temperature=temperature)
    return lambda x, labels: loss(x, torch.arange(len(x) // 2, device=x.device).repeat(2))  # two views a class


def metric_learning_classes(name: str, weight: str, degrees: bool = False) -> Callable[..., Loss]:
    """One of its losses of classes, whose rows are ours instead of a parameter of its own."""

    def make(**options: Any) -> Loss:
        from pytorch_metric_learning import losses

        if degrees:
            options["margin"] = math.degrees(options["margin"])

        def of_rows(x: Tensor, labels: Tensor) -> Tensor:
            rows, classes = x[: len(labels)], x[len(labels) :]
            loss = getattr(losses, name)(2, x.shape[1], **options)
            loss.num_classes = len(classes)
            loss.cast_types = lambda *_: None  # it would copy its parameter
            delattr(loss, weight)
            setattr(loss, weight, classes.t() if weight == "W" else classes)
            found: Tensor = loss(rows, labels)
            return found

        return of_rows

    return make


METRIC_LEARNING: dict[str, Callable[..., Loss]] = {
    "pairwise_contrastive_loss": metric_learning_contrastive,
    "batch_hard_triplet_loss": metric_learning_batch_hard,
    "batch_all_triplet_loss": metric_learning_all_triplets,
    "supcon_loss": metric_learning("SupConLoss"),
    "circle_loss": metric_learning("CircleLoss", margin="m"),
    "multi_similarity_loss": metric_learning("MultiSimilarityLoss"),
    "generalized_lifted_structure_loss": metric_learning("GeneralizedLiftedStructureLoss"),
    "lifted_structure_loss": metric_learning("LiftedStructureLoss"),
    "nt_xent_loss": metric_learning_nt_xent,
    "arcface_loss": metric_learning_classes("ArcFaceLoss", "W", degrees=True),
    "proxy_anchor_loss": metric_learning_classes("ProxyAnchorLoss", "proxies"),
}

TORCH: dict[str, Callable[..., Tensor]] = {
    "linear_cross_entropy_loss": lambda x, w, target: F.cross_entropy(F.linear(x, w), target),
    "cross_entropy_loss": F.cross_entropy,
    "binary_cross_entropy_loss": F.binary_cross_entropy_with_logits,
}


def of_function(function: Callable[..., Tensor], loss: str, options: dict[str, Any]) -> Loss:
    """A loss, by its arguments, as a function of rows and labels."""
    if loss in PAIRED:
        return lambda x, labels: function(*x.chunk(2), **options)
    if loss in WITH_CLASSES:
        return lambda x, labels: function(x[: len(labels)], x[len(labels) :], labels, **options)
    if loss in ELEMENTS:
        return lambda x, labels: function(x, F.one_hot(labels, x.shape[1]).to(x.dtype), **options)
    return lambda x, labels: function(x, labels, **options)


def of_batch(module: Any, loss: str, options: dict[str, Any]) -> Loss:
    """A loss of fusedloss or of its reference as a function of embeddings and labels."""
    return of_function(getattr(module, loss), loss, options)


def compiled(loss: str, options: dict[str, Any]) -> Loss:
    # fullgraph: a break would time eager code; static shapes: what a fixed batch size gets
    return torch.compile(of_batch(reference, loss, options), fullgraph=True, dynamic=False)


IMPLEMENTATIONS: dict[str, Callable[[str, dict[str, Any]], Loss]] = {
    "fusedloss": lambda loss, options: of_batch(fusedloss, loss, options),
    "reference": lambda loss, options: of_batch(reference, loss, options),
    "torch.compile": compiled,
    "pytorch-metric-learning": lambda loss, options: METRIC_LEARNING[loss](**options),
    "torch": lambda loss, options: of_function(TORCH[loss], loss, options),
}
PEERS = {"pytorch-metric-learning": METRIC_LEARNING, "torch": TORCH}
NEEDS = {"pytorch-metric-learning": "pytorch_metric_learning"}
ONLY_FLOAT32 = {"pytorch-metric-learning"}  # torch.cdist has no 16-bit kernel


def available(case: Case, n: int, dtype: str) -> list[str]:
    """The implementations that are installed, have the loss, take the dtype and end in this life."""
    installed = [name for name in IMPLEMENTATIONS if importlib.util.find_spec(NEEDS.get(name, "torch"))]
    dense = n <= (case.dense_rows or n)
    own = [name for name in installed if name not in PEERS and (dense or name == "fusedloss")]
    peers = [name for name in installed if case.loss in PEERS.get(name, ()) and n <= (case.peer_rows or n)]
    possible = own + peers
    return [name for name in possible if dtype == "float32" or name not in ONLY_FLOAT32]


def loss_of(case: Case, implementation: str) -> Loss:
    return IMPLEMENTATIONS[implementation](case.loss, case.options)


def in_batch(case: str, implementation: str, n: int, d: int, device: str = "cpu", dtype: str = "float32") -> Run:
    """Maker for `fusedloss.measure`: forward and backward of a case, returning the value and the gradient."""
    loss = loss_of(CASES[case], implementation)
    run = measure.training_step(loss, *data(CASES[case], n, d, device, dtype))
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
    """Float64 results of a case on N rows, or as many as dense PyTorch takes, and the errors it has in a dtype."""

    def __init__(self, case: Case, n: int, d: int, device: str = "cpu", dtype: str = "float32") -> None:
        n = min(n, case.dense_rows or n)
        few = case.classes if case.loss in (*WITH_CLASSES, *GIVEN_LOGITS) else min(case.classes, n // 4)
        x, labels = data(case, n, d, device, dtype, few)
        dense = loss_of(case, "reference")
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
