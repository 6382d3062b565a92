"""lightly.loss.macl_loss, fused."""

from __future__ import annotations

from lightly.loss import macl_loss as _library
from torch import Tensor

from ....backends.dtypes import loss_dtype
from ....losses.reduce import softplus
from ...calls import attempt
from ...library import handed_through
from ..views import competition, unit_rows

__all__ = ["MACLLoss"]
__getattr__, __dir__ = handed_through(_library, __all__)


class MACLLoss(_library.MACLLoss):
    """The library's `MACLLoss`, fused."""

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        library = super().forward
        return attempt(type(self).__name__, lambda: self._fused(z0, z1), lambda: library(z0, z1))

    def _fused(self, z0: Tensor, z1: Tensor) -> Tensor:
        x0, x1 = unit_rows(z0, z1)
        alignment = (x0 * x1).detach().to(loss_dtype(x0)).sum(1).mean()
        positive, negative = competition(x0, x1, self.temperature * (1 + self.alpha * (alignment - self.A_0)))
        terms = softplus(negative - positive)
        weights = 1 / (1 - (-terms.detach()).exp() + self.eps)
        return (weights * terms).mean().to(loss_dtype(x0))
