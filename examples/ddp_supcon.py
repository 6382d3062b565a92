"""SupCon on handwritten digits with several processes, each of which has a part of every batch.

    torchrun --nproc-per-node 2 examples/ddp_supcon.py            # DistributedDataParallel
    torchrun --nproc-per-node 2 examples/ddp_supcon.py --fsdp     # FSDP2: the parameters are sharded too
    python examples/ddp_supcon.py                                 # one process

All three train the same network, but for rounding: the loss is that of the whole batch, however it is divided.
It needs scikit-learn, whose 1,797 digits of 8 x 8 pixels it trains with, a third of them held out, and rich:
pip install "fusedloss[examples]".
"""

import argparse

import torch
import torch.distributed as dist
from common import DigitEncoder, digits, embed, parser, print_table, progress, retrieval, start
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss.distributed import GroupLoss


def options() -> argparse.Namespace:
    found = parser(__doc__, epochs=20, quick=3)
    found.add_argument("--batch", type=int, default=256, help="rows of all processes together (%(default)s)")
    found.add_argument("--mode", choices=("gather", "ring"), default="gather", help="how rows of others come")
    found.add_argument("--fsdp", action="store_true", help="FSDP2 in place of DistributedDataParallel")
    return found.parse_args()


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    x, labels, x_held_out, labels_held_out = digits(device)

    torch.manual_seed(args.seed)  # the same parameters and the same batches in every process
    encoder: nn.Module = DigitEncoder().to(device)
    found = {"untrained network": retrieval(embed(encoder, x_held_out), labels_held_out)}
    if world > 1 and args.fsdp:
        fully_shard(encoder, mesh=init_device_mesh(device.type, (world,)))
    elif world > 1:
        encoder = DistributedDataParallel(encoder)
    loss_function = GroupLoss(fusedloss.SupConLoss(temperature=0.1), mode=args.mode)
    # With FSDP2 before the first forward, after which the parameters may be whole ones, which it does not train.
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)

    for epoch in progress(range(args.epochs)):
        for batch in torch.randperm(len(x)).split(args.batch):  # the last one is smaller
            own = batch.tensor_split(world)[rank].to(device)  # and parts need not be of one size
            loss = loss_function(encoder(x[own]), labels[own])  # the same value in every process
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

    # In every process, though rank 0 alone prints: with FSDP2 all have to take part in a forward.
    found["trained network"] = retrieval(embed(encoder, x_held_out), labels_held_out)
    if rank == 0:
        print(f"{len(x_held_out)} held-out digits, each searched among the others:")
        print_table(found)


if __name__ == "__main__":
    args = options()
    rank, world, device = start()
    train(args, rank, world, device)  # a function, so that DDP is gone before its processes part
    if world > 1:
        dist.destroy_process_group()
