"""What processes tell each other before they compute, so that all of them raise the error that one of them would."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import groups
from ..groups import Group, Sizes
from ..losses.catalog import Role

DTYPES = tuple(sorted((v for v in vars(torch).values() if isinstance(v, torch.dtype)), key=str))
TENSORS, FIELDS = 12, 6  # most tensors of a loss, and what is told of each: see `described`
OF_ROWS = (Role.ROWS, Role.VIEW, Role.LABELS, Role.CLASS, Role.IDS, Role.HARD_NEGATIVES)  # [N, ...]
OF_KEYS = (Role.KEYS, Role.KEY_IDS, Role.KEY_BIAS)  # [M, ...]


def described(tensor: Any) -> list[int]:
    """A tensor in six numbers: its dtype, from 1 on, 0 of none; whether it wants a gradient; dimensions and sizes."""
    if not isinstance(tensor, Tensor):
        return [0] * FIELDS
    sizes = [*tensor.shape, 0, 0, 0][:3]
    return [DTYPES.index(tensor.dtype) + 1, int(tensor.requires_grad), tensor.dim(), *sizes]


def words(of: list[int]) -> str:
    dtype, wanted, dim, *sizes = of
    if not dtype:
        return "none"
    return f"{DTYPES[dtype - 1]} {tuple(sizes[:dim])}{' that wants a gradient' if wanted else ''}"


class Agreement:
    """The exchange before a loss: of what every process gives, by the roles of the catalog.

    owner: whose call it is, for errors; options: what has to be alike in all processes, as text.
    even: nothing is exchanged, every process has as many rows as this one.
    """

    def __init__(
        self, owner: str, roles: Mapping[str, Role], given: Mapping[str, Any], options: str, even: bool = False
    ) -> None:
        self.owner, self.roles, self.options, self.even = owner, roles, options, even
        self.given = {name: given.get(name) for name in roles}
        first = next(t for t in self.given.values() if isinstance(t, Tensor))
        self.device = first.device
        state = f"{torch.is_grad_enabled()} {torch.is_autocast_enabled(first.device.type)}"
        self.alike = zlib.crc32(f"{owner} {options} {state}".encode())

    def table(self, group: Group, failed: bool) -> list[list[int]]:
        own = [int(failed), self.alike]
        for name in self.roles:
            own += described(self.given[name])
        own += [0] * (2 + TENSORS * FIELDS - len(own))
        told = torch.tensor(own, dtype=torch.int64).to(self.device)
        found = told.new_empty(group.world * told.shape[0])
        dist.all_gather_into_tensor(found, told, group=group.process_group)
        return found.view(group.world, -1).tolist()

    def failed(self, group: Group) -> None:
        """Tell the others that this process has an error of its own."""
        if not self.even:
            self.table(group, True)

    def __call__(self, group: Group) -> Sizes:
        """How many rows and keys each process gives.

        Raises:
            RuntimeError: an error in another process. ValueError: what they give does not belong together.
        """
        if self.even:
            return self.counted({name: [described(self.given[name])] * group.world for name in self.roles})
        table = self.table(group, False)
        wrong = [str(rank) for rank, row in enumerate(table) if row[0]]
        if wrong:
            raise RuntimeError(f"{self.owner}: the arguments of rank {', '.join(wrong)} are wrong, see its own error")
        if len({row[1] for row in table}) > 1:
            raise ValueError(
                f"{self.owner}: all ranks must call the same loss with the same options, and all or none under no_grad "
                f"and autocast, got others on rank {', '.join(self.others(table, 1))}; here {self.options}"
            )
        tensors = {}
        for i, name in enumerate(self.roles):
            tensors[name] = [row[2 + i * FIELDS :][:FIELDS] for row in table]
        self.check(tensors)
        return self.counted(tensors)

    def others(self, table: list[list[int]], field: int) -> list[str]:
        return [str(rank) for rank, row in enumerate(table) if row[field] != table[0][field]]

    def check(self, tensors: dict[str, list[list[int]]]) -> None:
        """Whether tensors are alike but for how many rows they have, and as many of each kind."""
        for name, of in tensors.items():
            kinds = {(dtype, wanted, dim, *sizes[1:]) for dtype, wanted, dim, *sizes in of}
            if len(kinds) > 1:
                each = ", ".join(f"{words(one)} on rank {rank}" for rank, one in enumerate(of))
                raise ValueError(f"{self.owner}: {name} must be alike on every rank but for its rows, got {each}")
        for roles in (OF_ROWS, OF_KEYS):
            named = [name for name in tensors if self.roles[name] in roles and tensors[name][0][0]]
            for rank, sizes in enumerate(zip(*(tensors[name] for name in named), strict=True)):
                if len({one[3] for one in sizes}) > 1:
                    each = ", ".join(f"{name} {words(one)}" for name, one in zip(named, sizes, strict=True))
                    raise ValueError(
                        f"{self.owner}: {', '.join(named)} must have as many rows, got {each} on rank {rank}"
                    )

    def counted(self, tensors: dict[str, list[list[int]]]) -> Sizes:
        rows, keys = (
            next((of for name, of in tensors.items() if self.roles[name] is role), None)
            for role in (Role.ROWS, Role.KEYS)
        )
        assert rows is not None
        found = Sizes([one[3] for one in rows], [one[3] for one in keys or rows])
        if found.keys != found.rows and Role.QUEUE not in self.roles.values():
            raise ValueError(
                f"{self.owner}: every rank must give as many rows of both towers, got {found.rows} by rank and "
                f"{found.keys} of the other"
            )
        return found


def alone(process_group: Any) -> bool:
    """Whether there is no other process."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_world_size(process_group) == 1


def told(options: Mapping[str, Any]) -> str:
    """Options as text; of tensors, which may be learned, or of the rows of a process, no more than that they are."""
    values = (f"{k}={'a tensor' if isinstance(v, Tensor) else repr(v)}" for k, v in sorted(options.items()))
    return ", ".join(values)


@contextmanager
def agreed(group: Group) -> Iterator[None]:
    """For the call of a loss over a group. If it raises before it asks for the others' sizes, those are told."""
    with groups.over(group):
        try:
            yield
        except Exception:
            if not group.asked:
                group.told.failed(group)
            raise
