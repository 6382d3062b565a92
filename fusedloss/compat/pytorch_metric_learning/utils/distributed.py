"""pytorch_metric_learning.utils.distributed, whose wrapper lists no pairs."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.utils import distributed as _library
from torch import Tensor

from ...library import handed_through
from ..compared import AllPairs
from ..fused import Fused


class DistributedLossWrapper(_library.DistributedLossWrapper):
    """A loss over the rows of all processes, which are gathered without gradients and begin with this process's own.

    With efficient=True only the own rows are anchors; their pairs with all rows, which the library lists, are fused.
    `fusedloss.distributed.GroupLoss` gathers with gradients, and does not keep the rows of other processes.
    """

    def forward_regular_loss(
        self, emb: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor | None,
        ref_labels: Tensor | None, world_size: int,
    ) -> Any:  # fmt: skip
        if self.efficient and world_size > 1 and indices_tuple is None and isinstance(self.loss, Fused):
            indices_tuple = AllPairs(0)
        return super().forward_regular_loss(emb, labels, indices_tuple, ref_emb, ref_labels, world_size)


__all__ = ["DistributedLossWrapper"]
__getattr__, __dir__ = handed_through(_library, __all__)
