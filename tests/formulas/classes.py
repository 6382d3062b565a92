"""Cross entropy over classes that have a row each: a linear classifier, and cosines with a margin."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .batches import average, nothing
from .logits import entropy, missed, one_hot, weighted, weights_of
from .scores import cosines, dots, double, log_sum_exp, number, root


def linear_cross_entropy_loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    gamma: float = 0.0,
    class_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    x, W, classes = double(embeddings), double(weight), target.tolist()
    zero = nothing(embeddings, weight, bias)
    terms: list[Tensor | None] = []
    penalties: list[Tensor | None] = []
    for i, y in enumerate(classes):
        if y == ignore_index:
            terms.append(None)
            penalties.append(None)
            continue
        z = dots(x[i], W) + (0 if bias is None else double(bias))
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        terms.append(missed(z, y, gamma) * entropy(z, one_hot(y, len(W)), class_weight, label_smoothing))
        size = log_sum_exp(z)
        penalties.append(None if size is None else z_loss * size**2)
    value = weighted(terms, weights_of(class_weight, classes, ignore_index), reduction, zero)
    if reduction == "mean":
        return value + average([p for p in penalties if p is not None], zero)
    return value + weighted(penalties, [1.0] * len(classes), reduction, zero)


def margin_softmax(
    own_logit: Callable[[Tensor, int], Tensor],
    factor: Tensor,
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int | None,
    class_weight: Tensor | None,
    label_smoothing: float,
    sub_centers: int,
    reduction: str,
    zero: Tensor,
) -> Tensor:
    """Cross entropy of cosines times a factor, of which that of row i with its own class is replaced first."""
    x, W, classes = double(embeddings), double(weight), target.tolist()
    assert sub_centers == (W.shape[1] if W.dim() == 3 else 1)
    terms: list[Tensor | None] = []
    for i, y in enumerate(classes):
        if y == ignore_index:
            terms.append(None)
            continue
        cos = cosines(x[i], W)
        if cos.dim() == 2:  # of all rows of a class the nearest, the first of several
            nearest = [max(range(sub_centers), key=of_class.__getitem__) for of_class in cos.tolist()]
            cos = cos[range(len(W)), nearest]
        z = factor * torch.cat([cos[:y], own_logit(cos[y], i)[None], cos[y + 1 :]])
        terms.append(entropy(z, one_hot(y, len(W)), class_weight, label_smoothing))
    return weighted(terms, weights_of(class_weight, classes, ignore_index), reduction, zero)


def margins_of(margin: float | Tensor, N: int) -> list[Tensor]:
    """The margin of every row."""
    if isinstance(margin, Tensor) and margin.numel() != 1:
        return [*double(margin)]
    return [number(margin)] * N


def arcface_loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.5,
    scale: float | Tensor = 64.0,
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    sub_centers: int = 1,
    reduction: str = "mean",
) -> Tensor:
    margins = margins_of(margin, len(embeddings))

    def own_logit(cos: Tensor, i: int) -> Tensor:
        m = margins[i]
        if cos.item() < math.cos(math.pi - m.item()) and m > 0:  # the angle plus the margin is beyond pi
            return cos - m * torch.sin(m)
        sin = root((1 - cos) * (1 + cos))
        return cos * torch.cos(m) - sin * torch.sin(m)

    zero, s = nothing(embeddings, weight, margin, scale), number(scale)
    options = (ignore_index, class_weight, label_smoothing, sub_centers, reduction)
    return margin_softmax(own_logit, s, embeddings, weight, target, *options, zero)


def cosface_loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.35,
    scale: float | Tensor = 64.0,
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    sub_centers: int = 1,
    reduction: str = "mean",
) -> Tensor:
    margins = margins_of(margin, len(embeddings))

    def own_logit(cos: Tensor, i: int) -> Tensor:
        return cos - margins[i]

    zero, s = nothing(embeddings, weight, margin, scale), number(scale)
    options = (ignore_index, class_weight, label_smoothing, sub_centers, reduction)
    return margin_softmax(own_logit, s, embeddings, weight, target, *options, zero)


def normalized_softmax_loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    sub_centers: int = 1,
    reduction: str = "mean",
) -> Tensor:
    def own_logit(cos: Tensor, i: int) -> Tensor:
        return cos

    zero, s = nothing(embeddings, weight, temperature), 1 / number(temperature)
    options = (ignore_index, class_weight, label_smoothing, sub_centers, reduction)
    return margin_softmax(own_logit, s, embeddings, weight, target, *options, zero)
