"""SupCon on handwritten digits with several processes, each of which has a part of every batch.

    torchrun --nproc-per-node 2 examples/ddp_supcon.py            # DistributedDataParallel
    torchrun --nproc-per-node 2 examples/ddp_supcon.py --fsdp     # FSDP2: the parameters are sharded too
    python examples/ddp_supcon.py                                 # one process

All three train the same network, but for rounding: the loss is that of the whole batch, however it is divided.
It needs scikit-learn, whose 1,797 digits of 8 x 8 pixels it trains with; a third of them is held out.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss.distributed import GroupLoss


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


class Encoder(nn.Sequential):
    """Images [N, 64] -> embeddings [N, 16] of length 1."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 16))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(super().forward(images))


def recall_at_1(embeddings: Tensor, labels: Tensor) -> float:
    """The share of images whose nearest neighbour shows the same digit."""
    nearest = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf).argmin(1)
    return (labels[nearest] == labels).float().mean().item()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256, help="rows of all processes together (%(default)s)")
    parser.add_argument("--mode", choices=("gather", "ring"), default="gather", help="how rows of others come")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 in place of DistributedDataParallel")
    parser.add_argument("--quick", action="store_true", help="3 epochs")
    return parser.parse_args()


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images / 16, digits, test_size=1 / 3, stratify=digits, random_state=0)
    x, x_held_out = (torch.tensor(part, dtype=torch.float32, device=device) for part in split[:2])
    labels, labels_held_out = (torch.tensor(part, device=device) for part in split[2:])

    torch.manual_seed(0)  # the same parameters and the same batches in every process
    encoder: nn.Module = Encoder().to(device)
    if world > 1 and args.fsdp:
        fully_shard(encoder, mesh=init_device_mesh(device.type, (world,)))
    elif world > 1:
        encoder = DistributedDataParallel(encoder)
    loss_function = GroupLoss(fusedloss.SupConLoss(temperature=0.1), mode=args.mode)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)

    for epoch in range(3 if args.quick else args.epochs):
        for batch in torch.randperm(len(x)).split(args.batch):  # the last one is smaller
            own = batch.tensor_split(world)[rank].to(device)  # and parts need not be of one size
            loss = loss_function(encoder(x[own]), labels[own])  # the same value in every process
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

    with torch.no_grad():
        embeddings = encoder(x_held_out)  # in every process: with FSDP2 a forward is a matter of all
    if rank == 0:
        print(f"Recall@1 of {len(x_held_out)} digits held out: {recall_at_1(embeddings, labels_held_out):.3f}")


if __name__ == "__main__":
    args = options()
    rank, world, device = start()
    train(args, rank, world, device)  # a function, so that DDP is gone before its processes part
    if world > 1:
        dist.destroy_process_group()
