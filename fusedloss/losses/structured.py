"""Losses that weigh the pairs of a batch against each other: multi-similarity, circle, lifted structure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import checks, groups, ops
from ..options import flag, integer, label, number, one_of, optional, options
from . import closings
from .closings import closed
from .reduce import OF_HINGES, REDUCTIONS, reduce, similarity

PRODUCTS = ("cosine", "dot")  # the metrics of losses whose margins are similarities


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), alpha=number(above=True), beta=number(above=True),
    base=number(low=-float("inf")), metric=one_of(*PRODUCTS), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def multi_similarity_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, alpha: float = 2.0, beta: float = 50.0,
    base: float = 0.5, metric: str = "cosine", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Multi-similarity loss: positives below and negatives above a base similarity cost something, the worst the most.

    ```math
    \ell_i = \tfrac1\alpha \log\Bigl(1 + \sum_{p} e^{-\alpha (s_{ip} - b)}\Bigr)
       + \tfrac1\beta \log\Bigl(1 + \sum_{n} e^{\beta (s_{in} - b)}\Bigr)
    ```

    Memory is O((N + M) D).

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], any integer dtype or bool; rows with equal labels are positive pairs, all others negative.
        ref_embeddings: [M, D], the set to compare with. None: the batch itself, without the pairs (i, i).
        ref_labels: [M], the labels of `ref_embeddings`.
        ref_offset: row i of `embeddings` is also row ref_offset + i of `ref_embeddings` (a gathered batch, a memory
            bank), and the two are not paired. None: no row is in both.
        ignore_index: rows of either side with this label (padding, rows without a label) are in no pair and count in no
            mean, whatever values they have; their gradient is 0. None: every label is a class.
        alpha: the sharpness for positives, above 0.
        beta: the sharpness for negatives, above 0.
        base: b, the similarity that separates positives from negatives.
        metric: the similarity s, "cosine" (norms are clamped to at least 1e-8) or "dot".
        reduction: "mean" over all anchors, "sum", or "none" (one value per anchor).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). An anchor without a pair counts as 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    s = F.normalize(embeddings) @ F.normalize(embeddings).T
    pull = (-alpha * (s - base)).exp().where(same & ~eye, 0).sum(1).log1p() / alpha
    push = (beta * (s - base)).exp().where(~same, 0).sum(1).log1p() / beta
    (pull + push).mean()
    ```

    It equals `MultiSimilarityLoss` of pytorch-metric-learning (without its miner).

    Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]]), torch.tensor([0, 0, 1])
        >>> multi_similarity_loss(x, labels, beta=2.0, reduction="none")
        tensor([0.5557, 0.5557, 0.6181])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, sign = similarity(metric)
    folds = multi_similarity_folds(sign * alpha, sign * beta, base)
    constants = alpha, beta
    return closed(
        batch, "softmax", score, closings.multi_similarity, reduction, batch.anchors, constants=constants, **folds
    )


def multi_similarity_folds(alpha: float, beta: float, base: float) -> dict[str, Any]:
    """Pass alpha and beta below 0 if the scores are distances."""
    pos, neg = ops.of("lse", scale=-alpha, bias=alpha * base), ops.of("lse", scale=beta, bias=-beta * base)
    return {"pos": pos, "neg": neg}


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), margin=number(), gamma=number(above=True),
    metric=one_of(*PRODUCTS), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def circle_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, margin: float = 0.4, gamma: float = 80.0,
    metric: str = "cosine", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Circle loss: every similarity is weighted by its distance from the optimum.

    ```math
    \ell_i = \log\Bigl(1 + \sum_{n} e^{\gamma [s_{in} + m]_+ (s_{in} - m)}
       \sum_{p} e^{-\gamma [1 + m - s_{ip}]_+ (s_{ip} - 1 + m)}\Bigr)
    ```

    No gradient flows through the weights in brackets. Memory is O((N + M) D). Arguments that are not listed are those
    of `multi_similarity_loss`.

    Args:
        margin: m, the relaxation.
        gamma: the scale, above 0.
        reduction: "mean" over the anchors that have both kinds of pairs and a value above 0, "sum", or "none" ([N], 0
            for an anchor without a positive or without a negative).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without such an anchor it is 0 with zero
            gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    s = F.normalize(embeddings) @ F.normalize(embeddings).T
    pull = -gamma * F.relu(1 + margin - s.detach()) * (s - (1 - margin))
    push = gamma * F.relu(s.detach() + margin) * (s - margin)
    F.softplus(pull.where(same & ~eye, -inf).logsumexp(1) + push.where(~same, -inf).logsumexp(1)).mean()
    ```

    It equals `CircleLoss` of pytorch-metric-learning.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]]), torch.tensor([0, 0, 1])
        >>> circle_loss(x, labels, gamma=1.0, reduction="none")
        tensor([0.7133, 0.7133, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, folds = similarity(metric)[0], circle_folds(margin, gamma)
    return closed(batch, "circle", score, closings.circle, reduction, None, **folds)


def circle_folds(margin: float, gamma: float) -> dict[str, Any]:
    """Without a positive or without a negative a log sum exp is -inf, which costs nothing."""
    folded = ops.of("lse", margin=margin, gamma=gamma)
    return {"pos": folded, "neg": folded}


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), neg_margin=number(), pos_margin=number(),
    normalize=flag, reduction=one_of(*OF_HINGES),
)  # fmt: skip
def generalized_lifted_structure_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, neg_margin: float = 1.0, pos_margin: float = 0.0,
    normalize: bool = True, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Generalised lifted structure loss: an anchor's farthest positives against its nearest negatives, both smooth.

    ```math
    \ell_i = \Bigl[\log \sum_{p} e^{d_{ip} - m_+} + \log \sum_{n} e^{m_- - d_{in}}\Bigr]_+
    ```

    with d the euclidean distance. Where an anchor has no positive, or no negative, that logarithm is taken as 0. Memory
    is O((N + M) D). Arguments that are not listed are those of `multi_similarity_loss`.

    Args:
        neg_margin: m_-, from which the distances of negatives are subtracted.
        pos_margin: m_+, which is subtracted from the distances of positives.
        normalize: whether to scale the rows to length 1 first.
        reduction: "mean" over all anchors, "active" (the mean over the anchors whose value is above 0), "sum", or
            "none" (one value per anchor).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    d = torch.cdist(F.normalize(embeddings), F.normalize(embeddings))
    pull = (d - pos_margin).where(same & ~eye, -inf).logsumexp(1)
    push = (neg_margin - d).where(~same, -inf).logsumexp(1)
    F.relu(pull + push).mean()
    ```

    It equals `GeneralizedLiftedStructureLoss` of pytorch-metric-learning.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> generalized_lifted_structure_loss(x, labels, reduction="none")
        tensor([1.5858, 1.5858, 0.2789])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    metric = "chord" if normalize else "euclidean"
    folds = generalized_lifted_folds(1.0, pos_margin, neg_margin)
    return closed(batch, "softmax", metric, closings.lifted, reduction, batch.anchors, **folds)


def generalized_lifted_folds(sign: float, pos_margin: float, neg_margin: float) -> dict[str, Any]:
    """The sign is -1 if the scores are similarities."""
    pos, neg = ops.of("lse", scale=sign, bias=-sign * pos_margin), ops.of("lse", scale=-sign, bias=sign * neg_margin)
    return {"pos": pos, "neg": neg}


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), neg_margin=number(), pos_margin=number(),
    normalize=flag, reduction=one_of(*OF_HINGES),
)  # fmt: skip
def lifted_structure_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, neg_margin: float = 1.0, pos_margin: float = 0.0,
    normalize: bool = True, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Lifted structure loss: every positive pair competes with the negatives of both its rows.

    ```math
    \ell_{ij} = \tfrac12 \Bigl[\log\Bigl(\sum_{n} e^{m_- - d_{in}} + \sum_{n} e^{m_- - d_{jn}}\Bigr)
       + d_{ij} - m_+\Bigr]_+^2
    ```

    with d the euclidean distance. The sums over negatives are kept per row, so that no pairs x negatives tensor exists:
    memory is O((N + M) D). Arguments that are not listed are those of `generalized_lifted_structure_loss`.

    Args:
        ref_embeddings: [M, D], the set to compare with; the negatives of a reference are then the anchors with another
            label (pytorch-metric-learning takes the negatives of the anchor that has the reference's index). None: the
            batch itself, without the pairs (i, i). It must be None over a group of processes.
        ref_labels: [M], the labels of `ref_embeddings`.
        reduction: "mean" over the ordered positive pairs, "active" (the mean over those whose value is above 0),
            "sum", or "none" ([N]: the sum of each anchor's pairs).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without any positive pair, or without any
            negative, it is 0 with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    d = torch.cdist(F.normalize(embeddings), F.normalize(embeddings))
    push = (neg_margin - d).where(~same, -inf).logsumexp(1)
    F.relu(torch.logaddexp(push[:, None], push) + d - pos_margin)[same & ~eye].square().mean() / 2
    ```

    It equals `LiftedStructureLoss` of pytorch-metric-learning.

    Source: Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> lifted_structure_loss(x, labels, reduction="none")
        tensor([2.5968, 2.5968, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    if batch.y is not None and groups.current() is not None:
        raise ValueError(
            "ref_embeddings must be None over a group: the negatives of a reference are rows of all its processes"
        )
    metric = "chord" if normalize else "euclidean"
    terms, active, count = lifted_sums(batch, metric, pos_margin, neg_margin)
    return reduce(terms, reduction, count.sum(), batch.x, active)


def lifted_sums(
    batch: checks.Batch, metric: str, pos_margin: float, neg_margin: float
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """For every anchor, the sum over its positive pairs, the number above 0, and the number of pairs. [N] each"""
    neg = ops.of("lse", scale=-1.0, bias=neg_margin)
    (push,) = ops.fold(batch, "softmax", metric, neg=neg, columns=batch.y is not None)
    hinges = ops.of("sum", "sum", "sum", margin=pos_margin)  # half the square, whether it is active, and 1
    terms, active, count = ops.fold(batch, "contrastive", metric, pos=hinges, offsets=push, offsets_of="both")
    return terms, active, count.detach()
