"""Hinge losses of all pairs of a batch: positives within a margin, negatives beyond one."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, groups, ops
from ..checks import METRICS
from ..options import integer, label, learnable, learnables, one_of, optional, options
from . import closings
from .closings import closed
from .reduce import OF_HINGES, pairs


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), pos_margin=learnable(), neg_margin=learnable(),
    metric=one_of(*METRICS), power=one_of(1, 2), reduction=one_of(*OF_HINGES),
)  # fmt: skip
def pairwise_contrastive_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, pos_margin: float | Tensor = 0.0,
    neg_margin: float | Tensor = 1.0, metric: str = "euclidean", power: int = 2, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Contrastive loss over all pairs of a batch, or of a batch with a reference set, without the distance matrix.

    ```math
    \ell_{ij} = c \max(0, d_{ij} - m_+)^p \text{ if } y_i = y_j, \text{ else } c \max(0, m_- - d_{ij})^p
    ```

    with c = 1/2 for p = 2 and c = 1 for p = 1. Memory is O((N + M) D).

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], any integer dtype or bool; pairs with equal labels are positive, all others negative.
        ref_embeddings: [M, D], another set to compare with (a memory bank, a gathered batch). None: the batch is
            compared with itself, without the pairs (i, i).
        ref_labels: [M], the labels of `ref_embeddings`.
        ref_offset: row i of `embeddings` is also row ref_offset + i of `ref_embeddings` (a gathered batch, a memory
            bank), and the two are not paired. None: no row is in both.
        ignore_index: rows of either side with this label (padding, rows without a label) are in no pair and count in no
            mean, whatever values they have; their gradient is 0. None: every label is a class.
        pos_margin: the distance above which a positive pair costs something; a tensor of one element receives its
            gradient.
        neg_margin: the distance below which a negative pair costs something; a tensor of one element receives its
            gradient.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos) or "manhattan".
        power: p, 2 or 1.
        reduction: "mean" over all valid ordered pairs; "active": the mean over the non-zero positive terms plus the
            mean over the non-zero negative terms; "sum"; "none" ([N], the sum of each anchor's terms).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without any pair it is 0 with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to (euclidean distances, without references):

    ```python
    d = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    terms = torch.where(same, F.relu(d - pos_margin), F.relu(neg_margin - d)) ** 2 / 2
    terms.fill_diagonal_(0).sum() / (N * (N - 1))
    ```

    `ContrastiveLoss` of pytorch-metric-learning is this loss with power=1 and reduction="active" of normalised
    embeddings.

    Source: Hadsell, Chopra, LeCun, CVPR 2006; margins on both sides as in Wu et al., "Sampling Matters in Deep
    Embedding Learning", ICCV 2017.

    Examples:
        >>> x = torch.tensor([[0.0], [0.5], [3.0]])
        >>> pairwise_contrastive_loss(x, torch.tensor([0, 1, 1]), reduction="none")
        tensor([0.1250, 3.2500, 3.1250])

        A mean in which rows have weights:

        >>> w = torch.tensor([1.0, 0.0, 2.0])
        >>> (w * pairwise_contrastive_loss(x, torch.tensor([0, 1, 1]), reduction="none")).sum() / w.sum()
        tensor(2.1250)

        Labels of a hierarchy, here classes and kinds within them, as a weighted sum over the levels:

        >>> classes, kinds = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
        >>> sum(w * pairwise_contrastive_loss(x, labels) for w, labels in ((0.3, classes), (0.7, kinds)))
        tensor(0.0417)
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)

    loss = "contrastive" if power == 2 else "linear_contrastive"
    folds = ["sum", "sum"] if reduction == "active" else ["sum"]  # the terms, and whether they are active
    pos, neg = ops.of(*folds, margin=pos_margin), ops.of(*folds, margin=neg_margin)
    closing = closings.active_by_kind if reduction == "active" else closings.sums
    return closed(batch, loss, metric, closing, reduction, pairs(batch), pos=pos, neg=neg)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), margin=learnable(), beta=learnables(),
    metric=one_of(*METRICS), reduction=one_of(*OF_HINGES),
)  # fmt: skip
def margin_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, margin: float | Tensor = 0.2,
    beta: float | Tensor = 1.2, metric: str = "euclidean", reduction: str = "active",
) -> Tensor:  # fmt: skip
    r"""Margin loss: positives ought to be within a boundary and negatives beyond it, both by a margin.

    ```math
    \ell_{ij} = \max(0, d_{ij} - \beta_i + m) \text{ if } y_i = y_j, \text{ else } \max(0, \beta_i + m - d_{ij})
    ```

    The boundary may be learned. Memory is O((N + M) D). Arguments that are not listed are those of
    `pairwise_contrastive_loss`.

    Args:
        margin: m, on either side of the boundary; a tensor of one element receives its gradient.
        beta: the boundary, a distance. A tensor of one element receives its gradient. So does a tensor [C] with one
            boundary per label; labels are then from 0 to C - 1, and an anchor has the boundary of its label:

            ```python
            beta = torch.nn.Parameter(torch.full([num_classes], 1.2))
            loss = margin_loss(F.normalize(x), labels, beta=beta) + nu * beta.mean()
            ```

        reduction: "active": the mean over all terms above 0, of both kinds together; "mean" over all valid ordered
            pairs; "sum"; "none" ([N], the sum of each anchor's terms).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without any such term it is 0 with zero
            gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. With one beta per label, a
            label out of range is an error on a CPU only: on a GPU, where the check would wait for the device, the loss
            of such an anchor is NaN.

    Equivalent to (euclidean distances, without references):

    ```python
    d = torch.cdist(embeddings, embeddings)
    terms = F.relu(torch.where(same, d - beta + margin, beta + margin - d)).fill_diagonal_(0)
    terms.sum() / (terms > 0).sum()
    ```

    `MarginLoss` of pytorch-metric-learning counts a pair once for every triplet that it is in.

    Source: Wu, Manmatha, Smola, Kraehenbuehl, "Sampling Matters in Deep Embedding Learning", ICCV 2017.

    Examples:
        >>> x, labels = torch.tensor([[0.0], [1.5], [1.0]]), torch.tensor([0, 0, 1])
        >>> margin_loss(x, labels, reduction="none")
        tensor([0.9000, 1.4000, 1.3000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    boundary, offsets = beta, None
    if isinstance(beta, Tensor) and beta.dim() == 1:
        boundary, offsets = 0.0, -_of_labels("beta", beta, batch, ignore_index)
    folds = ["sum", "sum"] if reduction == "active" else ["sum"]  # the terms, and whether they are active
    pos, neg = (ops.of(*folds, margin=boundary + m) for m in (-margin, margin))
    return closed(
        batch, "linear_contrastive", metric, closings.active if reduction == "active" else closings.sums, reduction,
        pairs(batch), pos=pos, neg=neg, offsets=offsets, offsets_of="rows",
    )  # fmt: skip


def _of_labels(name: str, values: Tensor, batch: checks.Batch, ignore_index: int | None) -> Tensor:
    """For every anchor, the value at its label; NaN where the label is not an index of the values. [N]"""
    values = checks.of_each(name, values, "class", values.shape[0], batch.x, constant=False)
    group = groups.current()
    values = values if group is None else group.replicated(values)
    given = batch.x_labels
    index = checks.class_indices("labels", given, given.shape, values.shape[0], batch.x, ignore_index)
    return values[index.clamp(min=0)].masked_fill(index == checks.WRONG, torch.nan)
