"""Softmax losses of a batch: every pair is a logit, and a row's positives compete with its negatives.

A loss is softplus(log sum exp of the negatives - a positive), which is exact however small it is, at least 0, and has
no 1 - p in its gradient. Losses of two towers are in `towers`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import checks, groups, ops
from ..checks import SIMILARITIES, Batch
from ..options import integer, label, learnable, number, one_of, optional, options
from . import closings
from .closings import closed
from .reduce import REDUCTIONS, Folding, mean_shares, reduce, similarity


@options(temperature=learnable(above=True), reduction=one_of(*REDUCTIONS))
def nt_xent_loss(z1: Tensor, z2: Tensor, *, temperature: float | Tensor = 0.5, reduction: str = "mean") -> Tensor:
    r"""NT-Xent, the loss of SimCLR: each of 2N views finds the other view of its sample among all other views.

    ```math
    \ell_i = -\log \frac{e^{\cos(z_i, z_{p(i)})/\tau}}{\sum_{j \ne i} e^{\cos(z_i, z_j)/\tau}}
    ```

    Args:
        z1: [N, D], one view of every sample; float16, bfloat16, float32 or float64.
        z2: [N, D], another view of the same samples, in the same order.
        temperature: above 0; a tensor of one element receives its gradient.
        reduction: "mean" over the 2N views, "sum", or "none" ([2N]: the views of z1, then those of z2).

    Returns:
        A scalar, or [2N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    z = F.normalize(torch.cat([z1, z2]))
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    F.cross_entropy(logits, torch.arange(2 * N).roll(N))
    ```

    Source: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning", ICML 2020.

    Examples:
        >>> z = torch.eye(2)
        >>> nt_xent_loss(z, z, temperature=1.0)
        tensor(0.5514)
    """
    first, second = checks.same_rows(("z1", "z2"), (z1, z2))
    z = torch.stack([first, second], 1).flatten(0, 1)  # views of a sample are neighbours, so that labels ascend
    own = 2 * groups.first_row()
    labels = torch.arange(own, own + z.shape[0], device=z.device, dtype=torch.int64) // 2
    scale = 1 / temperature
    batch = Batch(z, None, labels, labels, 0, x_sorted=True, shared=2)
    pos, neg = ops.of("sum", scale=scale), ops.of("lse", scale=scale)
    loss = closed(batch, "softmax", "similarity", closings.gap, reduction, z.shape[0], pos=pos, neg=neg)
    return loss.view(-1, 2).t().flatten() if reduction == "none" else loss


@options(temperature=learnable(above=True), sigma=optional(number(above=True)), reduction=one_of(*REDUCTIONS))
def decoupled_contrastive_loss(
    z1: Tensor, z2: Tensor, *, temperature: float | Tensor = 0.1, sigma: float | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Decoupled contrastive loss: NT-Xent whose positive is not in the denominator, so that small batches learn too.

    ```math
    \ell_i = -w_i \frac{s_{ip}}{\tau} + \log \sum_{j \in \text{own view}} e^{s_{ij}/\tau}
       + \log \sum_{j \in \text{other view}} e^{s_{ij}/\tau}
    ```

    with s the cosine, p the other view of sample i, and sums over the views of all other samples. Memory is O(N D).

    Args:
        z1: [N, D], one view of every sample; float16, bfloat16, float32 or float64.
        z2: [N, D], another view of the same samples, in the same order.
        temperature: above 0; a tensor of one element receives its gradient.
        sigma: None: w = 1. A number above 0: pairs that are already alike pull less, by the von Mises-Fisher weight
            w = 2 - N softmax(s / sigma) over the samples of the batch, through which no gradient flows.
        reduction: "mean" over the 2N views, "sum", or "none" ([2N]: the views of z1, then those of z2).

    Returns:
        A scalar, or [2N] for "none"; float32 (float64 for float64 inputs). It may be negative. N = 0 gives 0, and so
            does N = 1, which has no negatives.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    x, y = F.normalize(z1), F.normalize(z2)
    own, across = (s.fill_diagonal_(-torch.inf) / temperature for s in (x @ x.T, x @ y.T))
    terms = -(x * y).sum(1) / temperature + own.logsumexp(1) + across.logsumexp(1)  # of z1; z2's count too
    ```

    It equals `DCLLoss` and, with `sigma`, `DCLWLoss` of lightly up to version 1.5.20, which added the logarithms of the
    two sums. The paper and later versions take the logarithm of one sum over both views, and so does
    `fusedloss.compat.lightly`.

    Source: Yeh et al., "Decoupled Contrastive Learning", ECCV 2022.

    Examples:
        >>> z = torch.eye(2)
        >>> decoupled_contrastive_loss(z, z, temperature=1.0)
        tensor(-1.)
    """
    x, y = checks.same_rows(("z1", "z2"), (z1, z2))
    first = groups.first_row()
    rows = torch.arange(first, first + x.shape[0], device=x.device, dtype=torch.int64)
    scale = 1 / temperature
    pos, neg = ops.of("sum", scale=scale), ops.of("lse", scale=scale)
    views = Batch(x, y, rows, rows, None, x_sorted=True, y_sorted=True, shared=1)
    positive, across = ops.fold(views, "softmax", "similarity", pos=pos, neg=neg, columns=True)
    alone = (Batch(z, None, rows, rows, 0, x_sorted=True, shared=1) for z in (x, y))
    own = [ops.fold(view, "softmax", "similarity", neg=neg)[0] for view in alone]
    if sigma is not None:
        cos = positive[: x.shape[0]].detach() * temperature
        positive = positive * (2 - mean_shares(cos / sigma)).detach().repeat(2)
    lonely = across == -torch.inf
    terms = torch.where(lonely, 0.0, (across + torch.cat(own)).masked_fill(lonely, 0.0) - positive)
    return reduce(terms, reduction, terms.shape[0], x)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), temperature=learnable(above=True),
    metric=one_of(*SIMILARITIES), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def supcon_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, temperature: float | Tensor = 0.1,
    metric: str = "cosine", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Supervised contrastive loss (L_out): an anchor's positives share the softmax over all other rows.

    ```math
    \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip}/\tau}}{\sum_{a \ne i} e^{s_{ia}/\tau}}
    ```

    Memory is O((N + M) D).

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], any integer dtype or bool; rows with equal labels are positive pairs.
        ref_embeddings: [M, D], the set to compare with. None: the batch itself, without the pairs (i, i).
        ref_labels: [M], the labels of `ref_embeddings`.
        ref_offset: row i of `embeddings` is also row ref_offset + i of `ref_embeddings` (a gathered batch, a memory
            bank), and the two are not paired. None: no row is in both.
        ignore_index: rows of either side with this label (padding, rows without a label) are in no pair and count in no
            mean, whatever values they have; their gradient is 0. None: every label is a class.
        temperature: above 0; a tensor of one element receives its gradient.
        metric: the similarity s: "cosine" (norms are clamped to at least 1e-8), "dot", or the negative of a distance,
            "euclidean", "sqeuclidean" or "manhattan".
        reduction: "mean" over the anchors that have a positive, "sum", or "none" ([N], 0 for anchors that have none).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. Without any positive pair it is 0
            with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    x = F.normalize(embeddings)
    log_p = (x @ x.T / temperature).fill_diagonal_(-torch.inf).log_softmax(1)
    same = (labels[:, None] == labels) & ~eye
    (-log_p.where(same, 0).sum(1) / same.sum(1)).mean()
    ```

    It equals `SupConLoss` of pytorch-metric-learning, except that the library's mean runs over the values above 0.
    Losses that other code offers separately are a matter of the labels:

    ```python
    # Views as in SupContrast, features [batch, views, D] with one label per sample:
    supcon_loss(features.flatten(0, 1), labels.repeat_interleave(features.shape[1]))
    # Several captions per image, in both directions: text_ids [M] are the ids of the captions' images.
    supcon_loss(images, ids, texts, text_ids) / 2 + supcon_loss(texts, text_ids, images, ids) / 2
    # Labels on several levels, from coarse to fine, [N] each:
    sum(weight * supcon_loss(x, level) for weight, level in zip(weights, levels))
    # Weights of samples:
    terms = supcon_loss(x, labels, reduction="none")
    (weights * terms).sum() / weights.sum()
    ```

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> supcon_loss(x, labels, temperature=1.0, reduction="none")
        tensor([0.3133, 0.3133, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, sign = similarity(metric)
    return closed(batch, "softmax", score, closings.supcon, reduction, None, **supcon_folds(sign / temperature))


def supcon_folds(scale: float | Tensor) -> dict[str, Any]:
    return {"pos": ops.of("sum", "lse", "sum", scale=scale), "neg": ops.of("lse", scale=scale)}


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), temperature=learnable(above=True),
    metric=one_of(*SIMILARITIES), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def pairwise_nt_xent_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, temperature: float | Tensor = 0.07,
    metric: str = "cosine", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""NT-Xent by labels: every positive pair competes with the negatives of its anchor, not with other positives.

    ```math
    \ell_{ip} = -\log \frac{e^{s_{ip}/\tau}}{e^{s_{ip}/\tau} + \sum_{n} e^{s_{in}/\tau}}
    ```

    In `supcon_loss` the positives of an anchor compete with each other too; here each competes with negatives alone.
    Memory is O((N + M) D), with any number of positives. Arguments that are not listed are those of `supcon_loss`.

    Args:
        temperature: above 0; a tensor of one element receives its gradient.
        reduction: "mean" over the positive pairs, "sum", or "none" ([N], the sum of each anchor's pairs).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. Without any positive pair, or
            without any negative, it is 0 with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    s = F.normalize(embeddings) @ F.normalize(embeddings).T / temperature
    against = s.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    F.softplus(against - s)[same & ~eye].mean()
    ```

    It equals `NTXentLoss` of pytorch-metric-learning where that does not saturate: the library's value is at most -log
    of the smallest float, 87 in float32 and 9.7 in float16, and its gradient is 0 there.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016; the name is from
    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning", ICML 2020.

    Examples:
        >>> x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> pairwise_nt_xent_loss(x, labels, temperature=1.0, reduction="none")
        tensor([0.3133, 0.3133, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, sign = similarity(metric)
    scale = sign / temperature
    terms, count = nt_xent_sums(partial(ops.fold, batch, metric=score), scale)
    return reduce(terms, reduction, count.sum(), batch.x)


def nt_xent_sums(fold: Folding, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """The sum over every anchor's positive pairs, and the number of these pairs. [N] each"""
    (negative,) = fold("softmax", neg=ops.of("lse", scale=scale))
    against = negative.clamp(min=-1e30)  # without negatives it is -inf, with which slopes of 0 would be NaN
    pairs = ops.of("sum", "sum", scale=-scale)  # log(1 + exp(against - scale s)), and 1 per pair
    terms, count = fold("sigmoid", pos=pairs, offsets=-against / scale, offsets_of="rows")
    return terms, count.detach()


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), temperature=learnable(above=True),
    metric=one_of(*SIMILARITIES), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def nca_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, temperature: float | Tensor = 1.0,
    metric: str = "sqeuclidean", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Neighbourhood components analysis: the chance that an anchor's neighbour, drawn by a softmax, is a positive.

    ```math
    \ell_i = -\log \frac{\sum_p e^{s_{ip}/\tau}}{\sum_{j \ne i} e^{s_{ij}/\tau}}, \quad s_{ij} = -\|x_i - x_j\|^2
    ```

    or with another similarity s. One near positive is enough: others may be far. Memory is O((N + M) D). Arguments that
    are not listed are those of `supcon_loss`.

    Args:
        temperature: above 0; a tensor of one element receives its gradient.
        reduction: "mean" over the anchors that have a positive, "sum", or "none" ([N], 0 for anchors that have none).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. Without any positive pair it is 0
            with zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    s = -torch.cdist(embeddings, embeddings).square() / temperature
    s = s.fill_diagonal_(-torch.inf)
    (s.logsumexp(1) - s.masked_fill(~same, -torch.inf).logsumexp(1)).mean()
    ```

    It equals `NCALoss(softmax_scale=1 / temperature)` of pytorch-metric-learning for embeddings of length 1, to which
    the library's default distance scales them. The library leaves out rows whose chance is below the smallest float.

    Source: Goldberger, Roweis, Hinton, Salakhutdinov, "Neighbourhood Components Analysis", NeurIPS 2004.

    Examples:
        >>> x, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])
        >>> nca_loss(x, labels, reduction="none")
        tensor([0.0486, 0.6931, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    score, sign = similarity(metric)
    return closed(batch, "softmax", score, closings.nca, reduction, None, **nca_folds(sign / temperature))


def nca_folds(scale: float | Tensor) -> dict[str, Any]:
    return {"pos": ops.of("lse", "sum", "sum", scale=scale), "neg": ops.of("lse", scale=scale)}
