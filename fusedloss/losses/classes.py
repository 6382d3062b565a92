"""Losses of embeddings and one learned row a class: the logits [N, C] never exist.

The classes are the other side of the score matrix, each with a label of its own: a row's positive is its class, and its
negatives are all others. As in `softmax` the loss is softplus(log sum exp of the others - the own logit).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks, ops
from ..options import integer, label, learnable, number, one_of, optional, options, tensor
from .reduce import REDUCTIONS, at_least_one, focal, reduce, reduce_rows, softplus


def _fold(
    x: Tensor, classes: Tensor, index: Tensor, metric: str, *, scale: float | Tensor, own_scale: float | Tensor,
    bias: Tensor | None = None, total: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The logit of every row's class, log sum exp of the other classes and, if `total`, the sum of their logits."""
    rows = torch.arange(classes.shape[0], device=x.device, dtype=torch.int64)
    batch = checks.Batch(x, classes, index, rows, None, y_sorted=True)
    neg = ops.of("lse", "sum", scale=scale) if total else ops.of("lse", scale=scale)
    return ops.fold(batch, "softmax", metric, pos=ops.of("sum", scale=own_scale), neg=neg, offsets=bias)


def _near_zero(bias: Tensor) -> Tensor:
    """A bias less a constant, which changes no softmax: of biases that are all above 0, or all below, the nearest."""
    if bias.shape[0] == 0:
        return bias
    low, high = bias.detach().aminmax()
    return bias - (low.clamp(min=0) + high.clamp(max=0))


@options(
    bias=optional(tensor), gamma=number(), ignore_index=integer(low=-(2**63)), label_smoothing=number(high=1.0),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def linear_cross_entropy_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, gamma: float = 0.0,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Cross entropy of a linear classifier, or its focal form, without the logits. Memory is O((N + C) D).

    $$ \ell_i = (1 - p_{iy})^\gamma \Bigl(-(1 - \epsilon) \log p_{iy} - \frac{\epsilon}{C} \sum_c \log p_{ic}\Bigr),
       \quad p_i = \operatorname{softmax}(W x_i + b) $$

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        weight: W, [C, D], the weight of `torch.nn.Linear(D, C)`.
        target: [N], class indices of any integer dtype.
        bias: b, [C], of any floating dtype.
        gamma: at least 0; above it, rows that are already right count less (focal loss).
        ignore_index: rows with this target do not count, whatever they hold, NaN too.
        label_smoothing: epsilon, from 0 to 1.
        reduction: "mean" over the rows that count, "sum", or "none" ([N], 0 for one that does not).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). If no row counts 0, with zero gradient, where
        torch gives NaN.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of a class out of range. On a GPU,
            where looking would wait for it, and in compiled code the loss of such a row is NaN.

    Equivalent to::

        F.cross_entropy(F.linear(embeddings, weight, bias), target, label_smoothing=label_smoothing)  # gamma = 0

    Source: `torch.nn.functional.cross_entropy`; without the logits, Wijmans et al., "Cut Your Losses in
    Large-Vocabulary Language Models", ICLR 2025; gamma, Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    >>> linear_cross_entropy_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
    tensor(0.3133)
    """
    x, w, index = classified(embeddings, "weight", weight, target, ignore_index)
    C, smooth = w.shape[0], label_smoothing > 0
    b = None if bias is None else _near_zero(checks.of_classes("bias", bias, C, x, constant=False))
    own, others, *total = _fold(x, w, index, "dot", scale=1.0, own_scale=1.0, bias=b, total=smooth)
    terms = softplus(others - own)
    if total:
        terms = terms + label_smoothing * (own - (own + total[0]) / at_least_one(C))
    if gamma:
        terms = terms * focal(others - own, gamma)
    return reduce_rows(terms, reduction, index, x)


@options(
    margin=learnable(high=math.pi, unit="radians"), scale=learnable(above=True), ignore_index=label,
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def arcface_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, margin: float | Tensor = 0.5, scale: float | Tensor = 64.0,
    ignore_index: int = -100, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""ArcFace: softmax over the cosines to every class, whose own class needs an angle smaller by a margin.

    $$ \ell_i = -\log \frac{e^{s \cos(\theta_{iy} + m)}}{e^{s \cos(\theta_{iy} + m)} + \sum_{c \ne y}
       e^{s \cos \theta_{ic}}} $$

    Where the angle plus the margin is beyond pi, cos(theta) - m sin(m) takes the place of cos(theta + m), which would
    rise again. The derivative of cos(theta + m) has no limit at angle 0; where the cosine is 1 exactly, its share of
    sin(theta) is 0, so that gradients are finite everywhere.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        weight: [C, D], one row a class.
        target: [N], class indices of any integer dtype.
        margin: m in radians, from 0 to pi (0.5 is 28.6 degrees); a tensor of one element receives its gradient.
        scale: s, above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever they hold, and their gradient is 0.
        reduction: "mean" over the rows that count, "sum", or "none" ([N], 0 for one that does not).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts
        0, with zero gradient.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of a class out of range. On a GPU,
            where looking would wait for it, and in compiled code the loss of such a row is NaN.

    Equivalent to::

        cos = F.normalize(embeddings) @ F.normalize(weight).T
        own = F.one_hot(target, C).bool()
        F.cross_entropy(scale * torch.where(own, (cos.acos() + margin).cos(), cos), target)

    Equals `ArcFaceLoss` of pytorch-metric-learning, whose margin is in degrees and whose weight is [D, C].

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    >>> arcface_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=0.5, scale=1.0)
    tensor(0.3477)
    """
    x, w, index = classified(embeddings, "weight", weight, target, ignore_index)
    cos, others = _fold(x, w, index, "similarity", scale=scale, own_scale=1.0)
    sin_squared = 1 - cos.square()
    away = sin_squared > 0
    sin = torch.where(away, sin_squared.where(away, 1.0).sqrt(), 0.0)
    m = margin if isinstance(margin, Tensor) else margin * cos.new_ones(())
    shifted = torch.where(cos >= -m.cos(), cos * m.cos() - sin * m.sin(), cos - m * m.sin())
    return reduce_rows(softplus(others - scale * shifted), reduction, index, x)


def classified(
    embeddings: object, name: str, classes: object, target: object, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked rows, zeros where they are ignored, those of the classes, and the index of every row's class."""
    x = checks.rows("embeddings", embeddings)
    c = checks.same_dimensions("embeddings", x, name, classes)
    x, index = checks.with_classes(x, target, c.shape[0], ignore_index)
    return x, c, index


@options(margin=learnable(), scale=learnable(above=True), ignore_index=label, reduction=one_of(*REDUCTIONS))
def cosface_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, margin: float | Tensor = 0.35, scale: float | Tensor = 64.0,
    ignore_index: int = -100, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""CosFace: softmax over the cosines to every class, whose own class needs a cosine larger by a margin.

    $$ \ell_i = -\log \frac{e^{s (\cos \theta_{iy} - m)}}{e^{s (\cos \theta_{iy} - m)} + \sum_{c \ne y}
       e^{s \cos \theta_{ic}}} $$

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        weight: [C, D], one row a class.
        target: [N], class indices of any integer dtype.
        margin: m, at least 0; a tensor of one element receives its gradient.
        scale: s, above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever they hold, and their gradient is 0.
        reduction: "mean" over the rows that count, "sum", or "none" ([N], 0 for one that does not).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts
        0, with zero gradient.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of a class out of range. On a GPU,
            where looking would wait for it, and in compiled code the loss of such a row is NaN.

    Equivalent to::

        cos = F.normalize(embeddings) @ F.normalize(weight).T
        F.cross_entropy(scale * (cos - margin * F.one_hot(target, C)), target)

    Equals `CosFaceLoss` of pytorch-metric-learning, whose weight is [D, C].

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.

    >>> cosface_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=0.5, scale=1.0)
    tensor(0.4741)
    """
    x, w, index = classified(embeddings, "weight", weight, target, ignore_index)
    cos, others = _fold(x, w, index, "similarity", scale=scale, own_scale=1.0)
    return reduce_rows(softplus(others - scale * (cos - margin)), reduction, index, x)


@options(temperature=learnable(above=True), ignore_index=label, reduction=one_of(*REDUCTIONS))
def normalized_softmax_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, temperature: float | Tensor = 0.05,
    ignore_index: int = -100, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Normalised softmax: cross entropy of the cosines to every class, over a temperature.

    $$ \ell_i = -\log \frac{e^{\cos \theta_{iy} / \tau}}{\sum_c e^{\cos \theta_{ic} / \tau}} $$

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        weight: [C, D], one row a class.
        target: [N], class indices of any integer dtype.
        temperature: above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever they hold, and their gradient is 0.
        reduction: "mean" over the rows that count, "sum", or "none" ([N], 0 for one that does not).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts
        0, with zero gradient.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of a class out of range. On a GPU,
            where looking would wait for it, and in compiled code the loss of such a row is NaN.

    Equivalent to::

        F.cross_entropy(F.normalize(embeddings) @ F.normalize(weight).T / temperature, target)

    Equals `NormalizedSoftmaxLoss` of pytorch-metric-learning, whose weight is [D, C].

    Source: Zhai, Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019.

    >>> normalized_softmax_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0)
    tensor(0.3133)
    """
    x, w, index = classified(embeddings, "weight", weight, target, ignore_index)
    return _cosine_softmax(x, w, index, 1 / temperature, reduction)


def _cosine_softmax(x: Tensor, w: Tensor, index: Tensor, scale: float | Tensor, reduction: str) -> Tensor:
    own, others = _fold(x, w, index, "similarity", scale=scale, own_scale=scale)
    return reduce_rows(softplus(others - own), reduction, index, x)


@options(scale=learnable(above=True), ignore_index=optional(label), reduction=one_of(*REDUCTIONS))
def proxy_nca_loss(
    embeddings: Tensor, proxies: Tensor, target: Tensor, *, scale: float | Tensor = 1.0,
    ignore_index: int | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""ProxyNCA: softmax over the squared distances to every class's proxy, all on the unit sphere.

    $$ \ell_i = -\log \frac{e^{-s \|\hat x_i - \hat p_y\|^2}}{\sum_c e^{-s \|\hat x_i - \hat p_c\|^2}} $$

    On the sphere a squared distance is 2 - 2 cos, so this is `normalized_softmax_loss` of temperature 1 / (2 s). The
    proxy of the own class is in the denominator, as in ProxyNCA++; the paper leaves it out.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        proxies: [C, D], one row a class.
        target: [N], class indices of any integer dtype.
        scale: s, above 0, an inverse temperature; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever they hold, and their gradient is 0. None: every
            target is a class.
        reduction: "mean" over the rows that count, "sum", or "none" ([N], 0 for one that does not).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts
        0, with zero gradient.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of a class out of range. On a GPU,
            where looking would wait for it, and in compiled code the loss of such a row is NaN.

    Equivalent to::

        F.cross_entropy(-scale * torch.cdist(F.normalize(embeddings), F.normalize(proxies)).square(), target)

    Equals `ProxyNCALoss(softmax_scale=scale)` of pytorch-metric-learning, which leaves out rows whose probability is
    below the smallest float.

    Source: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017; Teh, DeVries,
    Taylor, "ProxyNCA++", ECCV 2020.

    >>> proxy_nca_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
    tensor(0.1269)
    """
    x, p, index = classified(embeddings, "proxies", proxies, target, ignore_index)
    return _cosine_softmax(x, p, index, 2 * scale, reduction)


@options(margin=learnable(), alpha=learnable(above=True), ignore_index=optional(label), reduction=one_of(*REDUCTIONS))
def proxy_anchor_loss(
    embeddings: Tensor, proxies: Tensor, target: Tensor, *, margin: float | Tensor = 0.1, alpha: float | Tensor = 32.0,
    ignore_index: int | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Proxy anchor: every class's proxy pulls the rows of its class and pushes all others, the hardest the most.

    $$ \ell = \frac{1}{|P^+|} \sum_{p \in P^+} \log\Bigl(1 + \sum_{x \in X_p} e^{-\alpha (\cos(x, p) - m)}\Bigr)
       + \frac{1}{C} \sum_p \log\Bigl(1 + \sum_{x \notin X_p} e^{\alpha (\cos(x, p) + m)}\Bigr) $$

    where P+ are the proxies of the classes in the batch.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        proxies: [C, D], one row a class.
        target: [N], class indices of any integer dtype.
        margin: m, at least 0; a tensor of one element receives its gradient.
        alpha: above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever they hold, and their gradient is 0. None: every
            target is a class.
        reduction: "mean" as above; "none": one value a proxy ([C]), its pull plus its push; "sum" of these.

    Returns:
        A scalar, or [C] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts
        0, with zero gradient.

    Raises:
        TypeError, ValueError: naming the argument and what was seen; on a CPU also of a class out of range. On a GPU,
            where looking would wait for it, and in compiled code such a class makes the loss NaN.

    Equivalent to::

        cos = F.normalize(proxies) @ F.normalize(embeddings).T
        own = torch.arange(C)[:, None] == target
        pull = (1 + ((-alpha * (cos - margin)).exp() * own).sum(1)).log()
        push = (1 + ((alpha * (cos + margin)).exp() * ~own).sum(1)).log()
        pull.sum() / own.any(1).sum() + push.mean()

    Equals `ProxyAnchorLoss` of pytorch-metric-learning.

    Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020.

    >>> proxy_anchor_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=0.0, alpha=1.0)
    tensor(1.0064)
    """
    x, p, index = classified(embeddings, "proxies", proxies, target, ignore_index)
    own = torch.arange(p.shape[0], device=p.device, dtype=torch.int64)
    batch = checks.Batch(p, x, own, index, None, None if ignore_index is None else checks.IGNORED)
    pos, neg = ops.of("lse", scale=-alpha, bias=alpha * margin), ops.of("lse", scale=alpha, bias=alpha * margin)
    positive, negative = ops.fold(batch, "softmax", "similarity", pos=pos, neg=neg)
    pull, push = softplus(positive), softplus(negative)
    pull = pull + pull.new_zeros(()).masked_fill((index == checks.WRONG).any(), torch.nan)
    if reduction != "mean":
        return reduce(pull + push, reduction, p.shape[0], x)
    present = (positive.detach() > -torch.inf).sum()
    return reduce(pull, "mean", present, x) + reduce(push, "mean", p.shape[0], x)
