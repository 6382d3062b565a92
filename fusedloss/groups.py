"""The processes that share a batch, and what a loss over such a group exchanges by torch.distributed.

A loss that is called over a group has the rows of its own process as anchors; `current()` is the group. Rows of other
processes come by `gather`, all at once, or by `ring`, one process after the other. All processes take part in every
exchange, in the same order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

MODES = ("gather", "ring")


class Shard(NamedTuple):
    """The classes whose rows this process has, for losses with one row per class."""

    numbers: Tensor  # the classes of this process, in ascending order [k]
    total: int  # how many classes all processes have together


class Sizes(NamedTuple):
    """How many rows each process gives, and how many keys to pair them with."""

    rows: list[int]
    keys: list[int]


class Group:
    """The processes of a group, in one call of a loss.

    told: returns how many rows each process gives; it is called after the loss has checked its arguments.
    mode: how the rows of other processes come, "gather" or "ring".
    shard: the classes of this process, for a loss with one row per class.
    """

    def __init__(
        self, process_group: Any, told: Callable[[Group], Sizes] | None = None, mode: str = "gather",
        shard: Shard | None = None,
    ) -> None:  # fmt: skip
        self.process_group, self.mode, self.shard = process_group, mode, shard
        self.rank, self.world = dist.get_rank(process_group), dist.get_world_size(process_group)
        self.told, self.asked = told, False

    @functools.cached_property
    def sizes(self) -> Sizes:
        """The sizes of all processes; they are the first thing that is exchanged."""
        assert self.told is not None, "this group has no sizes: they are given to each exchange"
        self.asked = True
        return self.told(self)

    @property
    def rows(self) -> list[int]:
        return self.sizes.rows

    @property
    def keys(self) -> list[int]:
        return self.sizes.keys

    def first(self, sizes: Sequence[int]) -> int:
        """Where the own rows begin among those of all processes."""
        return sum(sizes[: self.rank])

    def gather(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all processes in the order of the ranks, from an own tensor [sizes[rank], ...] in each."""
        most = max(sizes)
        padded = own.contiguous()
        if own.shape[0] < most:
            padded = own.new_zeros(most, *own.shape[1:])
            padded[: own.shape[0]] = own
        found = own.new_empty(self.world * most, *own.shape[1:])
        if found.numel():
            all_gather(found, padded, self.process_group)
        if min(sizes) == most:
            return found
        return torch.cat([found[r * most : r * most + n] for r, n in enumerate(sizes)])

    def scatter(self, total: Tensor, sizes: Sequence[int]) -> Tensor:
        """The own rows of a sum over the processes, each of which has a value for the rows of all."""
        most = max(sizes)
        parts = total.split([*sizes])
        padded = total if min(sizes) == most else torch.cat([pad(part, most) for part in parts])
        own = total.new_empty(most, *total.shape[1:])
        if own.numel():
            reduce_scatter(own, padded.contiguous(), self.process_group)
        return own[: sizes[self.rank]]

    def sum(self, own: Tensor) -> Tensor:
        assert self.sizes
        total = own.detach().clone()
        dist.all_reduce(total, group=self.process_group)
        return total

    def most(self, own: Tensor) -> Tensor:
        assert self.sizes
        found = own.detach().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.process_group)
        return found

    def ring(self, sizes: Sequence[int], *own: Tensor | None) -> Iterator[tuple[int, tuple[Tensor | None, ...]]]:
        """The tensors [sizes[rank], ...] of the other processes with the rank of each, beginning with the next process.

        While the caller computes with one block, that block is sent on and the next one is received: three blocks are
        in memory.
        """
        if self.world == 1:
            return
        whole = self.process_group if self.process_group is not None else dist.group.WORLD
        to, source = (dist.get_global_rank(whole, (self.rank + step) % self.world) for step in (-1, 1))  # type: ignore[arg-type]

        def passed_on(block: tuple[Tensor | None, ...], k: int) -> tuple[list[Any], tuple[Tensor | None, ...]]:
            """Block k - 1 goes to the process before this one, and block k comes from the one after it."""
            n = sizes[(self.rank + k) % self.world]
            coming = tuple(None if t is None else t.new_empty(n, *t.shape[1:]) for t in block)
            ways = ((dist.isend, block, to), (dist.irecv, coming, source))
            operations = [
                dist.P2POp(way, t, peer, whole, tag)
                for way, tensors, peer in ways
                for tag, t in enumerate(tensors)
                if t is not None and t.numel()
            ]
            return dist.batch_isend_irecv(operations) if operations else [], coming

        works, coming = passed_on(tuple(None if t is None else t.detach().contiguous() for t in own), 1)
        for k in range(1, self.world):
            for work in works:
                work.wait()
            block = coming
            if k + 1 < self.world:
                works, coming = passed_on(block, k + 1)
            yield (self.rank + k) % self.world, block

    def rows_with_gradient(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """`gather` with a derivative, which is summed over the processes."""
        return _Gathered.apply(own, self, sizes)

    def scattered(self, states: Tensor, sizes: Sequence[int]) -> Tensor:
        """`scatter` with a derivative: that of the own rows goes to every process."""
        return _Scattered.apply(states, self, sizes)

    def total(self, own: Tensor) -> Tensor:
        """The sum over the processes. All their losses depend on it, so its derivative is the sum of theirs."""
        return _Total.apply(own, self)

    def replicated(self, number: Tensor) -> Tensor:
        """A number that is the same in all processes; in each it receives the mean of their derivatives."""
        return _Replicated.apply(number, self)

    def option(self, value: Any) -> Any:
        """An option of a loss; a learned number is `replicated`. Sharded modules replicate their own options."""
        learned = isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad
        return self.replicated(value) if learned and self.shard is None else value

    def owned(self, rows: Tensor) -> Tensor:
        """Rows that only this process has; they receive the derivative of the mean of the processes' losses."""
        return _Owned.apply(rows, self)


def all_gather(found: Tensor, own: Tensor, process_group: Any) -> None:
    """The tensors of all processes, one after the other; PyTorch 2.13 has renamed the function."""
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    call(found, own, group=process_group)


def reduce_scatter(own: Tensor, parts: Tensor, process_group: Any) -> None:
    """The sum of the parts that all processes have for this one."""
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    call(own, parts, group=process_group)


def pad(rows: Tensor, n: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(n - rows.shape[0], *rows.shape[1:])])


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group, sizes: Sequence[int]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        return group.gather(own, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        wide = d if d.element_size() > 2 else d.float()  # a 16-bit sum would be rounded once per process
        return ctx.group.scatter(wide, ctx.sizes).to(d.dtype), None, None


class _Scattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, group: Group, sizes: Sequence[int]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        return group.scatter(states, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        return ctx.group.gather(d, ctx.sizes), None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.sum(own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        return ctx.group.sum(d), None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, number: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return number.view_as(number)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        return ctx.group.sum(d) / ctx.group.world, None


class _Owned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.world = group.world
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        return d / ctx.world, None


_current: ContextVar[Group | None] = ContextVar("fusedloss_group", default=None)


def alone(process_group: Any) -> bool:
    """Whether there is no other process."""
    if not dist.is_available() or not dist.is_initialized():
        return True
    if dist.get_rank(process_group) < 0:
        raise ValueError(f"group must have this process, of rank {dist.get_rank()}, among its own, got one without it")
    return dist.get_world_size(process_group) == 1


def current() -> Group | None:
    """The group over which a loss is called now. There is none in compiled code, of which such a call is not a part."""
    return None if torch.compiler.is_compiling() else _current.get()


def sharded() -> Group | None:
    """The group over which the classes of a loss are sharded now."""
    group = current()
    return group if group is not None and group.shard is not None else None


def first_row() -> int:
    """The number of this process's first row in the whole batch of the loss that is called now."""
    group = current()
    return 0 if group is None else group.first(group.rows)


def first_key() -> int:
    """The number of this process's first key in the whole batch of the loss that is called now."""
    group = current()
    return 0 if group is None else group.first(group.keys)


@contextmanager
def over(group: Group | None) -> Iterator[None]:
    """Within this block, a loss that is called is that of the whole batch of the group."""
    token = _current.set(group)
    try:
        yield
    finally:
        _current.reset(token)
