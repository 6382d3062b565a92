"""Losses of the ranks of an anchor's positives: smooth average precision and recall at k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import checks, ops
from ..checks import SIMILARITIES
from ..options import integer, label, number, one_of, optional, options, ranks
from .reduce import REDUCTIONS, reduce, similarity


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), temperature=number(above=True),
    metric=one_of(*SIMILARITIES), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def smooth_ap_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, temperature: float = 0.01, metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Smooth-AP: 1 - the average precision of each anchor's positives among all other rows, made differentiable.

    ```math
    \ell_i = 1 - \frac1{|P_i|} \sum_{p \in P_i} \frac{R^+(p)}{R(p)}, \quad
       R(p) = 1 + \sum_{j \ne p, i} \sigma\Bigl(\frac{s_{ij} - s_{ip}}{\tau}\Bigr)
    ```

    R(p) is the rank of positive p by its similarity to the anchor, smoothed by the temperature tau, and R+(p) is its
    rank among the positives alone. The loss works best with batches of thousands of rows, each of which is a query.
    Written densely it takes O(N^3) memory; here it takes O((N + M) D), whatever the sizes of the classes.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], any integer dtype or bool; rows with equal labels are positive pairs, all others negative.
        ref_embeddings: [M, D], the set to rank. None: the batch itself, without the pairs (i, i).
        ref_labels: [M], the labels of `ref_embeddings`.
        ref_offset: row i of `embeddings` is also row ref_offset + i of `ref_embeddings` (a gathered batch, a memory
            bank), and the two are not paired. None: no row is in both.
        ignore_index: rows of either side with this label (padding, rows without a label) are in no pair and count in no
            mean, whatever values they have; their gradient is 0. None: every label is a class.
        temperature: tau, above 0. The smaller it is, the closer the loss is to 1 - average precision, and the fewer
            pairs (those of about equal similarity) have a gradient.
        metric: the similarity s: "cosine" (norms are clamped to at least 1e-8), "dot", or the negative of a distance,
            "euclidean", "sqeuclidean" or "manhattan".
        reduction: "mean" over the anchors that have a positive, "sum", or "none" ([N], 0 for anchors that have none).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), between 0 and 1 for an anchor. Without any
            positive pair it is 0 with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to (without references):

    ```python
    x = F.normalize(embeddings)
    s = x @ x.T
    same = labels[:, None] == labels
    above = ((s[:, None] - s[:, :, None]) / temperature).sigmoid()  # [i, p, j]
    above = above.masked_fill(eye[None] | eye[:, None], 0)
    rank = 1 + above.sum(2)
    among_positives = 1 + above.where(same[:, None], 0).sum(2)
    precision = (among_positives / rank).where(same & ~eye, 0)
    (1 - precision.sum(1) / (same & ~eye).sum(1)).mean()
    ```

    The authors' code and `SmoothAPLoss` of pytorch-metric-learning count every anchor among its own positives, which
    is `smooth_ap_loss(x, labels, x, labels)` here. Both need classes of equal size, one after the other.

    Source: Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV
    2020.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]), torch.tensor([0, 0, 1])
        >>> smooth_ap_loss(x, labels, reduction="none")
        tensor([0.5000, 0.5000, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, sign = similarity(metric)
    total, count = ops.rank(batch, score, sign / temperature, "imprecision")
    return _mean_of_anchors(total / count.detach().clamp(min=1), count, reduction, batch.x)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), k=ranks, temperature=number(above=True),
    k_temperature=number(above=True), metric=one_of(*SIMILARITIES), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def recall_at_k_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, k: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: float = 0.01, k_temperature: float = 1.0, metric: str = "cosine", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Recall@k surrogate: 1 - the share of each anchor's positives among its k nearest rows, made differentiable.

    ```math
    \ell_i = 1 - \frac1{|K|} \sum_{k \in K} \frac{\min\bigl(k, \sum_{p \in P_i}
       \sigma\bigl((k - R(p)) / \tau_k\bigr)\bigr)}{\min(k, |P_i|)}
    ```

    with R(p) the smoothed rank of positive p among all other rows, as in `smooth_ap_loss`. The loss works best with
    batches of thousands of rows, each of which is a query. Written densely it takes O(N^3) memory; here it takes
    O((N + M) D), whatever the sizes of the classes. Arguments that are not listed are those of `smooth_ap_loss`.

    Args:
        k: K, distinct numbers of nearest rows, each at least 1; the recalls are averaged over them.
        temperature: tau, which smooths the ranks, above 0.
        k_temperature: tau_k, which smooths the comparison of a rank with k, above 0. A positive at place k has rank k
            and counts as a half.
        reduction: "mean" over the anchors that have a positive, "sum", or "none" ([N], 0 for anchors that have none).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), between 0 and 1 for an anchor. Without any
            positive pair it is 0 with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to (without references):

    ```python
    x = F.normalize(embeddings)
    s = x @ x.T
    pos = (labels[:, None] == labels) & ~eye
    above = ((s[:, None] - s[:, :, None]) / temperature).sigmoid()  # [i, p, j]
    rank = 1 + above.masked_fill(eye[None] | eye[:, None], 0).sum(2)
    found = [((n - rank) / k_temperature).sigmoid().where(pos, 0).sum(1).clamp(max=n) for n in k]
    recall = [f / pos.sum(1).clamp(max=n) for n, f in zip(k, found)]
    (1 - torch.stack(recall).mean(0)).mean()
    ```

    The authors' code also ranks the anchor itself, above all others, so that its k is ours plus 1.

    Source: Patel, Tolias, Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]), torch.tensor([0, 0, 1])
        >>> recall_at_k_loss(x, labels, k=(1, 2), k_temperature=0.1, reduction="none")
        tensor([0.7500, 0.7500, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, sign = similarity(metric)
    numbers = [k_temperature, *(float(n) for n in k)]
    *found, count = ops.rank(batch, score, sign / temperature, "recall", numbers)
    recalls = [f.clamp(max=n) / count.detach().clamp(min=1, max=n) for n, f in zip(k, found, strict=True)]
    return _mean_of_anchors(1 - torch.stack(recalls).mean(0), count, reduction, batch.x)


def _mean_of_anchors(terms: Tensor, positives: Tensor, reduction: str, x: Tensor) -> Tensor:
    """The reduced loss of the anchors that have a positive."""
    counts = positives.detach() > 0
    return reduce(torch.where(counts, terms, 0.0), reduction, counts.sum(), x)
