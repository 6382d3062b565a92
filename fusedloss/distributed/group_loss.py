"""In-batch losses over the batches of all processes of a group."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .. import checks
from ..groups import MODES, alone
from ..losses import catalog
from ..losses.catalog import IN_BATCH, Role, function_of, option_of
from ..losses.triplets import hardest_pairs
from .agreement import over_group

AT_ONCE = (
    "triplets",
    "ranking",
)  # families that compare an anchor's rows with each other, so that all have to be there


class GroupLoss(nn.Module):
    r"""An in-batch loss over the batches of all processes of a group, as if they were one.

    Every process gives its own rows and gets the loss of the whole batch, in the order of the ranks: the same value on
    each. Its gradient is such that the mean over the processes, which `DistributedDataParallel`, FSDP2 and Accelerate
    take, is that of one process with the whole batch; it is exact, for any numbers of rows, none too. Options that are
    learned receive their whole gradient in every process, whether or not something averages it.

    Args:
        loss: an in-batch loss of fusedloss, as a module, a function or a `functools.partial` of these; `hardest_pairs`
            too, whose indices are then rows of the whole batch. A module's parameters are trained and saved with this
            one.
        group: of processes, as `torch.distributed.new_group` makes them; None: all. Without a process group, or with
            one process, this is the loss itself.
        mode: how rows of other processes come. "gather": all at once, in O(N D) memory for N rows of the whole batch.
            "ring": one process after the other, in O(n D) memory for n rows of a process, while tiles are computed.
            Losses of triplets and ranks, and mined "semihard" negatives, want all rows at once and gather then, with a
            warning.
        even: every process has as many rows. Then nothing is told before rows are sent, and no size is read from a
            device: a step has no host sync. Otherwise how many there are, dtypes and options are told first, and what
            does not belong together is the same error on every rank.

    `forward` takes what the loss takes, of the rows of this process. What is no row of the batch is not sent: its rows
    are compared with the `ref_embeddings`, a queue (`negatives`) or `hard_negatives` that this process gives.
    `reduction="none"` gives the terms of the own rows; their gradient is that of the sum over all processes of what
    each makes of them.

    Every process has to call it, and its backward, as often and in the same order. If one does not the others wait
    until the group's timeout. In the backward no gradient is sent but that of mined pairs, triplets and ranks: a block
    of rows brings the states of its anchors, from which every process has the whole gradient of its own rows.

    Without DDP average the gradients of the model yourself, after the backward::

        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()

    Compiled code is left for the call, with a graph break.

    Raises:
        TypeError: the loss is none of fusedloss, or has no pairs of a batch. ValueError: naming what differs, on every
            rank.

    Equivalent to (of rows of all processes, gathered in the order of ranks with their gradient)::

        loss(torch.cat(all_embeddings), torch.cat(all_labels))

    >>> GroupLoss(fusedloss.SupConLoss(temperature=0.1))(torch.eye(2), torch.tensor([0, 0]))  # one process
    tensor(0.)
    """

    def __init__(
        self, loss: Callable[..., Any], group: Any = None, mode: str = "gather", even: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.loss, self.group = loss, group
        self.mode, self.even = checks.one_of("mode", mode, MODES), checks.flag("even", even)
        self.name, self.roles, self.places = _taken(loss)
        self.options = [*(function_of(loss).__kwdefaults__ or ())]
        family = row.family if (row := catalog.find(loss)) else "mined"
        at_once = family in AT_ONCE or option_of(loss, "negatives") == "semihard"
        if at_once and mode == "ring":
            warnings.warn(f"{self.name} wants all rows of a batch at once: mode 'ring' gathers them", stacklevel=2)
            self.mode = "gather"

    def forward(self, *tensors: Any, **named: Any) -> Any:
        if alone(self.group):
            return self.loss(*tensors, **named)
        given = dict(zip(self.places, tensors, strict=False)) | named
        options = {name: option_of(self.loss, name) for name in self.options}
        options |= {name: value for name, value in given.items() if name not in self.roles} | {"mode": self.mode}
        paired = self.name != "info_nce_loss"  # whose other keys are negatives
        return over_group(
            partial(self._step, *tensors, **named), self.group, f"GroupLoss of {self.name}", self.roles, given, options,
            mode=self.mode, paired=paired, even=self.even,
        )  # fmt: skip

    def _step(self, *tensors: Any, **named: Any) -> Any:
        offset = named.get("offset", option_of(self.loss, "offset"))
        if "offset" in self.options and self.name != "info_nce_loss" and offset != 0:
            raise ValueError(f"GroupLoss of {self.name}: offset must be 0, of own pairs, got {offset!r}")
        return self.loss(*tensors, **named)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, even={self.even}"


def _taken(loss: Any) -> tuple[str, dict[str, Role], list[str]]:
    """The name of a loss, its tensors but for the rows of its classes, and the names of what it takes by place."""
    function, row = function_of(loss), catalog.find(loss)
    if function is hardest_pairs:
        roles = IN_BATCH
    elif row is not None and row.products is not None and not row.named(Role.CLASSES):
        roles = {name: role for name, role in row.tensors.items() if role not in (Role.SCALE, Role.BIAS)}
    elif row is not None:
        raise TypeError(
            f"loss must be an in-batch loss, got {function.__name__}, which compares no rows with each other: under "
            "DDP it is right as it is; losses with a row a class have sharded forms in fusedloss.distributed"
        )
    else:
        raise TypeError(
            f"loss must be an in-batch loss of fusedloss, got {getattr(loss, '__name__', type(loss).__name__)}"
        )
    parameters = inspect.signature(function).parameters.values()
    return function.__name__, dict(roles), [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
