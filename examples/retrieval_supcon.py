"""Image retrieval with SupCon and P x K batches: P classes, and K images of each.

    python examples/retrieval_supcon.py
    python examples/retrieval_supcon.py --classes 10 --images 8 --temperature 0.2

A loss that compares the images of a batch needs positives in it. With ten classes any batch has some; with thousands a
random batch has none, and `BatchesOfClasses` is what makes it learn. Trained with two thirds of scikit-learn's
handwritten digits, tested by searching each of the others among them. It needs scikit-learn: pip install
"fusedloss[examples]".
"""

import argparse
from collections.abc import Iterator

import torch
from common import DigitEncoder, add_device, digits, embed, parser, print_table, progress, retrieval
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

import fusedloss


class BatchesOfClasses(Sampler[list[int]]):
    """Numbers of rows: batches of `images` rows of each of `classes` classes, drawn anew every time."""

    def __init__(self, labels: Tensor, classes: int, images: int) -> None:
        self.rows = [(labels == label).nonzero().flatten() for label in labels.unique()]
        self.classes, self.images = min(classes, len(self.rows)), images
        self.batches = len(labels) // (self.classes * images)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.batches):
            drawn = (self.rows[i] for i in torch.randperm(len(self.rows))[: self.classes])
            # Rows of a class differ: an image that came twice would be its own, perfect positive.
            yield torch.cat([rows[torch.randperm(len(rows))[: self.images]] for rows in drawn]).tolist()


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=30, quick=10)
    add_device(found)
    found.add_argument("--classes", type=int, default=10, help="P, of a batch (%(default)s)")
    found.add_argument("--images", type=int, default=12, help="K, of each class (%(default)s)")
    found.add_argument("--temperature", type=float, default=0.1, help="of the softmax (%(default)s)")
    return found.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, labels, held_out, held_out_labels = digits(torch.device("cpu"))
    held_out, held_out_labels = held_out.to(args.device), held_out_labels.to(args.device)
    batches = BatchesOfClasses(labels, args.classes, args.images)
    loader = DataLoader(TensorDataset(images, labels), batch_sampler=batches)
    encoder = DigitEncoder().to(args.device)
    loss_function = fusedloss.SupConLoss(temperature=args.temperature)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    found = {"raw pixels": retrieval(held_out, held_out_labels)}
    found["untrained network"] = retrieval(embed(encoder, held_out), held_out_labels)

    for _ in progress(range(args.epochs)):
        for x, y in loader:
            loss = loss_function(encoder(x.to(args.device)), y.to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    found["trained network"] = retrieval(embed(encoder, held_out), held_out_labels)
    print(f"{len(held_out)} held-out digits, each searched among the others:")
    print_table(found)


if __name__ == "__main__":
    main(options())
