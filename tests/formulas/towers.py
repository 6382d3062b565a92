"""Losses of two towers, in which the place of a row says which row of the other tower belongs to it."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import nothing, reduced
from .scores import dots, double, number, similarities, softplus
from .softmax import against


def ids_of(ids: Tensor | None, key_ids: Tensor | None, N: int, M: int) -> tuple[list[object], list[object]]:
    """The ids of N rows and of their M keys; without ids all of them differ."""
    if ids is None:
        return [("row", i) for i in range(N)], [("key", j) for j in range(M)]
    return ids.tolist(), (ids if key_ids is None else key_ids).tolist()


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    metric: str = "cosine",
    in_batch_negatives: bool = True,
    symmetric: bool = False,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    key_bias: Tensor | None = None,
    offset: int = 0,
    reduction: str = "mean",
) -> Tensor:
    q, k, t = double(query), double(key), number(temperature)
    N, M = len(q), len(k)
    query_ids, their_ids = ids_of(ids, key_ids, N, M)
    bias = torch.zeros(M, dtype=torch.float64) if key_bias is None else double(key_bias)
    terms = []
    for i in range(N):
        own = i + offset
        among_keys = similarities(q[i], k, metric) / t + bias
        rest = [among_keys[:0]]
        if in_batch_negatives:
            rest.append(among_keys[[j for j in range(M) if j != own and their_ids[j] != query_ids[i]]])
        if negatives is not None:
            rest.append(similarities(q[i], double(negatives), metric) / t)
        if hard_negatives is not None:
            rest.append(similarities(q[i], double(hard_negatives[i]), metric) / t)
        term = against(among_keys[own], torch.cat(rest))
        if symmetric:
            among_queries = similarities(k[own], q, metric) / t
            others = [j for j in range(N) if j != i and query_ids[j] != their_ids[own]]
            term = (term + against(among_queries[i], among_queries[others])) / 2
        terms.append([term])
    return reduced(terms, reduction, nothing(query, key, negatives, temperature, hard_negatives, key_bias))


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    *,
    logit_bias: float | Tensor | None = None,
    offset: int = 0,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    x, y, c = double(image), double(text), number(logit_scale)
    b = number(0.0 if logit_bias is None else logit_bias)
    N, M = len(x), len(y)
    image_ids, their_ids = ids_of(ids, text_ids, N, M)
    terms = []
    for i in range(N):
        own = i + offset
        texts = c * dots(x[i], y) + b
        other_texts = [j for j in range(M) if j != own and their_ids[j] != image_ids[i]]
        term = against(texts[own], texts[other_texts])
        if M == N:
            images = c * dots(y[i], x) + b
            other_images = [j for j in range(N) if j != i and image_ids[j] != their_ids[i]]
            term = (term + against(images[i], images[other_images])) / 2
        terms.append([term])
    return reduced(terms, reduction, nothing(image, text, logit_scale, logit_bias))


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    offset: int | None = 0,
    ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    x, y = double(image), double(text)
    image_ids, their_ids = ids_of(ids, text_ids, len(x), len(y))
    terms = []
    for i in range(len(x)):
        z = number(logit_scale) * dots(x[i], y) + number(logit_bias)
        answers = []
        for j in range(len(y)):
            together = image_ids[i] == their_ids[j] or (offset is not None and j == i + offset)
            answers.append(softplus(-z[j] if together else z[j]))
        terms.append([torch.stack(answers).sum() if answers else z.sum()])
    return reduced(terms, reduction, nothing(image, text, logit_scale, logit_bias))


def n_pair_loss(anchor: Tensor, positive: Tensor, *, l2_reg: float = 0.0, reduction: str = "mean") -> Tensor:
    a, p = double(anchor), double(positive)
    terms = []
    for i in range(len(a)):
        products = dots(a[i], p)
        rest = [j for j in range(len(p)) if j != i]
        lengths = (a[i] ** 2).sum() + (p[i] ** 2).sum()
        terms.append([against(products[i], products[rest]) + l2_reg * lengths])
    return reduced(terms, reduction, nothing(anchor, positive))
