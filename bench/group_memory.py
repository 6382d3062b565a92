"""The memory and traffic of a process for the loss of a whole batch: `python -m bench.group_memory [--out FILE]`.

It measures the peak memory of forward and backward, and the bytes sent and received, in each process of a Gloo group
(every form in fresh processes), and reports the largest. The forms give the same value, and gradients whose mean over
the processes is that of one process with the whole batch; the differences are in the file.

    ring, gather     `GroupLoss`
    whole loss       what users do today: rows gathered with their gradient, and every process computes the whole loss
    own rows         the same, but every process compares its own rows with those of all, and the processes' losses are
                     averaged. This is exact only if all processes have equally many terms.

Users gather by `torch.distributed.nn.functional.all_gather`, whose backward takes more memory with Gloo than with NCCL,
where it is a reduce-scatter. The forms named "reduce-scatter" are the same two with a reduce-scatter.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient

import fusedloss
from fusedloss.distributed import GroupLoss
from fusedloss.groups import Group, Sizes, all_gather
from fusedloss.tools.console import show
from fusedloss.tools.measure import WARM_ROWS, extra_memory, timed

from . import files, tables
from .traffic import counted

WORLD = 8
ROWS, D = 1024, 1024  # of a process
ROWS_OF_A_CLASS = 32
TIMEOUT = datetime.timedelta(minutes=10)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "SupConLoss": partial(fusedloss.supcon_loss, temperature=0.1),
    "PairwiseContrastiveLoss": fusedloss.pairwise_contrastive_loss,
    "ClipLoss": partial(fusedloss.clip_loss, logit_scale=20.0),
}
PAIRS = ("ClipLoss",)  # of two towers
Results = dict[str, Any]
Step = Callable[..., Tensor]


# ------------------------------------------------------------------------------------------------------------ forms


def gathered(own: Tensor) -> Tensor:
    return torch.cat(all_gather_with_gradient(own))


def reduce_scattered(own: Tensor) -> Tensor:
    """`gathered`, with the backward that it has with NCCL."""
    sizes = [own.shape[0]] * dist.get_world_size()
    return Group(None, lambda group: Sizes(sizes, sizes)).rows_with_gradient(own, sizes)


def labels_of_all(own: Tensor) -> Tensor:
    found = own.new_empty(dist.get_world_size() * own.shape[0])
    all_gather(found, own, None)
    return found


def whole_loss(name: str, gather: Callable[[Tensor], Tensor]) -> Step:
    other = gather if name in PAIRS else labels_of_all
    return lambda x, y: LOSSES[name](gather(x), other(y))


def own_rows(name: str, gather: Callable[[Tensor], Tensor]) -> Step:
    loss = LOSSES[name]

    def of_labels(x: Tensor, labels: Tensor) -> Tensor:
        return loss(x, labels, gather(x), labels_of_all(labels), ref_offset=dist.get_rank() * x.shape[0])

    def of_pairs(x: Tensor, y: Tensor) -> Tensor:
        first = dist.get_rank() * x.shape[0]
        return (loss(x, gather(y), offset=first) + loss(y, gather(x), offset=first)) / 2

    return of_pairs if name in PAIRS else of_labels


FORMS: dict[str, Callable[[str], Step]] = {
    "ring": lambda name: GroupLoss(LOSSES[name], mode="ring"),
    "gather": lambda name: GroupLoss(LOSSES[name], mode="gather"),
    "whole loss": partial(whole_loss, gather=gathered),
    "own rows": partial(own_rows, gather=gathered),
    "whole loss, reduce-scatter": partial(whole_loss, gather=reduce_scattered),
    "own rows, reduce-scatter": partial(own_rows, gather=reduce_scattered),
}
BASE = "whole loss"  # what the others are compared with


# -------------------------------------------------------------------------------------------------------- processes


def inputs(name: str, rank: int, world: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    """Unit rows of a process, and the rows that they are paired with or their labels; every row has a positive."""
    generator = torch.Generator().manual_seed(rank)

    def rows() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, d, generator=generator)).requires_grad_()

    labels = torch.randperm(world * n, generator=torch.Generator().manual_seed(0)) % (world * n // ROWS_OF_A_CLASS)
    return rows(), rows() if name in PAIRS else labels[rank * n : (rank + 1) * n].clone()


def process(rank: int, store: str, world: int, name: str, form: str, n: int, d: int) -> Results:
    """A step of one process, after a step with few rows that lets libraries start their threads."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", TIMEOUT, world, rank)
    loss, found = FORMS[form](name), {}

    def step() -> None:
        value = loss(*given)
        gradients = torch.autograd.grad(value, [t for t in given if t.requires_grad])
        found.update(value=value.item(), gradients=[g / world for g in gradients])

    given = inputs(name, rank, world, min(n, WARM_ROWS), d)
    step()
    given = inputs(name, rank, world, n, d)
    found.clear()
    dist.barrier()
    memory = extra_memory()
    with counted(world) as traffic:
        seconds = timed(step)
    peak = memory.peak()
    dist.barrier()
    dist.destroy_process_group()
    return {
        "seconds": seconds, "peak_bytes": peak, "sent": traffic.sent, "received": traffic.received,
        "value": found["value"], "gradients": [g.numpy() for g in found["gradients"]],
    }  # fmt: skip


def processes() -> BaseContext:
    """New processes, forked from one that has only imported the libraries."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def ran(world: int, name: str, form: str, n: int, d: int) -> tuple[Results, Tensor, list[Tensor]]:
    """The largest costs of the processes, the loss, and the gradients by the rows of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        of = partial(process, store=f"{folder}/store", world=world, name=name, form=form, n=n, d=d)
        with ProcessPoolExecutor(world, processes()) as pool:
            found = list(pool.map(of, range(world)))
    value = torch.tensor([one["value"] for one in found], dtype=torch.float64).mean()
    each = zip(*(one["gradients"] for one in found), strict=True)
    gradients = [torch.cat([torch.from_numpy(g) for g in of]) for of in each]
    most = {k: max(one[k] for one in found) for k in ("seconds", "peak_bytes", "sent", "received")}
    return most, value, gradients


def off(found: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float(f"{float((found - want).abs().max() / want.abs().max()):.3g}")


def measured(name: str, world: int, n: int, d: int) -> Results:
    """Every form of a loss, and how far the value and the gradients are from those of `BASE`."""
    each = {form: ran(world, name, form, n, d) for form in FORMS}
    _, value, gradients = each[BASE]
    row: Results = {"loss": name, "world": world, "n": n, "d": d, "dtype": "float32"}
    for form, (most, own, of) in each.items():
        row[form] = most | {"value_off": off(own, value), "gradient_off": max(map(off, of, gradients))}
    return row


# --------------------------------------------------------------------------------------------------------- the page

COLUMNS = ["loss", "form", "peak", "sent", "received", "time", "off"]


def cells(row: Results) -> Iterator[list[str]]:
    for form in FORMS:
        found = row[form]
        sizes = (tables.size(found[name]) for name in ("peak_bytes", "sent", "received"))
        most = max(found["value_off"], found["gradient_off"])
        yield [row["loss"], form, *sizes, tables.seconds(found["seconds"]), f"{most:.0e}"]


def section(name: str, results: Results) -> Iterator[str]:
    """The Markdown of a result file."""
    meta, rows = results["meta"], results["group_memory"]
    first = rows[0]
    yield (
        f"**{meta['device']}, {meta['cores']} cores**: forward + backward of {first['world']} Gloo processes with "
        f"{first['n']:,} rows each, D = {first['d']:,}, {first['dtype']}:\nthe rows of all take "
        f"{tables.size(4 * first['world'] * first['n'] * first['d'])}; torch {meta['torch']} ({meta['date'][:10]}; "
        f"`{name}`).\n"
    )
    yield tables.markdown(COLUMNS, [line for row in rows for line in cells(row)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="memory and traffic of losses over a group of processes")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES), help="losses (all)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of a process ({ROWS})")
    parser.add_argument("--world", type=int, default=WORLD, help=f"processes ({WORLD})")
    args = parser.parse_args()
    results: Results = {"meta": files.meta("cpu"), "group_memory": []}
    for name in args.losses:
        results["group_memory"].append(measured(name, args.world, args.rows, D))
        for line in cells(results["group_memory"][-1]):
            print(*line, sep=" | ", flush=True)
        if args.out:
            files.save(args.out, results)
    lines = [line for row in results["group_memory"] for line in cells(row)]
    show(f"{args.world} processes, {args.rows:,} rows each, D={D:,}, float32", COLUMNS, lines)


if __name__ == "__main__":
    main()
