"""The processes in which other tests run."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.processes import run


def summed(number):
    total = torch.tensor([number + dist.get_rank()])
    dist.all_reduce(total)
    return total.item(), dist.get_world_size(), torch.get_num_threads()


def raising(rank):
    if dist.get_rank() == rank:
        raise ValueError("of this rank alone")
    dist.barrier()


def ending(rank):
    if dist.get_rank() == rank:
        os._exit(1)
    time.sleep(60)


def test_results_by_rank():
    for world in (2, 3, 2):
        assert run(world, summed, 5) == [(sum(range(5, 5 + world)), world, 1)] * world


def test_errors_are_shown():
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2: .*of this rank alone"):
        run(2, raising, 1)
    assert run(2, summed, 0) == [(1, 2, 1)] * 2


def test_processes_that_die_or_hang_are_replaced(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    with pytest.raises(AssertionError, match=r"rank 0 of 2: was still waiting\nrank 1 of 2: has died"):
        run(2, ending, 1)
    assert run(2, summed, 0) == [(1, 2, 1)] * 2
    with pytest.raises(AssertionError, match="rank 1 of 2: was still waiting"):
        run(2, ending, 3, limit=0.5)
    assert not processes.RUNNING
