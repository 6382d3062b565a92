"""By how much all rows may be moved: towards the origin, where distances lose fewer digits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import Batch

MOVED = ("euclidean", "sqeuclidean")  # metrics that do not change when all rows are moved


def box(b: Batch, metric: str) -> tuple[Tensor, ...]:
    """The minimum and the maximum of every dimension [D] over the rows of both sides, except ignored ones, from which
    follows by how much all rows are moved; () if the metric does not allow that, or without rows."""
    if metric not in MOVED:
        return ()
    extremes = []
    for x, labels in ((b.x, b.x_labels), (b.y, b.y_labels)):
        if x is None or not x.shape[0]:
            continue
        if b.ignored is not None:
            counted = labels != b.ignored
            x = torch.where(counted[:, None], x, x.index_select(0, counted.int().argmax().reshape(1)))
        # on a CPU one after the other is 5 to 30 times as fast
        extremes.append((x.amin(0), x.amax(0)) if x.device.type == "cpu" else tuple(x.aminmax(dim=0)))
    if not extremes:
        return ()
    low, high = extremes[0]
    for least, most in extremes[1:]:
        low, high = torch.minimum(low, least), torch.maximum(high, most)
    return low, high
