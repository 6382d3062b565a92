"""ArcFace on handwritten digits with several processes, each of which has the learned rows of some of the classes.

    torchrun --nproc-per-node 2 examples/sharded_arcface.py
    python examples/sharded_arcface.py                            # one process, which has all classes

Ten classes need no sharding; a million identities do: each process keeps and trains its share of them alone. The images
are divided as ever, so that DistributedDataParallel has the encoder, and not the loss. It needs scikit-learn.
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusedloss.distributed import ShardedArcFaceLoss


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


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128, help="rows of all processes together (%(default)s)")
    parser.add_argument("--sample-rate", type=float, default=1.0, help="the share of classes of a step (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 epochs")
    return parser.parse_args()


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images / 16, digits, test_size=1 / 3, stratify=digits, random_state=0)
    x, x_held_out = (torch.tensor(part, dtype=torch.float32, device=device) for part in split[:2])
    labels, labels_held_out = (torch.tensor(part, device=device) for part in split[2:])

    torch.manual_seed(0)  # the same encoder and the same batches in every process
    encoder: nn.Module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32)).to(device)
    if world > 1:
        encoder = DistributedDataParallel(encoder)
    loss_function = ShardedArcFaceLoss(10, 32, margin=0.3, scale=16.0, sample_rate=args.sample_rate, device=device)
    print(f"rank {rank} has the classes {[*loss_function.classes]}", flush=True)
    optimizer = torch.optim.Adam([*encoder.parameters(), *loss_function.parameters()], lr=2e-3)

    for epoch in range(3 if args.quick else args.epochs):
        for batch in torch.randperm(len(x)).split(args.batch):
            own = batch.tensor_split(world)[rank].to(device)  # parts need not be of one size
            loss = loss_function(encoder(x[own]), labels[own])  # labels are those of all classes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

    whole = loss_function.unsharded()  # an ArcFaceLoss with the rows of all processes, which all have to ask for
    with torch.no_grad():
        cosines = nn.functional.normalize(encoder(x_held_out)) @ nn.functional.normalize(whole.weight).T
    if rank == 0:
        accuracy = cosines.argmax(1).eq(labels_held_out).float().mean().item()
        print(f"Accuracy of {len(x_held_out)} digits held out: {accuracy:.3f}")


if __name__ == "__main__":
    args = options()
    rank, world, device = start()
    train(args, rank, world, device)  # a function, so that DDP is gone before its processes part
    if world > 1:
        dist.destroy_process_group()
