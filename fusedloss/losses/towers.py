"""Losses of two towers: row i of one side belongs to row i of the other, which competes with all other rows there.

With one positive per row the loss is softplus(log sum exp of the negatives - the positive), which is exact however
small it is, at least 0, and has no 1 - p in its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, groups, ops
from ..backends.dtypes import loss_dtype
from ..checks import SIMILARITIES, Batch
from ..options import flag, integer, learnable, number, one_of, optional, options
from . import closings
from .closings import closed
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
    r"""InfoNCE: every query finds its key among other keys, a shared queue, negatives of its own, or all of these.

    ```math
    \ell_i = -\log \frac{e^{s(q_i, k_i)/\tau + b_i}}{e^{s(q_i, k_i)/\tau + b_i}
       + \sum_{j \ne i} e^{s(q_i, k_j)/\tau + b_j} + \sum_m e^{s(q_i, n_m)/\tau} + \sum_m e^{s(q_i, h_{im})/\tau}}
    ```

    Memory is O((N + M + K) D), plus the size of `hard_negatives`.

    Args:
        query: [N, D], float16, bfloat16, float32 or float64.
        key: [N, D]; the positive of row i is key i. There may be more keys, [M, D] with M >= N + offset.
        negatives: [K, D], negatives n of every query: a queue (MoCo), or hard negatives that all queries share.
        temperature: above 0; a tensor of one element receives its gradient.
        metric: the similarity s: "cosine" (norms are clamped to at least 1e-8), "dot", or the negative of a distance,
            "euclidean", "sqeuclidean" or "manhattan".
        in_batch_negatives: whether the other keys are negatives. MoCo has False here, and a queue.
        symmetric: whether to take the mean of this loss and of the loss in which every key finds its query among the
            queries. The queue and the hard negatives count in the former only.
        ids: [N], integers that say what each query is about: keys with the query's id, except its own key, are not
            among its negatives (the same caption twice, another picture of the same product).
        key_ids: [M], the ids of the keys, if there are more keys than queries; key i + offset has the id of query i.
            None: the ids of the queries.
        hard_negatives: [N, K, D], negatives h of one query alone, beside the other negatives or in place of them.
        key_bias: [M], b, which is added to the logits of the keys and receives its gradient. If b is minus the
            logarithm of the probability with which a key was sampled, this is the logQ correction of two-tower
            recommenders, in which popular items are keys of a batch too often:

            ```python
            info_nce_loss(users, items, key_bias=-sampling_probability.log(), ids=item_ids)
            ```

        offset: the positive of row i is key i + offset, for keys that were gathered from several processes.
        reduction: "mean" over the queries, "sum", or "none" (one value per query).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. On a CPU it is also an
            error if a query and its own key have different ids.

    Equivalent to:

    ```python
    logits = F.normalize(query) @ F.normalize(key).T / temperature
    F.cross_entropy(logits, torch.arange(N))
    ```

    `NTXentLoss` of pytorch-metric-learning saturates where the share of the positive is below the smallest float; this
    loss does not.

    Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018; He et al.,
    "Momentum Contrast", CVPR 2020; for key_bias, Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus
    Item Recommendations", RecSys 2019.

    Examples:
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
    if queue is None and hard is None and batch.ref_offset is None and (reduction == "mean" or not symmetric):
        return _gap(batch, scale, score, reduction, bias, columns=symmetric)
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
    """The numbers of the rows, counted from that of the first one."""
    return torch.arange(first, first + x.shape[0], device=x.device, dtype=torch.int64)


def _towers(
    names: tuple[str, str], x: Tensor, y: Tensor, offset: int | None, ids: object, y_ids: object
) -> Batch:  # fmt: skip
    """Rows x, of which row i belongs to row offset + i of y, or to none if the offset is None.

    The label of a row is the place of its row of y. If there are ids, the label is the id, and the pair of a row with
    its own row of y is left out.
    """
    N, M = x.shape[0], y.shape[0]
    if offset is not None and offset + N > M:
        of = f"{names[1]} must have the {N + offset} rows or more (those of {names[0]}, and offset)"
        raise ValueError(f"{of}, got shape {tuple(y.shape)}")
    if ids is not None or y_ids is not None:
        return Batch(x, y, *checks.identities(ids, f"{names[1]}_ids", y_ids, x, y, offset), offset, shared=1)
    first = groups.first_key()
    own = torch.full_like(_places(x), -1) if offset is None else _places(x, first + offset)
    return Batch(x, y, own, _places(y, first), None, x_sorted=True, y_sorted=True, shared=1)


def _gap(
    b: Batch, scale: float | Tensor, score: str, reduction: str, bias: Tensor | None = None, columns: bool = False
) -> Tensor:
    """The loss of every row x against all rows of y, of which one is its own; the rows of y are anchors too if
    `columns`."""
    pos, neg = ops.of("sum", scale=scale), ops.of("lse", scale=scale)
    count = b.x.shape[0] * (1 + columns)
    offsets = None if bias is None else bias / scale
    return closed(
        b, "softmax", score, closings.gap, reduction, count, pos=pos, neg=neg, columns=columns, offsets=offsets
    )  # fmt: skip


def _competition(
    b: Batch, offset: int, scale: float | Tensor, score: str, bias: Tensor | None = None, columns: bool = False,
    in_batch: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The positive logit of every x and the log sum exp of its negatives; if `columns`, then also those of every y. The
    bias is added to the logits of y. Unless `in_batch`, there are no negatives."""
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
    known_by_id = b._replace(ref_offset=None)  # the own key has the row's id, so it is not a negative
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

    ```math
    \ell_i = -\tfrac12 \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
       - \tfrac12 \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}}, \quad z_{ij} = c \langle x_i, t_j \rangle + b
    ```

    Args:
        image: [N, D], float16, bfloat16, float32 or float64, already normalised, as in open_clip.
        text: [N, D]; text i belongs to image i. With more texts than images, [M, D] (gathered from several processes),
            the loss is that of the images alone; open_clip's `local_loss` is the mean of it and of
            `clip_loss(text, all_images, ...)`. For a tower that is not trained no gradient is computed.
        logit_scale: c, the factor itself; a tensor of one element receives its gradient. open_clip learns the
            logarithm of c, so pass `model.logit_scale.exp()` there.
        logit_bias: b, on which a softmax does not depend: its gradient is 0.
        offset: text i + offset belongs to image i; M >= N + offset.
        ids: [N], integers that say what each image is about: texts with the image's id, except its own text, are not
            among its negatives (the same caption twice). The same holds for the images of a text.
        text_ids: [M], the ids of the texts, if there are more texts than images; text i + offset has the id of image i.
            None: the ids of the images.
        reduction: "mean" over the N pairs, "sum", or "none" (one value per pair).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. On a CPU it is also an
            error if an image and its own text have different ids.

    Equivalent to:

    ```python
    logits = logit_scale * image @ text.T
    (F.cross_entropy(logits, torch.arange(N)) + F.cross_entropy(logits.T, torch.arange(N))) / 2
    ```

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021;
    `ClipLoss` of open_clip.

    Examples:
        >>> x = torch.eye(2)
        >>> clip_loss(x, x, 1.0)
        tensor(0.3133)
    """
    x = checks.rows("image", image)
    y = checks.same_dimensions("image", x, "text", text)
    N, both = x.shape[0], x.shape[0] == y.shape[0]
    batch = _towers(("image", "text"), x, y, offset, ids, text_ids)
    if batch.ref_offset is None and (reduction == "mean" or not both):
        loss = _gap(batch, logit_scale, "dot", reduction, columns=both)
    else:
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

    ```math
    \ell_i = -\sum_j \log \sigma(\pm z_{ij}), \quad z_{ij} = c \langle x_i, t_j \rangle + b,
       \quad + \text{ for } i = j
    ```

    Args:
        image: [N, D], float16, bfloat16, float32 or float64, already normalised, as in open_clip.
        text: [N, D]; text i belongs to image i. There may be another number of texts, [M, D]. For a tower that is not
            trained no gradient is computed.
        logit_scale: c, the factor itself (the paper starts at 10); a tensor of one element receives its gradient.
            open_clip learns the logarithm of c, so pass `model.logit_scale.exp()` there.
        logit_bias: b (the paper starts at -10); a tensor of one element receives its gradient.
        offset: text i + offset belongs to image i; M >= N + offset. None: no text belongs to an image, as with the
            texts of another process.
        ids: [N], integers: pairs with equal ids belong together too. With `offset` None only they do.
        text_ids: [M], the ids of the texts, if they differ from those of the images; text i + offset has the id of
            image i.
        reduction: "mean": the sum over all N x M pairs divided by N; "sum"; "none": one value per image.

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. On a CPU it is also an
            error if an image and its own text have different ids.

    Equivalent to:

    ```python
    logits = logit_scale * image @ text.T + logit_bias
    -F.logsigmoid((2 * torch.eye(N) - 1) * logits).sum() / N
    ```

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023; `SigLipLoss` of open_clip.

    Examples:
        >>> x = torch.eye(2)
        >>> siglip_loss(x, x, 10.0, -10.0)
        tensor(0.6932)
    """
    x = checks.rows("image", image)
    y = checks.same_dimensions("image", x, "text", text)
    batch = _towers(("image", "text"), x, y, offset, ids, text_ids)._replace(ref_offset=None)
    pos, neg = ops.of("sum", scale=-logit_scale, bias=-logit_bias), ops.of("sum", scale=logit_scale, bias=logit_bias)
    return closed(batch, "sigmoid", "dot", closings.sums, reduction, x.shape[0], pos=pos, neg=neg)


@options(l2_reg=number(), reduction=one_of(*REDUCTIONS))
def n_pair_loss(anchor: Tensor, positive: Tensor, *, l2_reg: float = 0.0, reduction: str = "mean") -> Tensor:
    r"""N-pair loss (N-tuple): the positive of an anchor competes with the positives of the other anchors.

    ```math
    \ell_i = \log\Bigl(1 + \sum_{j \ne i} e^{\langle a_i, p_j \rangle - \langle a_i, p_i \rangle}\Bigr)
       + \lambda (\|a_i\|^2 + \|p_i\|^2)
    ```

    Args:
        anchor: [N, D], one row of each of N classes, not normalised; float16, bfloat16, float32 or float64.
        positive: [N, D], another row of each class, in the same order.
        l2_reg: lambda, the weight of the squared lengths, with which the paper keeps them small.
        reduction: "mean" over the N tuples, "sum", or "none" (one value per tuple).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. N = 0 gives 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    F.cross_entropy(anchor @ positive.T, torch.arange(N)) + l2_reg * (anchor**2 + positive**2).sum() / N
    ```

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016.

    Examples:
        >>> x = torch.eye(2)
        >>> n_pair_loss(x, x, l2_reg=0.5)
        tensor(1.3133)
    """
    a, p = checks.same_rows(("anchor", "positive"), (anchor, positive))
    batch = _towers(("anchor", "positive"), a, p, 0, None, None)
    if not l2_reg:
        return _gap(batch, 1.0, "dot", reduction)
    own, negative = _competition(batch, 0, 1.0, "dot")
    terms = softplus(negative - own)
    terms = terms + l2_reg * (a.to(terms.dtype).square() + p.to(terms.dtype).square()).sum(1)
    return reduce(terms, reduction, a.shape[0], a)
