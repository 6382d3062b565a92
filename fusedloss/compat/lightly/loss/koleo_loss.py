"""lightly.loss.koleo_loss, fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.loss import koleo_loss as _library
from torch import Tensor

from ....losses.triplets import hardest_pairs
from ...calls import NotFused, attempt
from ...library import handed_through

__all__ = ["KoLeoLoss"]
__getattr__, __dir__ = handed_through(_library, __all__)


class KoLeoLoss(_library.KoLeoLoss):
    """The library's `KoLeoLoss`: the search for nearest neighbours is fused, the distances are the library's.

    Among neighbours at the same distance another one may receive the gradient. A row shorter than `eps` receives the
    gradient of its direction.
    """

    def forward(self, x: Tensor) -> Tensor:
        library = super().forward
        return attempt(type(self).__name__, lambda: self._fused(x), lambda: library(x))

    def _fused(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1, eps=self.eps)
        if len(x) < 2:
            raise NotFused("there is no other row")
        nearest = hardest_pairs(x.detach(), torch.arange(len(x), device=x.device), metric="cosine").negative_index
        distance: Tensor = self.pairwise_distance(x, x[nearest])
        return -(distance + self.eps).log().mean()
