"""Losses of two towers: row i of one side belongs to row i of the other, and competes with its other rows.

With one positive a row the loss is softplus(log sum exp of the negatives - the positive), which is exact however small
it is, at least 0, and has no 1 - p in its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, groups, ops
from ..backends.dtypes import loss_dtype
from ..checks import SIMILARITIES, Batch
from ..options import flag, integer, learnable, number, one_of, optional, options
from .reduce import REDUCTIONS, reduce, similarity, softplus


@options(
    temperature=learnable(above=True), metric=one_of(*SIMILARITIES), in_batch_negatives=flag, symmetric=flag,
    offset=integer(), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def info_nce_loss(
    query: Tensor, key: Tensor, negatives: Tensor | None = None, *,
    temperature: float | Tensor = 0.07, metric: str = "cosine", in_batch_negatives: bool = True,
    symmetric: bool = False, ids: Tensor | None = None, key_ids: Tensor | None = None,
    hard_negatives: Tensor | None = None, key_bias: Tensor | None = None, offset: int = 0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""InfoNCE: every query finds its key among the other keys, a shared queue, negatives of its own, or all of them.

    $$ \ell_i = -\log \frac{e^{s(q_i, k_i)/\tau + b_i}}{e^{s(q_i, k_i)/\tau + b_i}
       + \sum_{j \ne i} e^{s(q_i, k_j)/\tau + b_j} + \sum_m e^{s(q_i, n_m)/\tau} + \sum_m e^{s(q_i, h_{im})/\tau}} $$

    Memory is O((N + M + K) D), and that of `hard_negatives`.

    Args:
        query: [N, D], float16, bfloat16, float32 or float64.
        key: [N, D]; the positive of row i is key i. With `offset`, [M, D] with M >= N + offset.
        negatives: [K, D], negatives n of every query: a queue (MoCo), hard negatives that all queries share.
        temperature: above 0; a tensor of one element receives its gradient.
        metric: the similarity s, "cosine" (norms are clamped to at least 1e-8) or "dot"; or a distance, whose negative
            is the similarity: "euclidean", "sqeuclidean", "manhattan".
        in_batch_negatives: whether the other keys are negatives. MoCo: False, with a queue.
        symmetric: the mean of this loss and that of every key finding its query among the queries. The queue and the
            hard negatives belong to the first of them.
        ids: [N], integers, what each query is about: keys with the query's id, other than its own, are not among its
            negatives (the same caption twice, another picture of the product).
        key_ids: [M], the same of the keys, where there are more keys than queries; key i + offset has the id of query
            i. None: those of the queries.
        hard_negatives: [N, K, D], negatives h of one query alone, beside the others or in place of them.
        key_bias: [M], b, added to the logits of the keys; receives its gradient. Minus the logarithm of the
            probability with which a key was sampled is the logQ correction of two-tower recommenders, whose popular
            items are keys of a batch too often::

                info_nce_loss(users, items, key_bias=-sampling_probability.log(), ids=item_ids)

        offset: the positive of row i is key i + offset: keys gathered from several processes.
        reduction: "mean" over the queries, "sum", or "none" (one value per query).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of ids that differ where a query and
            its key are.

    Equivalent to::

        logits = F.normalize(query) @ F.normalize(key).T / temperature
        F.cross_entropy(logits, torch.arange(N))

    pytorch-metric-learning's `NTXentLoss` saturates where the positive's share is below the smallest float; this does
    not.

    Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018; He et al.,
    "Momentum Contrast", CVPR 2020; key_bias: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", RecSys 2019.

    >>> q = torch.eye(2)
    >>> info_nce_loss(q, q, temperature=1.0)
    tensor(0.3133)
    """
    q = checks.rows("query", query)
    k = checks.same_dimensions("query", q, "key", key)
    queue = None if negatives is None else checks.same_dimensions("query", q, "negatives", negatives)
    hard = None if hard_negatives is None else checks.rows_of_each("query", q, "hard_negatives", hard_negatives)
    N, M = q.shape[0], k.shape[0]
    if symmetric and N != M:
        raise ValueError(f"key must have the {N} rows, one a query, got shape {tuple(k.shape)}")
    if not in_batch_negatives and queue is None and hard is None:
        raise ValueError("negatives must be given where in_batch_negatives is False, or hard_negatives, got None")
    if not in_batch_negatives and symmetric:
        raise ValueError("symmetric must be False where in_batch_negatives is False, got True")
    batch = _towers(("query", "key"), q, k, offset, ids, key_ids)
    bias = None
    if key_bias is not None:
        bias = checks.of_each("key_bias", key_bias, "key", M, q, constant=False).to(loss_dtype(q))

    score, sign = similarity(metric)
    scale = sign / temperature
    positive, negative = _competition(batch, offset, scale, score, bias, symmetric, in_batch_negatives)
    by_key = softplus(negative[N:] - positive[N:]) if symmetric else None
    positive, negative = positive[:N], negative[:N]
    places = _places(q)
    if queue is not None:
        others = Batch(q, queue, torch.full_like(places, -1), _places(queue), None, x_sorted=True, y_sorted=True)
        negative = _with(negative, *ops.fold(others, "softmax", score, neg=ops.of("lse", scale=scale)))
    if hard is not None:
        of_query = places[:, None].expand(hard.shape[:2]).flatten()
        each = Batch(q, hard.flatten(0, 1), places, of_query, None, x_sorted=True, y_sorted=True)
        negative = _with(negative, *ops.fold(each, "softmax", score, pos=ops.of("lse", scale=scale)))
    by_query = softplus(negative - positive)
    return reduce(by_query if by_key is None else (by_query + by_key) / 2, reduction, N, q)


def _places(x: Tensor, first: int = 0) -> Tensor:
    """The number of every row, from that of the first one on."""
    return torch.arange(first, first + x.shape[0], device=x.device, dtype=torch.int64)


def _towers(
    names: tuple[str, str], x: Tensor, y: Tensor, offset: int | None, ids: object, y_ids: object
) -> Batch:  # fmt: skip
    """Rows x, of which row i belongs to row offset + i of y, or to none. Their label is that place; or if they have ids
    the id, and then the pair of a row and its own is left out."""
    N, M = x.shape[0], y.shape[0]
    if offset is not None and offset + N > M:
        of = f"{names[1]} must have the {N + offset} rows or more (those of {names[0]}, and offset)"
        raise ValueError(f"{of}, got shape {tuple(y.shape)}")
    if ids is not None or y_ids is not None:
        return Batch(x, y, *checks.identities(ids, f"{names[1]}_ids", y_ids, x, y, offset), offset, shared=1)
    first = groups.first_key()
    own = torch.full_like(_places(x), -1) if offset is None else _places(x, first + offset)
    return Batch(x, y, own, _places(y, first), None, x_sorted=True, y_sorted=True, shared=1)


def _competition(
    b: Batch, offset: int, scale: float | Tensor, score: str, bias: Tensor | None = None, columns: bool = False,
    in_batch: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The positive logit of every x and log sum exp of its negatives, and then, if `columns`, of every y. The bias is
    added to the logits of y; if not `in_batch` there are no negatives."""
    assert b.y is not None
    known_by_place = b.ref_offset is None
    offsets, neg = None if bias is None else bias / scale, ops.of("lse", scale=scale)
    if known_by_place and in_batch:
        pos = ops.of("sum", scale=scale)
        positive, negative = ops.fold(b, "softmax", score, pos=pos, neg=neg, columns=columns, offsets=offsets)
        return positive, negative
    own = slice(offset, offset + b.x.shape[0])
    positive = scale * ops.row_distances(b.x, b.y[own], None, score)[0]
    positive = positive if bias is None else positive + bias[own]
    if not in_batch:
        return positive, torch.full_like(positive, -torch.inf)
    known_by_id = b._replace(ref_offset=None)  # the own key has the row's id: it is no negative
    (negative,) = ops.fold(known_by_id, "softmax", score, neg=neg, columns=columns, offsets=offsets)
    return torch.cat([positive, positive]) if columns else positive, negative


def _with(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), with gradient 0 where both are -inf."""
    lowest = torch.finfo(a.dtype).min / 2
    return torch.logaddexp(a.to(b.dtype).clamp(min=lowest), b.clamp(min=lowest))


@options(
    logit_scale=learnable(low=-torch.inf), logit_bias=optional(learnable(low=-torch.inf)), offset=integer(),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def clip_loss(
    image: Tensor, text: Tensor, logit_scale: float | Tensor, *, logit_bias: float | Tensor | None = None,
    offset: int = 0, ids: Tensor | None = None, text_ids: Tensor | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""CLIP: images find their texts and texts their images, in one pass over the scores where that pays.

    $$ \ell_i = -\tfrac12 \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
       - \tfrac12 \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}}, \quad z_{ij} = c \langle x_i, t_j \rangle + b $$

    Args:
        image, text: [N, D], float16, bfloat16, float32 or float64, already normalised, as open_clip's. Text i belongs
            to image i. The side of a tower that is not trained costs no gradient. With more texts than images, [M, D]
            (gathered from several processes), the loss is that of the images alone; open_clip's `local_loss` is the
            mean of it and of `clip_loss(text, all_images, ...)`.
        logit_scale: c, the factor itself; a tensor of one element receives its gradient. open_clip learns its
            logarithm, so it is `model.logit_scale.exp()` there.
        logit_bias: b, which a softmax does not depend on: its gradient is 0.
        offset: text i + offset belongs to image i; M >= N + offset.
        ids: [N], integers, what each image is about: texts with the image's id, other than its own, are not among its
            negatives (the same caption twice), and the same of images.
        text_ids: [M], those of the texts, where there are more; text i + offset has the id of image i. None: those of
            the images.
        reduction: "mean" over the N pairs, "sum", or "none" (one value per pair).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of ids that differ where an image
            and its text are.

    Equivalent to::

        logits = logit_scale * image @ text.T
        (F.cross_entropy(logits, torch.arange(N)) + F.cross_entropy(logits.T, torch.arange(N))) / 2

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
    `ClipLoss` of open_clip.

    >>> x = torch.eye(2)
    >>> clip_loss(x, x, 1.0)
    tensor(0.3133)
    """
    x = checks.rows("image", image)
    y = checks.same_dimensions("image", x, "text", text)
    N, both = x.shape[0], x.shape[0] == y.shape[0]
    batch = _towers(("image", "text"), x, y, offset, ids, text_ids)
    positive, negative = _competition(batch, offset, logit_scale, "dot", columns=both)
    terms = softplus(negative - positive)  # of the images, then of the texts
    loss = reduce(terms.unflatten(0, (2, N)).mean(0) if both else terms, reduction, N, x)
    return loss + (0 * logit_bias).to(loss.dtype) if isinstance(logit_bias, Tensor) else loss


@options(
    logit_scale=learnable(low=-torch.inf), logit_bias=learnable(low=-torch.inf), offset=optional(integer()),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def siglip_loss(
    image: Tensor, text: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor, *, offset: int | None = 0,
    ids: Tensor | None = None, text_ids: Tensor | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""SigLIP: every pair of an image and a text is a binary question, whether they belong together.

    $$ \ell_i = -\sum_j \log \sigma(\pm z_{ij}), \quad z_{ij} = c \langle x_i, t_j \rangle + b,
       \quad + \text{ for } i = j $$

    Args:
        image, text: [N, D], float16, bfloat16, float32 or float64, already normalised, as open_clip's. Text i belongs
            to image i. The side of a tower that is not trained costs no gradient. There may be another number of texts,
            [M, D].
        logit_scale, logit_bias: c, the factor itself, and b (the paper starts at 10 and -10); tensors of one element
            receive their gradients. open_clip learns the logarithm of c: `model.logit_scale.exp()`.
        offset: text i + offset belongs to image i; M >= N + offset. None: no text belongs to an image, as those of
            another process.
        ids: [N], integers: pairs with equal ids belong together too, and with `offset` None they alone.
        text_ids: [M], those of the texts, where they are not those of the images; text i + offset has the id of image
            i.
        reduction: "mean": the sum over all N x M pairs divided by N; "sum"; "none": one value per image.

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of ids that differ where an image
            and its text are.

    Equivalent to::

        logits = logit_scale * image @ text.T + logit_bias
        -F.logsigmoid((2 * torch.eye(N) - 1) * logits).sum() / N

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023; `SigLipLoss` of open_clip.

    >>> x = torch.eye(2)
    >>> siglip_loss(x, x, 10.0, -10.0)
    tensor(0.6932)
    """
    x = checks.rows("image", image)
    y = checks.same_dimensions("image", x, "text", text)
    batch = _towers(("image", "text"), x, y, offset, ids, text_ids)._replace(ref_offset=None)
    pos, neg = ops.of("sum", scale=-logit_scale, bias=-logit_bias), ops.of("sum", scale=logit_scale, bias=logit_bias)
    positive, negative = ops.fold(batch, "sigmoid", "dot", pos=pos, neg=neg)
    return reduce(positive + negative, reduction, x.shape[0], x)


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
    own, negative = _competition(_towers(("anchor", "positive"), a, p, 0, None, None), 0, 1.0, "dot")
    terms = softplus(negative - own)
    if l2_reg:
        terms = terms + l2_reg * (a.to(terms.dtype).square() + p.to(terms.dtype).square()).sum(1)
    return reduce(terms, reduction, a.shape[0], a)
