"""The memory bank of the library, whose pairs need no list."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses as library
from torch import Tensor

from ..calls import NotFused, attempt
from .compared import AllPairs, Indices
from .fused import Fused


class CrossBatchMemory(library.CrossBatchMemory):
    """A memory of the last rows for a loss of fusedloss; its pairs are fused without a miner and an indices_tuple.

    With a miner, or with listed pairs, the loss itself may still be fused.
    """

    def create_indices_tuple(
        self, embeddings: Tensor, labels: Tensor, E_mem: Tensor, L_mem: Tensor, input_indices_tuple: Indices | None,
        do_remove_self_comparisons: bool,
    ) -> Any:  # fmt: skip
        """The pairs of the batch and the memory that the loss is given."""
        library = super().create_indices_tuple

        def ours() -> AllPairs | None:
            if self.miner is not None or input_indices_tuple is not None:
                raise NotFused("a miner or an indices_tuple, whose pairs are listed")
            if not isinstance(self.loss, Fused):
                raise NotFused(f"{type(self.loss).__name__} is not of fusedloss.compat")
            first = (self.queue_idx - self.curr_batch_idx.shape[0]) % self.memory_size
            return AllPairs(first) if do_remove_self_comparisons else None

        def theirs() -> Any:
            return library(embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons)

        return attempt(type(self).__name__, ours, theirs)
