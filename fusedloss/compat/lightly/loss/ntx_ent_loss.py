"""lightly.loss.ntx_ent_loss, fused."""

from __future__ import annotations

from lightly.loss import ntx_ent_loss as _library
from torch import Tensor

from ....backends.dtypes import loss_dtype
from ....losses.reduce import softplus
from ....losses.towers import info_nce_loss
from ...calls import attempt
from ...library import handed_through
from ..views import competition, unit_rows

__all__ = ["NTXentLoss"]
__getattr__, __dir__ = handed_through(_library, __all__)


class NTXentLoss(_library.NTXentLoss):
    """The library's `NTXentLoss`, fused for temperatures above 0, with and without a memory bank or gathered views."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        library = super().forward
        return attempt(type(self).__name__, lambda: self._fused(out0, out1), lambda: library(out0, out1))

    def _fused(self, out0: Tensor, out1: Tensor) -> Tensor:
        x0, x1 = unit_rows(out0, out1)
        _, bank = self.memory_bank(x1, update=False)
        if bank is None:
            positive, negative = competition(x0, x1, self.temperature, self.gather_distributed)
            return softplus(negative - positive).mean().to(loss_dtype(x0))
        queue = bank.T.to(x0.device)
        loss = info_nce_loss(x0, x1, queue, temperature=self.temperature, metric="dot", in_batch_negatives=False)
        if x0.requires_grad:  # only now: if the library computes the call, it also updates the bank
            self.memory_bank(x1, update=True)
        return loss
