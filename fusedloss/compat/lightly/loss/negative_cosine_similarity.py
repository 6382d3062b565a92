"""lightly.loss.negative_cosine_similarity, fused."""

from __future__ import annotations

from lightly.loss import negative_cosine_similarity as _library
from torch import Tensor

from ....losses.pairs import cosine_similarity_loss
from ...calls import NotFused, attempt
from ...library import handed_through

__all__ = ["NegativeCosineSimilarity"]
__getattr__, __dir__ = handed_through(_library, __all__)

EPS = 1e-8  # the least length in a cosine of fusedloss


class NegativeCosineSimilarity(_library.NegativeCosineSimilarity):
    """The library's `NegativeCosineSimilarity`, fused over the last dimension and for the default `eps`.

    A row shorter than `eps` is divided by a constant; torch differentiates by the row's length there.
    """

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        library = super().forward
        return attempt(type(self).__name__, lambda: self._fused(x0, x1), lambda: library(x0, x1))

    def _fused(self, x0: Tensor, x1: Tensor) -> Tensor:
        if self.dim not in (-1, x0.dim() - 1) or x0.shape != x1.shape:
            raise NotFused("cosines of another dimension than the last, or of two shapes")
        if self.eps != EPS:
            raise NotFused(f"eps is not {EPS}")
        if not x0.numel():
            raise NotFused("there are no rows")
        return cosine_similarity_loss(x0.flatten(0, -2), x1.flatten(0, -2)) - 1
