"""The Triton backend: it allocates outputs, picks tiles and launches the kernels. Its functions are those of `blocked`.

tuning (which tile)  <-  launch  <-  sides (of the score matrix)  <-  folds, mining, triplets;  launch  <-  logits, rows
folds  <-  closings;  triplets  <-  ranking
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
