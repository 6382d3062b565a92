"""The operations between the losses and a backend, one file per family; `registration` makes Functions and custom ops.

Rows x [N, D] are compared with y [M, D], or with themselves where y is None, see `checks.Batch`.
"""

from .closings import close
from .folds import Of, fold, of
from .hinges import closes, hard_triplets, to_centers
from .logits import fold_elements, fold_logits
from .ranking import rank
from .rows import listed_distances, minable, mine, mined_distances, row_distances
from .triplets import fold_triplets

__all__ = [
    "Of",
    "close",
    "closes",
    "fold",
    "fold_elements",
    "fold_logits",
    "fold_triplets",
    "hard_triplets",
    "listed_distances",
    "minable",
    "mine",
    "mined_distances",
    "of",
    "rank",
    "row_distances",
    "to_centers",
]
