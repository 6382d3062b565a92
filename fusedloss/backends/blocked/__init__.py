"""The PyTorch backend: the same functions as `triton`, tile by tile, on any device and in float64.

Memory is O((N + M) D) plus one tile. On a CPU the rows are sorted by label first, so that most tiles hold no positive
pair and need no masks, and tiles that contribute nothing are skipped early. The files correspond to those of `kernels`.
"""

from .closings import CLOSED, fold_close, fold_close_grad
from .folds import fold, fold_grad
from .logits import elements_grad, fold_elements, fold_logits, logits_grad
from .mining import mine
from .ranking import rank, rank_grad
from .rows import listed_distances, listed_distances_grad, row_distances, row_distances_grad
from .triplets import fold_triplets, fold_triplets_grad

__all__ = [
    "CLOSED",
    "elements_grad",
    "fold",
    "fold_close",
    "fold_close_grad",
    "fold_elements",
    "fold_grad",
    "fold_logits",
    "fold_triplets",
    "fold_triplets_grad",
    "listed_distances",
    "listed_distances_grad",
    "logits_grad",
    "mine",
    "rank",
    "rank_grad",
    "row_distances",
    "row_distances_grad",
]
