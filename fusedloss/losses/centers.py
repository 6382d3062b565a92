"""Losses of embeddings and one center per class, to which the rows of the class are drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, ops
from ..backends.dtypes import loss_dtype
from ..options import label, number, one_of, optional, options
from .reduce import REDUCTIONS, reduce_rows


@options(ignore_index=optional(label), reduction=one_of(*REDUCTIONS))
def center_loss(
    embeddings: Tensor, centers: Tensor, target: Tensor, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Center loss: half the squared distance of every row to the center of its class.

    ```math
    \ell_i = \tfrac12 \|x_i - c_{y_i}\|^2
    ```

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        centers: [C, D], one row per class.
        target: [N], class indices of any integer dtype.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0. None:
            every target is a class.
        reduction: "mean" over the rows that count, "sum" (the paper's), or "none" ([N], 0 for rows that do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). It is 0 if no row counts. The centers receive
            a gradient; the paper updates them by a rule of its own instead.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    (embeddings - centers[target]).square().sum(1).mean() / 2
    ```

    Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016.

    Examples:
        >>> center_loss(torch.eye(2), torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor(0.5000)
    """
    return _to_centers(*_classified(embeddings, centers, target, ignore_index), reduction)


def _classified(
    embeddings: object, centers: object, target: object, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The checked rows (zeros where they are ignored), the centers, and the index of every row's class."""
    names = ("embeddings", "centers")
    x, c = checks.unrounded(names, (embeddings, centers))
    checks.comparable(names[0], x, names[1], c)
    x, index = checks.with_classes(x, target, c.shape[0], ignore_index)
    return x, c, index


def _to_centers(x: Tensor, c: Tensor, index: Tensor, reduction: str) -> Tensor:
    """Half the squared distances of the rows to their centers, computed as those of mined pairs."""
    if ops.closes(x, reduction):
        return ops.to_centers(x, c, index, reduction)
    mined = torch.stack([index, torch.full_like(index, -1)])
    classes = torch.arange(c.shape[0], device=c.device, dtype=torch.int64)
    d = ops.mined_distances(checks.Batch(x, c, index, classes, None), mined, "sqeuclidean")[0]
    return reduce_rows(d / 2, reduction, index, x)


@options(weight=number(), ignore_index=optional(label), reduction=one_of(*REDUCTIONS))
def island_loss(
    embeddings: Tensor, centers: Tensor, target: Tensor, *, weight: float = 10.0, ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Island loss: center loss plus a term that keeps the directions of the centers apart.

    ```math
    \ell = \frac1N \sum_i \tfrac12 \|x_i - c_{y_i}\|^2 + \lambda \sum_{j \ne k} (\cos(c_j, c_k) + 1)
    ```

    The sum over the pairs of centers is the squared length of the sum of their directions, so it takes O(C D) time.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        centers: [C, D], one row per class; norms are clamped to at least 1e-8.
        target: [N], class indices of any integer dtype.
        weight: lambda, at least 0.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0. None:
            every target is a class.
        reduction: how the first sum is reduced: "mean", "sum" (the paper's), or "none" ([N], with the second sum added
            to every value).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). If no row counts, only the
            second sum is left.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    cos = F.normalize(centers) @ F.normalize(centers).T
    center_loss(embeddings, centers, target) + weight * (cos + 1).fill_diagonal_(0).sum()
    ```

    Source: Cai et al., "Island Loss for Learning Discriminative Features in Facial Expression Recognition", FG 2018.

    Examples:
        >>> island_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), weight=1.0)
        tensor(2.)
    """
    x, c, index = _classified(embeddings, centers, target, ignore_index)
    C = c.shape[0]
    own = c.to(loss_dtype(c), copy=True, memory_format=torch.contiguous_format)  # gradients add up in one order
    directions = F.normalize(own, eps=1e-8)
    apart = directions.sum(0).square().sum() - directions.square().sum() + C * (C - 1)
    return _to_centers(x, c, index, reduction) + weight * apart
