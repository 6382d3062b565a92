"""Losses on a tile, as in `kernels/losses.py`: the terms that are folded, and their derivatives.

    terms(s, numbers, positive)  -> each term [BM, BN]
    slopes(s, numbers, positive) -> each term's derivative by s, and a function that gives those by the numbers
`s` are scores of pairs which are all positive, or all negative, and `numbers` those of that kind. Both are generators,
so that what is not asked for is not computed; neither writes to s. A term beyond the slopes is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Slope = tuple[Tensor | float, Callable[[], list[Tensor | float]]]


class Loss(NamedTuple):
    terms: Callable[[Tensor, Sequence[Any], bool], Iterator[Tensor]]
    slopes: Callable[[Tensor, Sequence[Any], bool], Iterator[Slope]]


def signed_hinge(s: Tensor, numbers: Sequence[Any], positive: bool) -> Tensor:
    """How far a positive is beyond the margin, or a negative short of it, as a negative number."""
    h = s - numbers[0]
    return h.clamp_(min=0) if positive else h.clamp_(max=0)


def contrastive_terms(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    h = signed_hinge(s, numbers, positive)
    yield (h * h).mul_(0.5)
    yield h.ne(0).to(h.dtype)
    yield torch.ones_like(h)


def contrastive_slopes(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Slope]:
    h = signed_hinge(s, numbers, positive)
    yield h, lambda: [-h]


def linear_contrastive_terms(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    h = signed_hinge(s, numbers, positive).abs_()
    yield h
    yield h.ne(0).to(h.dtype)


def linear_contrastive_slopes(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Slope]:
    h = signed_hinge(s, numbers, positive).sign_()
    yield h, lambda: [-h]


def logit(s: Tensor, numbers: Sequence[Any]) -> Tensor:
    return (s * numbers[0]).add_(numbers[1])


def softmax_terms(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    z = logit(s, numbers)
    yield z
    yield z
    yield torch.ones_like(z)


def softmax_slopes(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Slope]:
    for _ in range(2):
        yield numbers[0], lambda: [s.clone(), 1.0]


def sigmoid_terms(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    yield F.logsigmoid(logit(s, numbers).neg_()).neg_()  # unlike softplus it is exact for every z


def sigmoid_slopes(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Slope]:
    slope = logit(s, numbers).sigmoid_()
    yield slope * numbers[0], lambda: [slope * s, slope]


def circle_weight(s: Tensor, numbers: Sequence[Any], positive: bool) -> Tensor:
    """A constant to the derivative."""
    margin, scale = numbers
    return (s - (1 + margin)).clamp_(max=0).mul_(scale) if positive else (s + margin).clamp_(min=0).mul_(scale)


def circle_terms(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    w = circle_weight(s, numbers, positive)
    yield w.mul_(s - (1 - numbers[0] if positive else numbers[0]))


def circle_slopes(s: Tensor, numbers: Sequence[Any], positive: bool) -> Iterator[Slope]:
    yield circle_weight(s, numbers, positive), list


LOSSES = {
    "contrastive": Loss(contrastive_terms, contrastive_slopes),
    "linear_contrastive": Loss(linear_contrastive_terms, linear_contrastive_slopes),
    "softmax": Loss(softmax_terms, softmax_slopes),
    "sigmoid": Loss(sigmoid_terms, sigmoid_slopes),
    "circle": Loss(circle_terms, circle_slopes),
}
