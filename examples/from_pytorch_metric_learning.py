"""A script of pytorch-metric-learning, and the same with one import changed: the losses of both, and their time.

    python examples/from_pytorch_metric_learning.py
    python examples/from_pytorch_metric_learning.py --library fusedloss --batch 1024

Loss, miner, distance and accuracy are those of many of that library's scripts. Trained twice from one seed, the losses
are equal but for rounding. It needs scikit-learn and pytorch-metric-learning:
pip install "fusedloss[examples,pytorch-metric-learning]".
"""

import argparse
import time
from typing import NamedTuple

import torch
from common import DigitEncoder, add_device, digits, embed, parser, print_table, progress
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor, nn

LIBRARIES = ("pytorch_metric_learning", "fusedloss")


class Trained(NamedTuple):
    encoder: nn.Module
    losses: list[float]  # of the last step of each epoch
    seconds: float  # of mining, loss, backward and step, over the whole training


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=20, quick=4)
    add_device(found)
    found.add_argument("--batch", type=int, default=256, help="images a step, of 1198 (%(default)s)")
    found.add_argument("--library", choices=("both", *LIBRARIES), default="both", help="(%(default)s)")
    return found.parse_args()


def train(library: str, images: Tensor, labels: Tensor, args: argparse.Namespace) -> Trained:
    if library == "fusedloss":  # all that changes in your script
        from fusedloss.compat.pytorch_metric_learning import distances, losses, miners, reducers
    else:
        from pytorch_metric_learning import distances, losses, miners, reducers

    torch.manual_seed(args.seed)  # the same weights and batches for both
    encoder = DigitEncoder().to(args.device)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    distance = distances.CosineSimilarity()
    loss_func = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducers.ThresholdReducer(low=0))
    mining_func = miners.TripletMarginMiner(margin=0.2, distance=distance, type_of_triplets="semihard")

    curve, seconds = [], 0.0
    for _ in progress(range(args.epochs), library):
        for batch in torch.randperm(len(images), device=args.device).split(args.batch):
            embeddings = encoder(images[batch])
            begin = time.perf_counter()
            indices_tuple = mining_func(embeddings, labels[batch])
            loss = loss_func(embeddings, labels[batch], indices_tuple)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()  # which waits for a GPU, so that its work is in the time
            seconds += time.perf_counter() - begin
        curve.append(value)
    return Trained(encoder, curve, seconds)


def main(args: argparse.Namespace) -> None:
    images, labels, held_out, held_out_labels = digits(args.device)
    # Without faiss, which is its default, the calculator searches with torch.
    calculator = AccuracyCalculator(("precision_at_1", "r_precision"), knn_func=CustomKNN(CosineSimilarity()))

    def accuracy(encoder: nn.Module) -> dict[str, float]:
        return calculator.get_accuracy(embed(encoder, held_out), held_out_labels)

    torch.manual_seed(args.seed)
    found = {"untrained network": accuracy(DigitEncoder().to(args.device))}
    for library in LIBRARIES if args.library == "both" else (args.library,):
        trained = train(library, images, labels, args)
        print(f"{library}: {trained.seconds:.2f} s of mining, loss, backward and step")
        print("  losses of the epochs:", *(f"{loss:.4f}" for loss in trained.losses))
        found[library] = accuracy(trained.encoder)
    print(f"{len(held_out)} held-out digits, each searched among the others:")
    print_table(found)


if __name__ == "__main__":
    main(options())
