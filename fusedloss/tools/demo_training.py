"""The demo's training: an embedding network on scikit-learn's handwritten digits, and how well it retrieves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fusedloss

from .. import reference

LOSSES = ("pairwise_contrastive_loss", "batch_hard_triplet_loss")
BATCHES = 2  # per epoch: 599 images each


class Digits(NamedTuple):
    """Images [N, 64] between 0 and 1, and their digits [N]."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


class Training(NamedTuple):
    """What `train` saw: every step's loss, the other implementation's on the same weights, embeddings."""

    losses: Tensor  # [steps]
    others: Tensor  # [steps]
    before: Tensor  # held-out embeddings [N, D] of the untrained network
    after: Tensor


Trainings = dict[str, tuple[Training, Training]]  # loss: fused and dense, from the same seed


class Retrieval(NamedTuple):
    """Searching every held-out image's neighbours among the other held-out images."""

    recall_at_1: float  # share of images whose nearest neighbour shows the same digit
    r_precision: float  # share of the same digit among the R nearest, R = number of other images of that digit


def load_digits(device: str, seed: int) -> Digits:
    """scikit-learn's 1,797 images of 8 x 8 pixels; a third of every digit's images is held out."""
    images, labels = datasets.load_digits(return_X_y=True)
    train, held_out, train_labels, held_out_labels = train_test_split(
        torch.tensor(images / 16, dtype=torch.float32),
        torch.tensor(labels),
        test_size=1 / 3,
        stratify=labels,
        random_state=seed,
    )
    return Digits(train.to(device), train_labels.to(device), held_out.to(device), held_out_labels.to(device))


class EmbeddingNetwork(nn.Sequential):
    """Images [N, 64] -> unit embeddings [N, 32]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(super().forward(images))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        self.eval()
        embeddings = self(images)
        self.train()
        return embeddings


def train(name: str, fused: bool, digits: Digits, epochs: int, seed: int, advance: Callable[[], object]) -> Training:
    """Train with the fused or the dense loss of this name; the seed alone decides weights and batches."""
    loss, other = (getattr(module, name) for module in ((fusedloss, reference) if fused else (reference, fusedloss)))
    torch.manual_seed(seed)
    network = EmbeddingNetwork().to(digits.train.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    before = network.embed(digits.held_out)
    losses, others = [], []
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train)).to(digits.train.device).chunk(BATCHES):
            embeddings, labels = network(digits.train[rows]), digits.train_labels[rows]
            value = loss(embeddings, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
            others.append(other(embeddings.detach(), labels))
        advance()
    return Training(torch.stack(losses).cpu(), torch.stack(others).cpu(), before, network.embed(digits.held_out))


def train_all(digits: Digits, epochs: int, seed: int, console: Console) -> Trainings:
    trainings = {}
    with Progress(console=console, transient=True) as progress:
        for name in LOSSES:
            both = []
            for kind in ("fused", "dense"):
                advance = partial(progress.advance, progress.add_task(f"{title(name)}, {kind}", total=epochs))
                both.append(train(name, kind == "fused", digits, epochs, seed, advance))
            trainings[name] = (both[0], both[1])
    return trainings


def retrieval(embeddings: Tensor, labels: Tensor) -> Retrieval:
    distances = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf)
    neighbours = distances.argsort(1)[:, :-1]  # [N, N - 1], nearest first, without the image itself
    hits = labels[neighbours] == labels[:, None]
    relevant = hits.sum(1, keepdim=True)
    within = torch.arange(hits.shape[1], device=hits.device) < relevant
    precision = (hits & within).sum(1, keepdim=True) / relevant
    return Retrieval(hits[:, 0].float().mean().item(), precision.mean().item())


def title(loss: str) -> str:
    return loss.removesuffix("_loss").replace("_", " ")
