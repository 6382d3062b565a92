"""The Triton backend: it allocates outputs, picks tiles and launches the kernels. Its functions are those of `blocked`.

tuning (which tile)  <-  launch  <-  sides (of the score matrix)  <-  folds, mining, triplets;  launch  <-  logits, rows
folds  <-  closings, panels;  triplets  <-  ranking
mining, rows  <-  hinges, whose losses `blocked` lets the callers compose
"""

from .closings import CLOSED, fold_close, fold_close_grad
from .folds import fold, fold_grad
from .hinges import hard_triplets, to_centers
from .logits import elements_grad, fold_elements, fold_logits, logits_grad
from .mining import mine
from .ranking import rank, rank_grad
from .rows import listed_distances, listed_distances_grad, mined_grad, row_distances, row_distances_grad
from .triplets import fold_triplets, fold_triplets_grad, keep_triplets, kept_triplets_grad

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
    "hard_triplets",
    "keep_triplets",
    "kept_triplets_grad",
    "listed_distances",
    "listed_distances_grad",
    "logits_grad",
    "mine",
    "mined_grad",
    "rank",
    "rank_grad",
    "row_distances",
    "row_distances_grad",
    "to_centers",
]
