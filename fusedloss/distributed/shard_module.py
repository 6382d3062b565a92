"""What losses whose rows of classes are sharded over the processes of a group have in common."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import Parameter, Signature
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import checks, groups
from ..groups import Group, Shard, alone
from ..loss_module import ClassLossModule
from ..losses.catalog import CATALOG, Role
from .agreement import over_group

OWN = [
    Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (("group", None, "Any"), ("sample_rate", 1.0, "float"), ("even", False, "bool"))
]
DOC = """`{base}` whose classes are sharded over the processes of a group; exact, and the logits never exist.

Each of W processes owns and trains the rows of its share of the C classes (`classes`, a range), C / W of them, and
gives its own embeddings and targets. The embeddings of all processes are gathered, the results of the shards are
merged, and the gradient of the embeddings goes back to the processes that gave them. A million identities thus take a
W-th of the memory and of the time in each process.

The value is that of the whole batch, the same in every process. The mean of the gradients of the embeddings over the
processes, which DDP takes, is the gradient of one process with the whole batch. The gradients of the rows of classes,
and of options that are learned, are complete in every process and must not be averaged. **Keep this module out of
`DistributedDataParallel` and FSDP**, which would give all processes the same rows; wrap the encoder alone, and give the
optimizer the parameters of both:

```python
encoder = DistributedDataParallel(encoder)
loss = {name}(num_classes, dim)
optimizer = torch.optim.SGD([*encoder.parameters(), *loss.parameters()], lr=0.1)
```

The parameters begin at random and differ between processes, even with the same seed. `state_dict` is that of the shard;
loading the state of another rank is an error. `unsharded()` joins all shards into a `{base}`, and `from_unsharded`
takes this process's shard of one. Arguments that are not listed are those of `{base}`; `num_classes` counts the classes
of all processes.

Args:
    group: the process group; None: all processes. Without a process group, or with one process, the shard is the whole.
    sample_rate: from 0 to 1. Below 1 every step compares with the classes of the batch and a random sample of the
        others, together this share of the shard, or as many classes as the batch has rows if that is more. This is
        PartialFC: it is faster, but no longer the exact loss. In `eval()` mode all classes count. It cannot be combined
        with `label_smoothing`.
    even: whether every process has the same number of rows. Then no size is exchanged before the rows, and a step has
        no host sync.

Source: An et al., "Partial FC: Training 10 Million Identities on a Single Machine", ICCV Workshops 2021.
"""


class ShardedLoss(ClassLossModule):
    """A `ClassLossModule` that has the rows of a share of the classes."""

    whole: ClassVar[type[ClassLossModule]]  # the same loss with all classes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        whole: Any = next(c for c in cls.__mro__ if "function" in vars(c) and not issubclass(c, ShardedLoss))
        cls.whole = whole
        taken = [*inspect.signature(cls.whole).parameters.values(), *OWN]
        if "__init__" not in vars(cls):
            cls.__signature__ = Signature(taken)  # type: ignore[attr-defined]
            cls.__doc__ = cls.__doc__ or DOC.format(base=cls.whole.__name__, name=cls.__name__)

    def __init__(
        self, num_classes: int, dim: int, *, group: Any = None, sample_rate: float = 1.0, even: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        C = checks.index("num_classes", num_classes, low=1)
        rank, world = (0, 1) if alone(group) else (dist.get_rank(group), dist.get_world_size(group))
        if world > C:
            raise ValueError(f"num_classes must be at least one for each of {world} processes, got {C}")
        self.classes, self.rank = share(C, rank, world), rank
        if isinstance(bias := options.get("bias"), Tensor):  # the bias of all classes
            own = bias[self.classes.start : self.classes.stop]
            options["bias"] = nn.Parameter(own.detach().clone()) if isinstance(bias, nn.Parameter) else own
        super().__init__(len(self.classes), dim, **options)
        self.num_classes, self.group, self.even = C, group, checks.flag("even", even)
        self.sample_rate = checks.number("sample_rate", sample_rate, high=1.0)
        if self.sample_rate < 1 and vars(self).get("label_smoothing"):
            raise ValueError(
                f"sample_rate must be 1 with label_smoothing, which takes the logits of all classes, got {sample_rate}"
            )
        self.apart = False  # whether the shards have been seen to differ

    def reset_parameters(self) -> None:
        rows = getattr(self, self.rows)
        nn.init.normal_(rows, std=self.dim**-0.5, generator=self._generator(rows.device))
        if self.begins_with_bias:
            nn.init.zeros_(self.bias)

    def _generator(self, device: torch.device) -> torch.Generator | None:
        """A generator for this process. All processes draw the same seed, so their default generators stay in step."""
        seed = int(torch.randint(2**62, (), device="cpu")) + self.rank
        return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def forward(self, *tensors: Any, **named: Any) -> Any:
        if alone(self.group):
            return super().forward(*tensors, **named)
        call, owner = partial(self._step, *tensors, **named), type(self).__name__
        given = self.called.bind(f"{owner}.forward", tensors, named)
        tensors_of = CATALOG[self.function.__name__].tensors
        roles = {name: role for name, role in tensors_of.items() if role is not Role.CLASSES}
        options = {name: given.get(name, getattr(self, name)) for name in self.options} | {"training": self.training}
        for name in self._of_classes():
            options.pop(name, None)  # they are those of a shard
        if isinstance(margin := given.get("margin"), Tensor) and margin.dim() == 1:
            options["margin"] = "one a row"
        numbers = torch.arange(
            self.classes.start, self.classes.stop, device=getattr(self, self.rows).device, dtype=torch.int64
        )  # fmt: skip
        shard = Shard(numbers, self.num_classes)
        return over_group(call, self.group, owner, roles, given, options, shard=shard, even=self.even)

    def _step(self, *tensors: Any, **named: Any) -> Any:
        value = super().forward(*tensors, **named)
        if not self.apart:
            self._look_apart()
        return value

    def _arguments(self, tensors: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        arguments = super()._arguments(tensors, named)
        group = groups.current()
        if group is None:
            return arguments
        for name in self.options:
            value = arguments[name]
            learned = isinstance(value, Tensor) and value.requires_grad and value.numel() == 1
            if learned and (value.dim() == 0 or name not in named):  # in a call a margin [1] may be for a single row
                arguments[name] = group.replicated(value)
        at = self._sampled(arguments["target"], arguments["embeddings"], group)
        for name in self._of_classes():
            own = group.owned(arguments[name])
            arguments[name] = own if at is None else own.index_select(0, at)
        return arguments

    def _sampled(self, target: Any, embeddings: Any, group: Group) -> Tensor | None:
        """The rows of classes to compare with in this step; None for all. [k] int64, ascending"""
        own = len(self.classes)
        if self.sample_rate == 1 or not self.training or group.shard is None:
            return None
        x = checks.rows("embeddings", embeddings)
        ignored = vars(self).get("ignore_index")
        index = checks.class_indices("target", target, x.shape[:1], self.num_classes, x, ignored)
        count = max(math.ceil(self.sample_rate * own), min(sum(group.rows), own))
        if count == own:
            return None
        at = group.gather(index, group.rows) - self.classes.start
        here = at.where((at >= 0) & (at < own), own)
        positive = torch.zeros(own + 1, device=x.device).index_fill_(0, here, 1.0)[:own]
        chance = torch.rand(own, device=x.device, generator=self._generator(x.device))
        drawn = (chance + positive).topk(count).indices.sort().values
        group.shard = group.shard._replace(numbers=group.shard.numbers[drawn])
        return drawn

    def _look_apart(self) -> None:
        """Check once that the shards differ, as they do unless something gave all processes the same rows."""
        group, first = Group(self.group), getattr(self, self.rows).detach()[:1].flatten(1)
        all_of = group.gather(first, [1] * group.world)
        same = (all_of[1:] == all_of[:1]).all() & all_of.any()
        if bool(same):
            raise ValueError(
                f"{type(self).__name__}: all ranks have the same rows of classes: keep the loss out of "
                "DistributedDataParallel and FSDP, which spread those of rank 0"
            )
        self.apart = True

    def get_extra_state(self) -> dict[str, int]:
        return {"first": self.classes.start, "stop": self.classes.stop, "num_classes": self.num_classes}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        own = self.get_extra_state()
        if state != own:
            raise ValueError(
                f"{type(self).__name__}: the state must be that of classes {own['first']} to {own['stop'] - 1} of "
                f"{own['num_classes']}, got {state['first']} to {state['stop'] - 1} of {state['num_classes']}; join "
                "shards with unsharded(states) and take from_unsharded"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        if (state := state_dict.get(f"{prefix}_extra_state")) is not None:
            self.set_extra_state(state)  # before the rows are those of another shard
        super()._load_from_state_dict(state_dict, prefix, *others)

    def unsharded(self, states: Sequence[Mapping[str, Any]] | None = None) -> ClassLossModule:
        """The loss with the rows of all classes.

        Args:
            states: the `state_dict` of every shard, in the order of the ranks. None: the shards are gathered, for which
                every process has to call this method.
        """
        joined = {name: self._joined(name, states).to(getattr(self, name)) for name in self._of_classes()}
        options = {name: copy.deepcopy(getattr(self, name)) for name in self.options} | joined
        rows = options.pop(self.rows)
        if self.begins_with_bias:
            options["bias"] = True
        elif "bias" in joined and isinstance(self.bias, nn.Parameter):
            options["bias"] = nn.Parameter(joined["bias"])
        loss = self.whole(self.num_classes, self.dim, **options, device=rows.device, dtype=rows.dtype)
        with torch.no_grad():
            for name, values in joined.items():
                getattr(loss, name).copy_(values)
        return loss.train(self.training)

    def _joined(self, name: str, states: Sequence[Mapping[str, Any]] | None) -> Tensor:
        """A tensor with one row per class, joined from all shards."""
        own: Tensor = getattr(self, name).detach()
        if states is not None:
            return torch.cat([state[name] for state in states])
        if alone(self.group):
            return own
        group = Group(self.group)
        return group.gather(own, [len(share(self.num_classes, rank, group.world)) for rank in range(group.world)])

    @classmethod
    def from_unsharded(
        cls, loss: ClassLossModule, *, group: Any = None, sample_rate: float = 1.0, even: bool = False
    ) -> ShardedLoss:
        """This process's shard of a loss, for example of a checkpoint from another number of processes."""
        if not isinstance(loss, cls.whole) or isinstance(loss, ShardedLoss):
            raise TypeError(f"loss must be of {cls.whole.__name__}, got {type(loss).__name__}")
        options = {name: copy.deepcopy(getattr(loss, name)) for name in loss.options}
        if loss.begins_with_bias:
            options["bias"] = True
        rows = getattr(loss, loss.rows)
        options |= dict(device=rows.device, dtype=rows.dtype)
        found = cls(loss.num_classes, loss.dim, group=group, sample_rate=sample_rate, even=even, **options)
        with torch.no_grad():
            for name in found._of_classes():
                getattr(found, name).copy_(getattr(loss, name)[found.classes.start : found.classes.stop])
        return found.train(loss.training)

    def _of_classes(self) -> list[str]:
        """The names of its tensors with one row per class."""
        return [self.rows, "bias"] if isinstance(getattr(self, "bias", None), Tensor) else [self.rows]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, classes={self.classes}, sample_rate={self.sample_rate}, even={self.even}"


def share(num_classes: int, rank: int, world: int) -> range:
    """The classes of a process; the first processes have one more if the classes cannot be shared out evenly."""
    each, more = divmod(num_classes, world)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))
