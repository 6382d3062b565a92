"""The Triton backend: allocates outputs, picks tiles and launches the kernels. Same functions as `blocked`.

common (a launch, a side, its preparation)  <-  folds, mining, rows, triplets (one file per kernel family)
"""

from .folds import fold, fold_grad
from .mining import mine
from .rows import mined_distances, mined_distances_grad, row_distances, row_distances_grad
from .triplets import fold_triplets, fold_triplets_grad

__all__ = [
    "fold",
    "fold_grad",
    "fold_triplets",
    "fold_triplets_grad",
    "mine",
    "mined_distances",
    "mined_distances_grad",
    "row_distances",
    "row_distances_grad",
]
