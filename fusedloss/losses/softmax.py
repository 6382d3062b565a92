"""Softmax and sigmoid losses of a batch: every pair is a logit, and a row's positive competes with its negatives.

With one positive a row the loss is softplus(log sum exp of the negatives - the positive), which is exact however small
it is, at least 0, and has no 1 - p in its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, ops
from ..options import flag, integer, label, learnable, number, one_of, optional, options
from .reduce import REDUCTIONS, reduce, softplus


@options(
    temperature=learnable(above=True), normalize=flag, in_batch_negatives=flag, symmetric=flag, offset=integer(),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def info_nce_loss(
    query: Tensor, key: Tensor, negatives: Tensor | None = None, *,
    temperature: float | Tensor = 0.07, normalize: bool = True, in_batch_negatives: bool = True,
    symmetric: bool = False, offset: int = 0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""InfoNCE: every query finds its key among the other keys, a shared queue of negatives, or both.

    $$ \ell_i = -\log \frac{e^{s(q_i, k_i)/\tau}}{e^{s(q_i, k_i)/\tau} + \sum_{j \ne i} e^{s(q_i, k_j)/\tau}
       + \sum_m e^{s(q_i, n_m)/\tau}} $$

    with s the cosine, or the dot product if `normalize` is False. Memory is O((N + M + K) D).

    Args:
        query: [N, D], float16, bfloat16, float32 or float64.
        key: [N, D]; the positive of row i is key i. With `offset`, [M, D] with M >= N + offset.
        negatives: [K, D], negatives of every query: a queue (MoCo), hard negatives.
        temperature: above 0; a tensor of one element receives its gradient.
        normalize: cosines instead of dot products; norms are clamped to at least 1e-8.
        in_batch_negatives: whether the other keys are negatives. MoCo: False, with a queue.
        symmetric: the mean of this loss and that of every key finding its query among the queries. The queue belongs to
            the first of them.
        offset: the positive of row i is key i + offset: keys gathered from several processes.
        reduction: "mean" over the queries, "sum", or "none" (one value per query).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen.

    Equivalent to::

        logits = F.normalize(query) @ F.normalize(key).T / temperature
        F.cross_entropy(logits, torch.arange(N))

    pytorch-metric-learning's `NTXentLoss` saturates where the positive's share is below the smallest float; this does
    not.

    Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018; He et al.,
    "Momentum Contrast", CVPR 2020.

    >>> q = torch.eye(2)
    >>> info_nce_loss(q, q, temperature=1.0)
    tensor(0.3133)
    """
    q = checks.rows("query", query)
    k = checks.same_dimensions("query", q, "key", key)
    queue = None if negatives is None else checks.same_dimensions("query", q, "negatives", negatives)
    N, M = q.shape[0], k.shape[0]
    if N + offset > M or (symmetric and N != M):
        needed = f"{N} rows, one a query" if symmetric else f"{N + offset} rows or more (queries + offset)"
        raise ValueError(f"key must have the {needed}, got shape {tuple(k.shape)}")
    if not in_batch_negatives and queue is None:
        raise ValueError("negatives must be given where in_batch_negatives is False, got None")
    if not in_batch_negatives and symmetric:
        raise ValueError("symmetric must be False where in_batch_negatives is False, got True")

    scale = 1 / temperature
    metric = "similarity" if normalize else "dot"
    own = torch.arange(offset, offset + N, device=q.device, dtype=torch.int64)
    if in_batch_negatives:
        positive, negative = _competition(q, k, own, scale, metric, columns=symmetric)
    else:
        positive = scale * ops.row_distances(q, k[offset : offset + N], None, metric)[0]
    by_key = softplus(negative[N:] - positive[N:]) if symmetric else None
    if queue is not None:
        of_queue = _competition(q, queue, torch.full_like(own, -1), scale, metric)[1]
        negative = _log_add_exp(negative[:N], of_queue) if in_batch_negatives else of_queue
    by_query = softplus(negative[:N] - positive[:N])
    return reduce(by_query if by_key is None else (by_query + by_key) / 2, reduction, N, q)


def _competition(
    x: Tensor, y: Tensor, labels: Tensor, scale: float | Tensor, metric: str, columns: bool = False
) -> tuple[Tensor, ...]:
    """The positive logit of every x and log sum exp of its negatives; labels are rows of y, -1 for none."""
    rows = torch.arange(y.shape[0], device=y.device, dtype=torch.int64)
    batch = checks.Batch(x, y, labels, rows, None, x_sorted=True, y_sorted=True)
    pos, neg = ops.of("sum", scale=scale), ops.of("lse", scale=scale)
    return ops.fold(batch, "softmax", metric, pos=pos, neg=neg, columns=columns)


def _log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), with gradient 0 where both are -inf."""
    lowest = torch.finfo(a.dtype).min / 2
    return torch.logaddexp(a.clamp(min=lowest), b.clamp(min=lowest))


@options(temperature=learnable(above=True), reduction=one_of(*REDUCTIONS))
def nt_xent_loss(z1: Tensor, z2: Tensor, *, temperature: float | Tensor = 0.5, reduction: str = "mean") -> Tensor:
    r"""NT-Xent, the loss of SimCLR: each of 2N views finds the other view of its sample among all other views.

    $$ \ell_i = -\log \frac{e^{\cos(z_i, z_{p(i)})/\tau}}{\sum_{j \ne i} e^{\cos(z_i, z_j)/\tau}} $$

    Args:
        z1, z2: [N, D], two views of the same samples, row by row; float16, bfloat16, float32 or float64.
        temperature: above 0; a tensor of one element receives its gradient.
        reduction: "mean" over the 2N views, "sum", or "none" ([2N]: the views of z1, then those of z2).

    Returns:
        A scalar, or [2N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen.

    Equivalent to::

        z = F.normalize(torch.cat([z1, z2]))
        logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        F.cross_entropy(logits, torch.arange(2 * N).roll(N))

    Source: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning", ICML 2020.

    >>> z = torch.eye(2)
    >>> nt_xent_loss(z, z, temperature=1.0)
    tensor(0.5514)
    """
    first, second = checks.same_rows(("z1", "z2"), (z1, z2))
    z = torch.stack([first, second], 1).flatten(0, 1)  # both views of a sample side by side: their labels ascend
    labels = torch.arange(z.shape[0], device=z.device, dtype=torch.int64) // 2
    scale = 1 / temperature
    batch = checks.Batch(z, None, labels, labels, 0, x_sorted=True)
    pos, neg = ops.of("sum", scale=scale), ops.of("lse", scale=scale)
    positive, negative = ops.fold(batch, "softmax", "similarity", pos=pos, neg=neg)
    terms = softplus(negative - positive).view(-1, 2).t().flatten()
    return reduce(terms, reduction, z.shape[0], z)


@options(
    logit_scale=learnable(low=-torch.inf), logit_bias=optional(learnable(low=-torch.inf)),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def clip_loss(
    image: Tensor, text: Tensor, logit_scale: float | Tensor, *, logit_bias: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""CLIP: images find their texts and texts their images, in one pass over the scores where that pays.

    $$ \ell_i = -\tfrac12 \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
       - \tfrac12 \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}}, \quad z_{ij} = c \langle x_i, t_j \rangle + b $$

    Args:
        image, text: [N, D], float16, bfloat16, float32 or float64, already normalised, as open_clip's. Text i belongs
            to image i. The side of a tower that is not trained costs no gradient.
        logit_scale: c, the factor itself; a tensor of one element receives its gradient. open_clip learns its
            logarithm, so it is `model.logit_scale.exp()` there.
        logit_bias: b, which a softmax does not depend on: its gradient is 0.
        reduction: "mean" over the N pairs, "sum", or "none" (one value per pair).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen.

    Equivalent to::

        logits = logit_scale * image @ text.T
        (F.cross_entropy(logits, torch.arange(N)) + F.cross_entropy(logits.T, torch.arange(N))) / 2

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
    `ClipLoss` of open_clip.

    >>> x = torch.eye(2)
    >>> clip_loss(x, x, 1.0)
    tensor(0.3133)
    """
    x, y = checks.same_rows(("image", "text"), (image, text))
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int64)
    positive, negative = _competition(x, y, rows, logit_scale, "dot", columns=True)
    terms = softplus(negative - positive)  # of the images, then of the texts
    loss = reduce(terms.unflatten(0, (2, x.shape[0])).mean(0), reduction, x.shape[0], x)
    return loss + (0 * logit_bias).to(loss.dtype) if isinstance(logit_bias, Tensor) else loss


@options(logit_scale=learnable(low=-torch.inf), logit_bias=learnable(low=-torch.inf), reduction=one_of(*REDUCTIONS))
def siglip_loss(
    image: Tensor, text: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor, *, reduction: str = "mean"
) -> Tensor:
    r"""SigLIP: every pair of an image and a text is a binary question, whether they belong together.

    $$ \ell_i = -\sum_j \log \sigma(\pm z_{ij}), \quad z_{ij} = c \langle x_i, t_j \rangle + b,
       \quad + \text{ for } i = j $$

    Args:
        image, text: [N, D], float16, bfloat16, float32 or float64, already normalised, as open_clip's. Text i belongs
            to image i. The side of a tower that is not trained costs no gradient.
        logit_scale, logit_bias: c, the factor itself, and b (the paper starts at 10 and -10); tensors of one element
            receive their gradients. open_clip learns the logarithm of c: `model.logit_scale.exp()`.
        reduction: "mean": the sum over all N x N pairs divided by N; "sum"; "none": one value per image.

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen.

    Equivalent to::

        logits = logit_scale * image @ text.T + logit_bias
        -F.logsigmoid((2 * torch.eye(N) - 1) * logits).sum() / N

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023; `SigLipLoss` of open_clip.

    >>> x = torch.eye(2)
    >>> siglip_loss(x, x, 10.0, -10.0)
    tensor(0.6932)
    """
    x, y = checks.same_rows(("image", "text"), (image, text))
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int64)
    batch = checks.Batch(x, y, rows, rows, None, x_sorted=True, y_sorted=True)
    pos, neg = ops.of("sum", scale=-logit_scale, bias=-logit_bias), ops.of("sum", scale=logit_scale, bias=logit_bias)
    positive, negative = ops.fold(batch, "sigmoid", "dot", pos=pos, neg=neg)
    return reduce(positive + negative, reduction, x.shape[0], x)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), temperature=learnable(above=True), normalize=flag,
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def supcon_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, temperature: float | Tensor = 0.1,
    normalize: bool = True, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Supervised contrastive loss (L_out): an anchor's positives share the softmax over all other rows.

    $$ \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip}/\tau}}{\sum_{a \ne i} e^{s_{ia}/\tau}} $$

    with s the cosine, or the dot product if `normalize` is False. Memory is O((N + M) D).

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], any integer dtype; equal labels are positive pairs.
        ref_embeddings, ref_labels: [M, D] and [M], the set to compare with; without them the batch itself, without
            (i, i).
        ref_offset: row i of embeddings is row ref_offset + i of ref_embeddings (a gathered batch, a memory bank), and
            that pair is left out, as (i, i) in a batch alone. None: no row is in both.
        ignore_index: rows of either side with this label (padding, rows without one) are in no pair and count in no
            mean, whatever they hold; their gradient is 0. None: every label is a class.
        temperature: above 0; a tensor of one element receives its gradient.
        normalize: cosines instead of dot products; norms are clamped to at least 1e-8.
        reduction: "mean" over the anchors that have a positive, "sum", or "none" ([N], 0 for one that has none).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. Without any positive pair 0, with
        zero gradient.

    Raises:
        TypeError, ValueError: naming the argument and what was seen.

    Equivalent to::

        x = F.normalize(embeddings)
        log_p = (x @ x.T / temperature).fill_diagonal_(-torch.inf).log_softmax(1)
        same = (labels[:, None] == labels) & ~eye
        (-log_p.where(same, 0).sum(1) / same.sum(1)).mean()

    Equals `SupConLoss` of pytorch-metric-learning, whose mean runs over the values above 0.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    >>> x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> supcon_loss(x, labels, temperature=1.0, reduction="none")
    tensor([0.3133, 0.3133, 0.0000])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    scale = 1 / temperature
    total, positive, count, negative = ops.fold(
        batch, "softmax", "similarity" if normalize else "dot",
        pos=ops.of("sum", "lse", "sum", scale=scale), neg=ops.of("lse", scale=scale),
    )  # fmt: skip
    count = count.detach()
    positive = positive.masked_fill(count == 0, 0.0)
    # How much the positives differ, exactly 0 of one, and how they compare with the negatives.
    spread = torch.where(count > 1, positive - total / count.clamp(min=1), 0.0)
    terms = torch.where(count > 0, spread + softplus(negative - positive), 0.0)
    return reduce(terms, reduction, (count > 0).sum(), batch.x)


@options(l2_reg=number(), reduction=one_of(*REDUCTIONS))
def n_pair_loss(anchor: Tensor, positive: Tensor, *, l2_reg: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""N-pair loss (N-tuple): the positive of an anchor competes with the positives of the other anchors.

    $$ \ell_i = \log\Bigl(1 + \sum_{j \ne i} e^{\langle a_i, p_j \rangle - \langle a_i, p_i \rangle}\Bigr)
       + \lambda (\|a_i\|^2 + \|p_i\|^2) $$

    Args:
        anchor, positive: [N, D], one pair of each of N classes, not normalised; float16, bfloat16, float32 or float64.
        l2_reg: weight of the squared lengths, which the paper keeps small with it.
        reduction: "mean" over the N tuples, "sum", or "none" (one value per tuple).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen.

    Equivalent to::

        F.cross_entropy(anchor @ positive.T, torch.arange(N)) + l2_reg * (anchor**2 + positive**2).sum() / N

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016.

    >>> x = torch.eye(2)
    >>> n_pair_loss(x, x, l2_reg=0.5)
    tensor(1.3133)
    """
    a, p = checks.same_rows(("anchor", "positive"), (anchor, positive))
    own, negative = _competition(a, p, torch.arange(a.shape[0], device=a.device, dtype=torch.int64), 1.0, "dot")
    terms = softplus(negative - own)
    if l2_reg:
        terms = terms + l2_reg * (a.to(terms.dtype).square() + p.to(terms.dtype).square()).sum(1)
    return reduce(terms, reduction, a.shape[0], a)
