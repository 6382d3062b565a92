"""Losses on a tile, as in `kernels/losses.py`: the terms that are folded, and their derivatives.

    terms(s, params, positive)  -> each term [BM, BN]
    slopes(s, params, positive) -> each term's derivative by s, and a function that gives those by params: {index: ...}
`s` are scores of pairs which are all positive, or all negative. Both are generators, so that what is not asked for is
not computed; neither writes to s. A term beyond the slopes is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Slope = tuple[Tensor | float, Callable[[], dict[int, Tensor | float]]]


class Loss(NamedTuple):
    terms: Callable[[Tensor, Sequence[Any], bool], Iterator[Tensor]]
    slopes: Callable[[Tensor, Sequence[Any], bool], Iterator[Slope]]


def signed_hinge(s: Tensor, params: Sequence[Any], positive: bool) -> Tensor:
    """How far a positive is beyond params[0], or a negative short of params[1], as a negative number."""
    return (s - params[0]).clamp_(min=0) if positive else (s - params[1]).clamp_(max=0)


def contrastive_terms(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    h = signed_hinge(s, params, positive)
    yield (h * h).mul_(0.5)
    yield h.ne(0).to(h.dtype)
    yield torch.ones_like(h)


def contrastive_slopes(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Slope]:
    h = signed_hinge(s, params, positive)
    yield h, lambda: {0 if positive else 1: -h}


def linear_contrastive_terms(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    h = signed_hinge(s, params, positive).abs_()
    yield h
    yield h.ne(0).to(h.dtype)


def linear_contrastive_slopes(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Slope]:
    h = signed_hinge(s, params, positive).sign_()
    yield h, lambda: {0 if positive else 1: -h}


def logit(s: Tensor, params: Sequence[Any], positive: bool) -> Tensor:
    scale, shift = params[:2] if positive else params[2:]
    return (s * scale).add_(shift)


def by_logit(slope: Tensor | float, s: Tensor, params: Sequence[Any], positive: bool) -> Slope:
    first = 0 if positive else 2
    return slope * params[first], lambda: {first: slope * s, first + 1: slope}


def softmax_terms(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    z = logit(s, params, positive)
    yield z
    yield z
    yield torch.ones_like(z)


def softmax_slopes(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Slope]:
    for _ in range(2):
        yield by_logit(1.0, s, params, positive)


def sigmoid_terms(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    yield F.softplus(logit(s, params, positive), threshold=1000.0)  # exact: by default it is linear from 20


def sigmoid_slopes(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Slope]:
    yield by_logit(logit(s, params, positive).sigmoid_(), s, params, positive)


def circle_weight(s: Tensor, params: Sequence[Any], positive: bool) -> Tensor:
    """A constant to the derivative."""
    margin, scale = params
    return (s - (1 + margin)).clamp_(max=0).mul_(scale) if positive else (s + margin).clamp_(min=0).mul_(scale)


def circle_terms(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Tensor]:
    w = circle_weight(s, params, positive)
    yield w.mul_(s - (1 - params[0] if positive else params[0]))


def circle_slopes(s: Tensor, params: Sequence[Any], positive: bool) -> Iterator[Slope]:
    yield circle_weight(s, params, positive), dict


LOSSES = {
    "contrastive": Loss(contrastive_terms, contrastive_slopes),
    "linear_contrastive": Loss(linear_contrastive_terms, linear_contrastive_slopes),
    "softmax": Loss(softmax_terms, softmax_slopes),
    "sigmoid": Loss(sigmoid_terms, sigmoid_slopes),
    "circle": Loss(circle_terms, circle_slopes),
}
