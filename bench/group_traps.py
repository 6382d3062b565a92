"""What losses over several processes get wrong when rows are gathered by hand: `python -m bench.group_traps [FILE]`.

Each way trains one step under DistributedDataParallel (Gloo, on the CPU); the gradient of the encoder is compared with
that of one process that has the whole batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as with_gradient
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss.distributed import GroupLoss

from . import files, tables

WORLDS = (2, 4)  # processes
ROWS = 64  # of a process
TEMPERATURE = 0.1


def local(x: Tensor, labels: Tensor) -> Tensor:
    return fusedloss.supcon_loss(x, labels, temperature=TEMPERATURE)


def gathered(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def without_gradient(x: Tensor, labels: Tensor) -> Tensor:
    return against(x, labels, gathered(x), gathered(labels), ref_offset=dist.get_rank() * ROWS)


def against(x: Tensor, labels: Tensor, y: Tensor, of_y: Tensor, ref_offset: int | None) -> Tensor:
    return fusedloss.supcon_loss(x, labels, y, of_y, ref_offset=ref_offset, temperature=TEMPERATURE)


def no_offset(x: Tensor, labels: Tensor) -> Tensor:
    """The rows of all processes in the order of the ranks, without saying where the own rows are."""
    return against(x, labels, torch.cat(with_gradient.all_gather(x)), gathered(labels), None)


def by_hand(x: Tensor, labels: Tensor) -> Tensor:
    y = torch.cat(with_gradient.all_gather(x))
    return against(x, labels, y, gathered(labels), ref_offset=dist.get_rank() * ROWS)


def group_loss(x: Tensor, labels: Tensor) -> Tensor:
    return GroupLoss(fusedloss.SupConLoss(temperature=TEMPERATURE))(x, labels)


def digits(world: int) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: world * ROWS]
    return torch.tensor(images / 16)[rows], torch.tensor(labels)[rows]


def lonely(labels: Tensor) -> Tensor:
    """Labels such that each label of the last process occurs once: it has no positives."""
    return torch.cat([labels[:-ROWS], 10 + torch.arange(ROWS)])


WAYS = {
    "the batches of processes alone": (local, False),
    "rows of all, gathered without their gradient": (without_gradient, False),
    "rows of all with their gradient, no ref_offset": (no_offset, False),
    "rows of all with their gradient, and ref_offset": (by_hand, False),
    "the same where a process has no positives": (by_hand, True),
    "GroupLoss": (group_loss, False),
    "GroupLoss where a process has no positives": (group_loss, True),
}


def of_encoder(encoder: nn.Module, loss: Tensor) -> Tensor:
    encoder.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def work(rank: int, world: int, store: str, found: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    errors = measured(rank, world)
    if rank == 0:
        found.update(errors)
    dist.destroy_process_group()


def measured(rank: int, world: int) -> dict[str, float]:
    """|g - g1| / |g1| in float64, where g is the gradient by all parameters of a linear encoder, and g1 that of one
    process."""
    torch.manual_seed(0)
    encoder = nn.Linear(64, 32, dtype=torch.float64)
    shared = DistributedDataParallel(encoder)
    x, labels = digits(world)
    errors = {}
    for name, (way, alone) in WAYS.items():
        of = lonely(labels) if alone else labels
        wanted = of_encoder(encoder, local(encoder(x), of))
        given = of_encoder(shared, way(shared(x.chunk(world)[rank]), of.chunk(world)[rank]))
        errors[name] = ((given - wanted).norm() / wanted.norm()).item()
    return errors


def uneven(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    gathered(torch.ones(ROWS - rank, 32))


def table(results: dict[str, Any]) -> str:
    """The table of docs/distributed.md."""
    each = results["errors"]
    rows = [[name, *(f"{errors[name]:.2g}" for errors in each.values())] for name in WAYS]
    return tables.markdown(["way", *each], rows)


def main(path: str | None = None) -> None:
    results: dict[str, Any] = {"meta": files.meta("cpu"), "rows_of_a_process": ROWS, "temperature": TEMPERATURE}
    results["errors"] = {}
    with tempfile.TemporaryDirectory() as folder, mp.Manager() as manager:
        for world in WORLDS:
            found = manager.dict()
            mp.spawn(work, (world, os.path.join(folder, f"store{world}"), found), nprocs=world)
            results["errors"][f"{world} processes"] = dict(found)
        try:
            mp.spawn(uneven, (os.path.join(folder, "uneven"),), nprocs=2)
            results["uneven_gather"] = "no error"
        except Exception as error:
            results["uneven_gather"] = str(error).strip().splitlines()[-1]
    print(table(results))
    print("a gather of unequal tensors:", results["uneven_gather"])
    if path:
        files.save(Path(path), results)


if __name__ == "__main__":
    main(*sys.argv[1:])
