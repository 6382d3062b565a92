"""How a loss takes the rows and labels of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fusedloss.tools.measure import Loss

# Losses of pairs, row i of one half of the batch with row i of the other, instead of labels.
PAIRED = ("nt_xent_loss", "info_nce_loss", "clip_loss", "siglip_loss", "n_pair_loss")
# Losses of the rows and one row a class, which are the last rows of the batch and receive their gradient too.
WITH_CLASSES = ("linear_cross_entropy_loss", "arcface_loss", "proxy_anchor_loss")
# Losses of given logits, as many as there are classes; and those whose targets are 1 for the class of a row, else 0.
GIVEN_LOGITS = ("cross_entropy_loss", "sigmoid_focal_loss", "binary_cross_entropy_loss")
ELEMENTS = GIVEN_LOGITS[1:]


def of_batch(function: Callable[..., Tensor], loss: str, **options: Any) -> Loss:
    """A function with the arguments of a loss of fusedloss, as a function of rows and labels."""
    if loss in PAIRED:
        return lambda x, labels: function(*x.chunk(2), **options)
    if loss in WITH_CLASSES:
        return lambda x, labels: function(x[: len(labels)], x[len(labels) :], labels, **options)
    if loss in ELEMENTS:
        return lambda x, labels: function(x, F.one_hot(labels, x.shape[1]).to(x.dtype), **options)
    return lambda x, labels: function(x, labels, **options)
