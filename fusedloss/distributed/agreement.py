"""What processes tell each other before they compute, so that an error of one process is raised by all of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import checks, groups
from ..groups import Group, Shard, Sizes
from ..losses.catalog import Role

DTYPES = [None, *sorted((v for v in vars(torch).values() if isinstance(v, torch.dtype)), key=str)]
MOST = 12  # the most tensors that a loss takes
AS_MANY = (  # tensors that have a row for each row of the first tensor
    (Role.ROWS, Role.VIEW, Role.LABELS, Role.CLASS, Role.IDS, Role.HARD_NEGATIVES),
    (Role.KEYS, Role.KEY_IDS, Role.KEY_BIAS),
)


class Told(NamedTuple):
    """What a process tells the others about a tensor."""

    dtype: int = 0  # the place in DTYPES; 0: there is no tensor
    wanted: int = 0  # whether it wants a gradient
    dim: int = 0
    rows: int = 0
    width: int = 0  # this and the next: the sizes of the second and the third dimension
    depth: int = 0

    def __str__(self) -> str:
        if not self.dtype:
            return "None"
        shape = (self.rows, self.width, self.depth)[: self.dim]
        return f"{DTYPES[self.dtype]} {shape}{' that wants a gradient' if self.wanted else ''}"


def told(tensor: Any) -> Told:
    if not isinstance(tensor, Tensor):
        return Told()
    sizes = [*tensor.shape, 0, 0, 0][:3]
    return Told(DTYPES.index(tensor.dtype), int(tensor.requires_grad), tensor.dim(), *sizes)


class Agreement:
    """The exchange before a loss over a group, in which every process tells what it gives, by the roles of its tensors.

    owner: the name of the called loss, for errors.
    options: what has to be the same in all processes, see `text`.
    paired: whether there is a key for every row.
    even: whether every process has as many rows as this one; then nothing is told.
    """

    def __init__(
        self, owner: str, roles: Mapping[str, Role], given: Mapping[str, Any], options: str, *, paired: bool = False,
        even: bool = False,
    ) -> None:  # fmt: skip
        self.owner, self.roles, self.options, self.paired, self.even = owner, roles, options, paired, even
        self.own = {name: told(given.get(name)) for name in roles}
        self.device = next((given[name].device for name, one in self.own.items() if one.dtype), None)
        state = f"{torch.is_grad_enabled()} {self.device is not None and checks.autocast(self.device)}"
        self.alike = zlib.crc32(f"{owner} {options} {state}".encode())

    def exchange(self, group: Group, failed: bool) -> list[list[int]]:
        """For every process, whether it failed, a checksum of its options, and what it tells about its tensors."""
        numbers = [int(failed), self.alike, *(n for name in self.roles for n in self.own[name])]
        padded = numbers + [0] * (2 + MOST * len(Told()) - len(numbers))  # the same length for every call
        own = torch.tensor(padded, dtype=torch.int64).to(self.device or device_of(group.process_group))
        all_of = own.new_empty(group.world * own.shape[0])
        groups.all_gather(all_of, own, group.process_group)
        return all_of.view(group.world, -1).tolist()

    def failed(self, group: Group) -> None:
        """Tell the others that this process has an error of its own."""
        if not self.even:
            self.exchange(group, True)

    def __call__(self, group: Group) -> Sizes:
        """How many rows and keys each process gives.

        Raises:
            RuntimeError: Another process has an error.
            ValueError: What the processes give does not belong together.
        """
        if self.even:
            return self.counted({name: [one] * group.world for name, one in self.own.items()})
        all_of = self.exchange(group, False)
        wrong = [str(rank) for rank, (failed, *_) in enumerate(all_of) if failed]
        if wrong:
            raise RuntimeError(f"{self.owner}: the arguments of rank {', '.join(wrong)} are wrong, see the error there")
        others = [str(rank) for rank, (_, alike, *_) in enumerate(all_of) if alike != self.alike]
        if others:
            raise ValueError(
                f"{self.owner}: all ranks must call the same loss with the same options, and all or none of them under "
                f"no_grad and autocast, got others on rank {', '.join(others)} than here, {self.options}"
            )
        width = len(Told())
        by_name = {
            name: [Told(*row[2 + i * width :][:width]) for row in all_of] for i, name in enumerate(self.roles)
        }  # fmt: skip
        self.check(by_name)
        return self.counted(by_name)

    def check(self, by_name: Mapping[str, list[Told]]) -> None:
        """Check that tensors are alike in all processes except for their numbers of rows, which agree in a process."""
        for name, of in by_name.items():
            if len({one._replace(rows=0) for one in of}) > 1:
                each = ", ".join(f"{one} on rank {rank}" for rank, one in enumerate(of))
                raise ValueError(f"{self.owner}: {name} must be alike on every rank but for its rows, got {each}")
        for roles in AS_MANY:
            named = {name: of for name, of in by_name.items() if self.roles[name] in roles and of[0].dtype}
            for rank, of_rank in enumerate(zip(*named.values(), strict=True)):
                if len({one.rows for one in of_rank}) > 1:
                    each = ", ".join(f"{name} {one}" for name, one in zip(named, of_rank, strict=True))
                    raise ValueError(
                        f"{self.owner}: {', '.join(named)} must have as many rows, on rank {rank} got {each}"
                    )

    def counted(self, by_name: Mapping[str, list[Told]]) -> Sizes:
        of_role = {self.roles[name]: [one.rows for one in of] for name, of in by_name.items()}
        rows = of_role[Role.ROWS]
        keys = of_role.get(Role.KEYS, rows)
        if self.paired and keys != rows:
            raise ValueError(f"{self.owner}: every rank must give a key for each of its {rows} rows, got {keys}")
        return Sizes(rows, keys)


def text(options: Mapping[str, Any]) -> str:
    """Options as text; for tensors without their values, which would have to be read from the device."""

    def shown(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        return f"Tensor(shape={tuple(value.shape)}, requires_grad={value.requires_grad})"

    return ", ".join(f"{name}={shown(value)}" for name, value in sorted(options.items()))


def device_of(process_group: Any) -> torch.device:
    """The device for what a group exchanges, for a call that gives no tensors."""
    on_gpu = "nccl" in dist.get_backend(process_group)
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


@torch.compiler.disable
def over_group(
    call: Callable[[], Any], process_group: Any, owner: str, roles: Mapping[str, Role], given: Mapping[str, Any],
    options: Mapping[str, Any], *, mode: str = "gather", shard: Shard | None = None, paired: bool = False,
    even: bool = False,
) -> Any:  # fmt: skip
    """Call a loss over a group. If it raises before it asks what the others have, they are told about the error."""
    agreement = Agreement(owner, roles, given, text(options), paired=paired, even=even)
    group = Group(process_group, agreement, mode, shard)
    with groups.over(group):
        try:
            return call()
        except Exception:
            if not group.asked:
                agreement.failed(group)
            raise
