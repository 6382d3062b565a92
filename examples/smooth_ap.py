"""Train for the ranking itself: Smooth-AP, the average precision of every search made differentiable.

    python examples/smooth_ap.py
    python examples/smooth_ap.py --temperature 0.05 --batch 1198

Every image of a batch is a query for all others, so that the larger a batch, the more a step is like the search to
come. The loss has a term for every triplet of an anchor, a positive and another row; the memory is that of the rows. It
needs scikit-learn, for its handwritten digits: pip install "fusedloss[examples]".
"""

import argparse

import torch
from common import DigitEncoder, add_device, digits, embed, parser, print_table, progress, retrieval

import fusedloss


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=20, quick=5)
    add_device(found)
    found.add_argument("--batch", type=int, default=400, help="images a step, of 1198 (%(default)s)")
    found.add_argument("--temperature", type=float, default=0.02, help="how sharply ranks are counted (%(default)s)")
    return found.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, labels, held_out, held_out_labels = digits(args.device)
    encoder = DigitEncoder().to(args.device)
    loss_function = fusedloss.SmoothAPLoss(temperature=args.temperature)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    found = {"raw pixels": retrieval(held_out, held_out_labels)}
    found["untrained network"] = retrieval(embed(encoder, held_out), held_out_labels)

    for _ in progress(range(args.epochs)):
        for batch in torch.randperm(len(images), device=args.device).split(args.batch):
            loss = loss_function(encoder(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    found["trained network"] = retrieval(embed(encoder, held_out), held_out_labels)
    print(f"The last batch had a mean average precision of about {1 - loss.item():.3f}, 1 - its loss.")
    print(f"{len(held_out)} held-out digits, each searched among the others:")
    print_table(found)


if __name__ == "__main__":
    main(options())
