"""A memory bank over processes: each keeps the rows of all, and its loss is that of one process with all rows."""

import pytest
import torch
import torch.distributed as dist

import fusedloss
from tests.processes import run

D, SIZE, STEPS = 5, 20, 4
SIZES = ((7, 4), (0, 9), (7, 0, 6))
# What a step gives beside the rows: labels alone, the ids of samples, a mask of what is kept, keys with labels of their
# own, or the keys of a queue.
KINDS = ("labels", "ids", "store", "keys", "queue")
LOSSES = {
    "supcon": fusedloss.SupConLoss(),
    "triplets": fusedloss.BatchAllTripletLoss(margin=0.5),
    "hard": fusedloss.BatchHardTripletLoss(margin=0.5),
    "queue": fusedloss.InfoNCELoss(),
}


def given(kind, sizes, number):
    """What the whole batch gives in a step."""
    generator = torch.Generator().manual_seed(number)
    N = sum(sizes)
    x, keys = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (N,), generator=generator)
    ids = torch.randint(0, 12, (N,), generator=generator)
    keep = torch.rand(N, generator=generator) < 0.6
    named = {"ids": dict(ids=ids), "store": dict(store=keep), "keys": dict(key_labels=labels, ids=ids)}
    tensors = {"keys": (labels, keys), "queue": (keys,)}.get(kind, (labels,))
    return x, tensors, named.get(kind, {})


def step(bank, at, x, tensors, named):
    """The value, and the gradient by the rows, for the rows of one process."""
    x = x[at].clone().requires_grad_()
    value = bank(x, *(t[at] for t in tensors), **{name: t[at] for name, t in named.items()})
    value.backward()
    return value.detach(), x.grad


def beside_one_process(loss, kind, sizes):
    """The largest difference from a bank of one process, and whether they keep the same rows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    at = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    whole, bank = (
        fusedloss.MemoryBank(LOSSES[loss], SIZE, D, dtype=torch.float64, gather=gather) for gather in (False, True)
    )
    most, same = 0.0, True
    for number in range(STEPS):
        batch = given(kind, sizes, number)
        (value, dx), (found, of_x) = step(whole, slice(None), *batch), step(bank, at, *batch)
        most = max([most, float((found - value).abs()), *(of_x / world - dx[at]).abs().flatten().tolist()])
        kept = ((getattr(of, name) for of in (whole, bank)) for name in ("embeddings", "labels", "ids", "position"))
        same &= whole.filled == bank.filled and all(torch.equal(a, b) for a, b in kept)
    return most, same


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_bank_of_one_process(kind):
    for loss in ("queue",) if kind == "queue" else ("supcon", "triplets", "hard"):
        for sizes in SIZES:
            if kind in ("ids", "keys") and loss == "triplets":
                continue  # as in supcon
            for rank, (error, same) in enumerate(run(len(sizes), beside_one_process, loss, kind, sizes)):
                assert same and error < 1e-12, (loss, sizes, rank, error, same)


def states():
    """The state of any process fits all processes; one process alone may say which rows to keep."""
    rank = dist.get_rank()
    bank = fusedloss.MemoryBank(fusedloss.SupConLoss(), 8, D, gather=True, even=True)
    x, labels = torch.randn(3, D, generator=torch.Generator().manual_seed(rank)), torch.tensor([0, 1, rank])
    bank(x, labels, store=torch.tensor([2, 0] if rank == 0 else [], dtype=torch.int64))
    bank.eval()
    before = bank.filled
    bank(x, labels)
    return {name: t.tolist() for name, t in bank.state_dict().items()}, before, bank.filled, x[[2, 0]].tolist()


def test_all_processes_keep_the_same_rows():
    (first, *counts, rows), (second, *_) = run(2, states)
    assert first == second and counts == [2, 2]
    assert first["embeddings"][:2] == rows and first["labels"][:2] == [0, 0]


def different():
    found = []
    for size, ids in ((8 + dist.get_rank(), None), (8, torch.arange(3) if dist.get_rank() else None)):
        bank = fusedloss.MemoryBank(fusedloss.SupConLoss(), size, D, gather=True)
        with pytest.raises(ValueError) as error:
            bank(torch.randn(3, D), torch.arange(3), ids=ids)
        found.append(str(error.value))
    return found


def test_banks_that_differ_are_an_error_everywhere():
    for sizes, ids in run(2, different):
        assert "MemoryBank: all ranks must call the same loss with the same options" in sizes
        assert "MemoryBank: ids must be alike on every rank but for its rows, got None on rank 0" in ids
