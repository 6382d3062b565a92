"""ArcFace on handwritten digits with several processes, each of which has the learned rows of some of the classes.

    torchrun --nproc-per-node 2 examples/sharded_arcface.py
    python examples/sharded_arcface.py                            # one process, which has all classes

Ten classes need no sharding; a million identities do: each process keeps and trains its share of them alone. The images
are divided as ever, so that DistributedDataParallel has the encoder, and not the loss. It needs
scikit-learn and rich: pip install "fusedloss[examples]".
"""

import argparse

import torch
import torch.distributed as dist
from common import digits, parser, print_table, progress, start
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusedloss.distributed import ShardedArcFaceLoss


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=20, quick=3)
    found.add_argument("--batch", type=int, default=128, help="rows of all processes together (%(default)s)")
    found.add_argument("--sample-rate", type=float, default=1.0, help="the share of classes of a step (%(default)s)")
    return found.parse_args()


@torch.no_grad()
def accuracy(encoder: nn.Module, images: Tensor, rows: Tensor, shown: Tensor) -> dict[str, float]:
    """The share of images whose nearest row, by cosine, is that of their class."""
    cosines = nn.functional.normalize(encoder(images)) @ nn.functional.normalize(rows).T
    return {"accuracy": cosines.argmax(1).eq(shown).float().mean().item()}


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    x, labels, x_held_out, labels_held_out = digits(device)

    torch.manual_seed(args.seed)  # the same encoder and the same batches in every process
    encoder: nn.Module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32)).to(device)
    if world > 1:
        encoder = DistributedDataParallel(encoder)
    loss_function = ShardedArcFaceLoss(10, 32, margin=0.3, scale=16.0, sample_rate=args.sample_rate, device=device)
    # `unsharded` is an ArcFaceLoss with the rows of all processes, which all have to ask for it.
    found = {"untrained network": accuracy(encoder, x_held_out, loss_function.unsharded().weight, labels_held_out)}
    print(f"rank {rank} has the classes {[*loss_function.classes]}", flush=True)
    optimizer = torch.optim.Adam([*encoder.parameters(), *loss_function.parameters()], lr=2e-3)

    for epoch in progress(range(args.epochs)):
        for batch in torch.randperm(len(x)).split(args.batch):
            own = batch.tensor_split(world)[rank].to(device)  # parts need not be of one size
            loss = loss_function(encoder(x[own]), labels[own])  # labels are those of all classes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

    found["trained network"] = accuracy(encoder, x_held_out, loss_function.unsharded().weight, labels_held_out)
    if rank == 0:
        print(f"{len(x_held_out)} held-out digits, each classified by the nearest row of a class:")
        print_table(found)


if __name__ == "__main__":
    args = options()
    rank, world, device = start()
    train(args, rank, world, device)  # a function, so that DDP is gone before its processes part
    if world > 1:
        dist.destroy_process_group()
