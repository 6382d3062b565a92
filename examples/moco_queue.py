"""Learning without labels: MoCo, a momentum encoder and a queue of the keys of past batches.

    python examples/moco_queue.py
    python examples/moco_queue.py --queue 256 --epochs 100

Of every handwritten digit two views are drawn, turned, scaled and shifted; the embedding of one is to find that of the
other among those of hundreds of other images. No label is used but for testing: how often the nearest neighbour of a
held-out image, moved in the same way, shows the same digit. It needs scikit-learn: pip install "fusedloss[examples]".
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from common import add_device, digits, embed, moved, parser, print_table, progress, retrieval
from torch import Tensor, nn

import fusedloss


class Encoder(nn.Sequential):
    """Images [N, 1, 10, 10] -> embeddings [N, 64] of length 1. Batch norm would tell the views of a batch apart."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 2 * 2, 128), nn.ReLU(), nn.Linear(128, 64),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(super().forward(images))


def view(images: Tensor) -> Tensor:
    """Of each image a new one, with a margin: turned, scaled and shifted, and with noise. -> [N, 1, 10, 10]"""
    found = moved(F.pad(images.view(-1, 1, 8, 8), [1, 1, 1, 1]), 0.15, mirror=False)  # a mirrored 2 is none
    return found + 0.05 * torch.randn_like(found)


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=60, quick=9)
    add_device(found)
    found.add_argument("--batch", type=int, default=128, help="images a step (%(default)s)")
    found.add_argument("--queue", type=int, default=512, help="keys of past batches (%(default)s)")
    found.add_argument("--momentum", type=float, default=0.99, help="of the second encoder (%(default)s)")
    found.add_argument("--temperature", type=float, default=0.2, help="of the softmax (%(default)s)")
    return found.parse_args()


def train(encoder: nn.Module, images: Tensor, args: argparse.Namespace) -> None:
    key_encoder = copy.deepcopy(encoder).requires_grad_(False)  # it follows the encoder slowly, and gets no gradient
    # Negatives are the other keys of the batch and those of the queue; of the queue alone: in_batch_negatives=False.
    # An image that is still in the queue when it comes again is a negative of itself: keep that below the data's size.
    loss_function = fusedloss.InfoNCELoss(temperature=args.temperature)
    bank = fusedloss.MemoryBank(loss_function, size=args.queue, dim=64, device=args.device)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for _ in progress(range(args.epochs)):
        for batch in torch.randperm(len(images), device=args.device).split(args.batch):
            queries = encoder(view(images[batch]))
            keys = key_encoder(view(images[batch]))
            loss = bank(queries, keys)  # and then the keys are put into the queue, from which the oldest fall out
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(key_encoder.parameters(), encoder.parameters(), strict=True):
                    slow.lerp_(fast, 1 - args.momentum)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, _, held_out, labels = digits(args.device)
    held_out = view(held_out)
    encoder = Encoder().to(args.device)
    found = {"raw pixels": retrieval(held_out, labels)}
    found["untrained network"] = retrieval(embed(encoder, held_out), labels)
    train(encoder, images, args)
    found["trained network"] = retrieval(embed(encoder, held_out), labels)
    print(f"{len(held_out)} held-out digits, moved, each searched among the others; no label was used:")
    print_table(found)


if __name__ == "__main__":
    main(options())
