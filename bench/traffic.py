"""What a process sends and receives in calls of torch.distributed, which are counted, or imagined without a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch.distributed as dist
from torch import Tensor


class Sent(NamedTuple):
    """One of the tensors in a `batch_isend_irecv` of an imagined group."""

    op: Callable[..., Any]
    tensor: Tensor
    peer: int
    group: Any
    tag: int


class Traffic:
    """The bytes that one process sends and receives, as in a ring of W processes: W - 1 times its part of what is
    gathered or reduce-scattered, twice as much for an all-reduce, and point-to-point messages as they are.

    exchanges: the number of calls, each of which has to end before the next; a `batch_isend_irecv` counts once.
    """

    def __init__(self, world: int) -> None:
        self.world, self.sent, self.received, self.exchanges = world, 0, 0, 0

    def add(self, sent: int, received: int) -> None:
        self.sent, self.received, self.exchanges = self.sent + sent, self.received + received, self.exchanges + 1

    def all_gather_into_tensor(self, output: Tensor, own: Tensor, group: Any = None) -> None:
        self.add(*[(self.world - 1) * own.nbytes] * 2)

    all_gather_single = all_gather_into_tensor  # PyTorch's newer name

    def all_gather(self, outputs: Sequence[Tensor], own: Tensor, group: Any = None) -> None:
        self.add(*[(self.world - 1) * own.nbytes] * 2)

    def reduce_scatter_tensor(self, own: Tensor, total: Tensor, op: Any = None, group: Any = None) -> None:
        self.add(*[(self.world - 1) * own.nbytes] * 2)

    reduce_scatter_single = reduce_scatter_tensor

    def all_reduce(self, total: Tensor, op: Any = None, group: Any = None) -> None:
        self.add(*[2 * (self.world - 1) * total.nbytes // self.world] * 2)

    def scatter(self, own: Tensor, parts: Sequence[Tensor] | None, src: int = 0, group: Any = None) -> None:
        self.add(*((0, own.nbytes) if parts is None else ((self.world - 1) * own.nbytes, 0)))

    def batch_isend_irecv(self, operations: Sequence[Any]) -> Any:
        sent, received = (sum(o.tensor.nbytes for o in operations if o.op is of) for of in (dist.isend, dist.irecv))
        self.add(sent, received)
        return []


CALLS = [name for name in vars(Traffic) if hasattr(dist, name) and not name.startswith("_")]


@contextmanager
def counted(world: int) -> Iterator[Traffic]:
    """Counts what this process sends and receives within the block."""
    traffic = Traffic(world)

    def both(name: str) -> Callable[..., Any]:
        count, call = getattr(traffic, name), getattr(dist, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            count(*args, **kwargs)
            return call(*args, **kwargs)

        return counting

    with mock.patch.multiple(dist, **{name: both(name) for name in CALLS}):
        yield traffic


@contextmanager
def imagined(world: int, rank: int = 0) -> Iterator[Traffic]:
    """Counts what a process of a group would send and receive; nothing is sent, and outputs are left as they are."""
    traffic = Traffic(world)
    group: dict[str, Any] = {
        "is_initialized": lambda: True,
        "get_world_size": lambda group=None: world,
        "get_rank": lambda group=None: rank,
        "get_global_rank": lambda group, of: of,
        "P2POp": Sent,
    }
    with mock.patch.multiple(dist, **group, **{name: getattr(traffic, name) for name in CALLS}):
        yield traffic
