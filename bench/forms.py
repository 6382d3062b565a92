"""How a loss takes the rows and labels of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.tools.measure import Loss


def of_batch(function: Callable[..., Tensor], loss: str, **options: Any) -> Loss:
    """A function with the arguments of a loss of fusedloss, as a function of rows and labels.

    A loss of pairs pairs row i of one half of the rows with row i of the other half; it takes no labels, or those of
    one half as grades. The rows of classes are the last ones, and receive their gradient too. The target of a logit is
    1 for the class of its row, else 0.
    """
    known = CATALOG[loss]
    if known.paired:
        return lambda x, labels: function(*x.chunk(2), **options)
    if known.named(Role.GRADES):
        return lambda x, labels: function(*x.chunk(2), labels[: x.shape[0] // 2], **options)
    if known.named(Role.CLASSES):
        return lambda x, labels: function(x[: len(labels)], x[len(labels) :], labels, **options)
    if known.named(Role.ANSWERS):
        return lambda x, labels: function(x, F.one_hot(labels, x.shape[1]).to(x.dtype), **options)
    return lambda x, labels: function(x, labels, **options)
