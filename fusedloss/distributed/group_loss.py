"""In-batch losses over the rows of all processes of a group."""

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
)  # families that compare an anchor's rows with each other, so that all rows have to be there


class GroupLoss(nn.Module):
    r"""An in-batch loss over the batches of all processes of a group, as if they were one batch.

    Every process gives its own rows and gets the loss of the whole batch, the rows in the order of the ranks; the value
    is the same in every process. The mean of the gradients over the processes, which `DistributedDataParallel`, FSDP2
    and Accelerate take, is exactly the gradient of one process with the whole batch, for any numbers of rows (a process
    may have none). Options that are learned receive their whole gradient in every process, whether or not something
    averages it.

    `forward` takes what the loss takes, for the rows of this process. Tensors that are not rows of the batch are not
    sent: `ref_embeddings`, a queue (`negatives`) or `hard_negatives` are compared with the rows of this process alone.
    `reduction="none"` gives the terms of the own rows. Their gradient is that of a sum over all processes, each of
    which adds what it computes from its own terms.

    Every process has to call the loss, and its backward, equally often and in the same order; otherwise the others wait
    until the timeout of the group. In the backward gradients are sent only for mined pairs, triplets and ranks: for all
    other losses a block of rows brings the states of its anchors along, from which every process computes the whole
    gradient of its own rows.

    Without DDP, average the gradients of the model yourself after the backward:

    ```python
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    ```

    In compiled code the call is a graph break.

    Args:
        loss: an in-batch loss of fusedloss, as a module, a function or a `functools.partial` of these, or
            `hardest_pairs`, whose indices are then rows of the whole batch. A module's parameters are trained and saved
            with this module.
        group: the process group, as `torch.distributed.new_group` makes it; None: all processes. Without a process
            group, or with one process, this is the loss itself.
        mode: how the rows of other processes come. "gather": all at once, in O(N D) memory for N rows of the whole
            batch. "ring": one process after the other while tiles are computed, in O(n D) memory for n rows per
            process. Losses of triplets and of ranks, and "semihard" negatives, need all rows at once: for them "ring"
            gathers too, with a warning.
        even: whether every process has the same number of rows. Then nothing is exchanged before the rows, and no size
            is read from a device: a step has no host sync. Otherwise the processes first exchange their numbers of
            rows, dtypes and options, and where these do not belong together every rank raises the same error.

    Raises:
        TypeError: The loss is not one of fusedloss, or does not compare the rows of a batch.
        ValueError: The processes give tensors that do not belong together; the message is the same on every rank.

    Equivalent to (for the rows of all processes, gathered with their gradient in the order of the ranks):

    ```python
    loss(torch.cat(all_embeddings), torch.cat(all_labels))
    ```

    Examples:
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
        paired = self.name != "info_nce_loss"  # its further keys are negatives without a query
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
    """The name of a loss, its tensors, and the names of the arguments that it takes by position."""
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
