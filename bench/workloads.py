"""What is measured: the losses, every implementation of them, and the check that they agree."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fusedloss
from fusedloss import reference
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.tools import measure
from fusedloss.tools.measure import Loss, Run

from . import peers
from .forms import of_batch
from .peers import PEERS

CLASSES = 32


class Case(NamedTuple):
    """A loss, by its public name in fusedloss, with options that peers have too."""

    loss: str
    options: dict[str, Any]
    classes: int = CLASSES
    peer_rows: int | None = None  # the most rows with which its peer ends in reasonable time
    dense_rows: int | None = None  # the same for dense PyTorch; larger batches are checked at this size


# Random unit rows are about sqrt(2) apart and never more than 2. At margin 1 nearly every negative is inactive, so that
# work may be skipped; at 2.5 every negative is active. Both are shown, as training moves from one to the other.
PEER_FORM = {"power": 1, "reduction": "active"}
CASES = {
    "contrastive": Case("pairwise_contrastive_loss", {"neg_margin": 1.0, **PEER_FORM}),
    "contrastive, all active": Case("pairwise_contrastive_loss", {"neg_margin": 2.5, **PEER_FORM}),
    "margin": Case("margin_loss", {}),  # a peer weights terms by the number of their triplets
    "batch-hard": Case("batch_hard_triplet_loss", {"margin": 0.2}),
    "all triplets": Case("batch_all_triplet_loss", {"margin": 0.2, "reduction": "active"}, 256, 4096, 256),
    "all triplets, 32 classes": Case(
        "batch_all_triplet_loss", {"margin": 0.2, "reduction": "active"}, peer_rows=1024, dense_rows=256
    ),
    "semi-hard": Case("batch_semihard_triplet_loss", {"margin": 0.2}, dense_rows=256),
    "smooth-ap": Case("smooth_ap_loss", {}, 64, dense_rows=256),
    "recall at k": Case("recall_at_k_loss", {}, 64, dense_rows=256),
    "supcon": Case("supcon_loss", {"temperature": 0.1}),
    "circle": Case("circle_loss", {"margin": 0.4, "gamma": 80.0}),
    "multi-similarity": Case("multi_similarity_loss", {}),
    "generalised lifted": Case("generalized_lifted_structure_loss", {}),
    # The peer compares every positive pair with every negative pair: N = 512 takes seconds.
    "lifted": Case("lifted_structure_loss", {}, peer_rows=128),
    "nt-xent": Case("nt_xent_loss", {"temperature": 0.5}, peer_rows=512),
    "decoupled contrastive": Case("decoupled_contrastive_loss", {}),
    # The peer also compares every positive pair with every negative pair here.
    "pairwise nt-xent": Case("pairwise_nt_xent_loss", {}, peer_rows=256),
    "nca": Case("nca_loss", {}),
    "info-nce": Case("info_nce_loss", {"temperature": 0.07}),
    "clip": Case("clip_loss", {"logit_scale": 20.0}),
    "siglip": Case("siglip_loss", {"logit_scale": 10.0, "logit_bias": -10.0}),
    "n-pair": Case("n_pair_loss", {}),
    "cosent": Case("cosent_loss", {}),
    "linear cross entropy, 100,000 classes": Case("linear_cross_entropy_loss", {}, 100_000, 4096, 512),
    "arcface, 100,000 classes": Case("arcface_loss", {"margin": 0.5, "scale": 64.0}, 100_000, 512, 512),
    "cosface, 10,000 classes": Case("cosface_loss", {}, 10_000, 4096, 1024),
    "normalized softmax, 10,000 classes": Case("normalized_softmax_loss", {}, 10_000, 4096, 1024),
    "proxy nca, 10,000 classes": Case("proxy_nca_loss", {}, 10_000, 4096, 1024),
    "proxy anchor, 10,000 classes": Case("proxy_anchor_loss", {}, 10_000, 4096, 1024),
    "cross entropy, 32,000 logits": Case("cross_entropy_loss", {}, 32_000, 4096, 1024),
    "binary cross entropy, 10,000 logits": Case("binary_cross_entropy_loss", {}, 10_000, 4096, 1024),
    "sigmoid focal, 10,000 logits": Case("sigmoid_focal_loss", {}, 10_000, 4096, 1024),
}


def data(case: Case, n: int, d: int, device: str, dtype: str) -> tuple[Tensor, Tensor]:
    """The inputs of a case: rows, which require a gradient, and n labels."""
    known = CATALOG[case.loss]
    if known.named(Role.LOGITS):
        x, labels = measure.batch(n, case.classes, case.classes, device, dtype)
        return (2 * case.classes**0.5 * x.detach()).requires_grad_(), labels
    if known.named(Role.CLASSES):
        x, labels = measure.batch(n + case.classes, d, case.classes, device, dtype)
        return x, labels[:n]
    return measure.batch(n, d, min(case.classes, n // 4), device, dtype)  # every row has a positive


# ------------------------------------------------------------------------------------------------- implementations


def compiled(loss: str, options: dict[str, Any]) -> Loss:
    torch.compiler.reset()  # the losses share code, and a process may compile 8 versions of it
    # fullgraph, since a graph break would time eager code; static shapes, as for a fixed batch size
    return torch.compile(of_batch(getattr(reference, loss), loss, **options), fullgraph=True, dynamic=False)


IMPLEMENTATIONS: dict[str, Callable[[str, dict[str, Any]], Loss]] = {
    "fusedloss": lambda loss, options: of_batch(getattr(fusedloss, loss), loss, **options),
    "reference": lambda loss, options: of_batch(getattr(reference, loss), loss, **options),
    "torch.compile": compiled,
    **{name: partial(peers.loss_of, name) for name in PEERS},
}


def available(case: Case, n: int, dtype: str = "float32", device: str = "cpu") -> list[str]:
    """The implementations that are installed, have the loss, take the dtype and device, and end in reasonable time."""
    dense = n <= (case.dense_rows or n)
    found = ["fusedloss", "reference", "torch.compile"] if dense else ["fusedloss"]
    for name, peer in PEERS.items():
        takes = case.loss in peer.losses and dtype in peer.dtypes and device in peer.devices
        if takes and (n <= (case.peer_rows or n) or not peer.dense) and peer.installed:
            found.append(name)
    return found


def loss_of(case: Case, implementation: str) -> Loss:
    return IMPLEMENTATIONS[implementation](case.loss, case.options)


def in_batch(case: str, implementation: str, n: int, d: int, device: str = "cpu", dtype: str = "float32") -> Run:
    """Maker for `fusedloss.tools.measure`: forward and backward of a case, returning the value and the gradient."""
    loss = loss_of(CASES[case], implementation)
    run = measure.training_step(loss, *data(CASES[case], n, d, device, dtype))
    if implementation == "torch.compile":
        run()  # the compiler's own time and memory are not the loss's
    return run


def in_batch_of_rows(rows: int, **arguments: Any) -> Run:
    """`in_batch` without the smaller run that `measure` makes first if there is an argument n, and that would be
    compiled too."""
    return in_batch(n=rows, **arguments)


# ---------------------------------------------------------------------------------------------------------- checks


class Error(NamedTuple):
    """The relative error of a result against float64."""

    value: float
    gradient: float


ROUNDING = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}  # of a result in this dtype, with room for sums


class Oracle:
    """The float64 results of a case on N rows, or as many as dense PyTorch holds, and its errors in a dtype."""

    def __init__(self, case: Case, n: int, d: int, device: str = "cpu", dtype: str = "float32") -> None:
        n = min(n, case.dense_rows or n)
        x, labels = data(case, n, d, device, dtype)
        dense = loss_of(case, "reference")
        self.name, self.data = case.loss, (x, labels)
        self.value, self.gradient = measure.training_step(dense, x.detach().double().requires_grad_(), labels)()
        self.rounding = ROUNDING[str(x.dtype).removeprefix("torch.")]
        self.dense = self.errors(dense)

    def errors(self, loss: Loss) -> Error:
        """The errors; that of the gradient covers 99 of 100 rows, since a near tie may be mined the other way."""
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


class Saved:
    """Holds a tensor that a graph keeps for its backward; it lives as long as the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(loss: Loss, x: Tensor, labels: Tensor) -> int:
    """The memory that the forward keeps for the backward, including the inputs."""
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()  # not what a forward keeps only for derivatives of its own

    def pack(tensor: Tensor) -> Saved:
        held = Saved(tensor)
        saved.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        value = loss(x, labels)
    storages = [held.tensor.untyped_storage() for held in saved]
    del value
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
