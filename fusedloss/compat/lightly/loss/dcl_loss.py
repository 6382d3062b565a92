"""lightly.loss.dcl_loss, fused."""

from __future__ import annotations

from typing import Any

from lightly.loss import dcl_loss as _library
from torch import Tensor

from ....backends.dtypes import loss_dtype
from ...calls import attempt, unchanged
from ...library import handed_through
from ..views import competition, unit_rows

__all__ = ["DCLLoss", "DCLWLoss"]
__getattr__, __dir__ = handed_through(_library, __all__)


class DCLLoss(_library.DCLLoss):
    """The library's `DCLLoss`, fused for temperatures above 0, any `weight_fn` and gathered views."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        library = super().forward
        return attempt(type(self).__name__, lambda: self._fused(out0, out1), lambda: library(out0, out1))

    def _fused(self, out0: Tensor, out1: Tensor) -> Tensor:
        unchanged(self, _library, "_loss")
        x0, x1 = unit_rows(out0, out1)
        positive, negative = competition(x0, x1, self.temperature, self.gather_distributed)
        found: list[Any] = []
        for own, others, views in zip(positive, negative, ((x0, x1), (x1, x0)), strict=True):
            weighted = own * self.weight_fn(*views) if self.weight_fn else own
            found.append((others - weighted).mean())
        return (sum(found) / 2).to(loss_dtype(x0))


class DCLWLoss(_library.DCLWLoss, DCLLoss):
    """The library's `DCLWLoss`, fused, see `DCLLoss`."""
