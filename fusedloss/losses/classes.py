"""Losses of embeddings and one learned row per class: the logits [N, C] never exist, see `classified`.

As in `towers`, the loss of a row is softplus(log sum exp of the other classes' logits - the logit of its own class).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import checks, groups
from ..backends.dtypes import loss_dtype
from ..options import integer, label, learnable, learnables, number, one_of, optional, options, tensor
from . import closings
from .classified import Classified, Logits, centered, class_gap, class_logits, classified, cosine_logits
from .reduce import REDUCTIONS, at_least_one, focal, reduce_rows, softplus

SUB_CENTERS = 8  # the most that a class may have: every tile has as many columns


def _weights(class_weight: Tensor | None, c: Classified) -> tuple[Tensor | None, Tensor | None]:
    """The weights of the classes [C], and for every row the weight of its class [N]."""
    if class_weight is None:
        return None, None
    w = checks.of_each("class_weight", class_weight, "class", c.C, c.x, constant=True).to(loss_dtype(c.x))
    return w, w[c.target.clamp(min=0)] if c.C else w.new_zeros(c.target.shape)


def _entropy(z: Logits, smoothing: float, count: int, weights: Tensor | None, of_row: Tensor | None) -> Tensor:
    """The cross entropy of every row [N] for smoothed targets, times the weight of its class."""
    terms = softplus(z.others - z.own)
    if z.total is None:
        return terms if of_row is None else of_row * terms
    share = smoothing / at_least_one(count)
    if weights is None or of_row is None:
        return terms + smoothing * z.own - share * (z.own + z.total)
    whole = weights.sum()
    return ((1 - smoothing) * of_row + share * whole) * terms + share * ((whole - of_row) * z.own - z.total)


@options(
    bias=optional(tensor), gamma=number(), class_weight=optional(tensor), z_loss=number(),
    softcap=optional(number(above=True)), ignore_index=label, label_smoothing=number(high=1.0),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def linear_cross_entropy_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, gamma: float = 0.0,
    class_weight: Tensor | None = None, z_loss: float = 0.0, softcap: float | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Cross entropy of a linear classifier, or its focal form, without the logits. Memory is O((N + C) D).

    ```math
    \ell_i = (1 - p_{iy})^\gamma \Bigl(-(1 - \epsilon) \log p_{iy} - \frac{\epsilon}{C} \sum_c \log p_{ic}\Bigr),
       \quad p_i = \operatorname{softmax}(W x_i + b)
    ```

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        weight: W, [C, D], like the weight of `torch.nn.Linear(D, C)`.
        target: [N], class indices of any integer dtype.
        bias: b, [C], of any floating dtype.
        gamma: at least 0; where it is above 0, rows that are already right count less (focal loss).
        class_weight: [C], the weight that every class gives its rows, like torch's `weight`; it receives no gradient.
        z_loss: the factor of a penalty, the squared log sum exp of a row's logits, which keeps the logits from growing;
            `class_weight` does not apply to it.
        softcap: t; the logits become t tanh(logit / t), as in Gemma 2. None: they stay as they are.
        ignore_index: rows with this target do not count, whatever values they have, even NaN.
        label_smoothing: epsilon, from 0 to 1.
        reduction: "mean" over the rows that count, weighted by `class_weight`; "sum"; or "none" ([N], 0 for rows that
            do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). If no row counts, it is 0 with zero gradient,
            where torch gives NaN.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    logits = F.linear(embeddings, weight, bias)  # with softcap: softcap * (logits / softcap).tanh()
    F.cross_entropy(logits, target, class_weight, label_smoothing=label_smoothing)  # gamma = 0
    ```

    Source: `torch.nn.functional.cross_entropy`; without the logits, Wijmans et al., "Cut Your Losses in
    Large-Vocabulary Language Models", ICLR 2025; gamma, Lin et al., "Focal Loss for Dense Object Detection", ICCV
    2017; z_loss, Chowdhery et al., "PaLM", 2022; softcap, Gemma Team, "Gemma 2", 2024.

    Examples:
        >>> linear_cross_entropy_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
        tensor(0.3133)
    """
    c = classified(embeddings, "weight", weight, target, ignore_index)
    weights, of_row = _weights(class_weight, c)
    b = cut = None
    if bias is not None:
        b = checks.of_each("bias", bias, "class", c.classes.shape[0], c.x, constant=False).to(loss_dtype(c.x))
        cut = None if softcap else _constant(b)  # a common constant changes no softmax, unless capped
        b = b if cut is None else b - cut
    loss, numbers = ("softmax", {"scale": 1.0}) if softcap is None else ("capped", {"cap": softcap})
    if not label_smoothing and not gamma and not z_loss:
        found = class_gap(c, loss, "dot", numbers, numbers, reduction, of_row, bias=b)
        if found is not None:
            return found
    z = class_logits(c, loss, "dot", numbers, numbers, bias=b, smooth=label_smoothing > 0, class_weight=weights)
    terms = _entropy(z, label_smoothing, c.C, weights, of_row)
    if gamma:
        terms = terms * focal(z.others - z.own, gamma)
    entropy = reduce_rows(terms, reduction, c.target, c.x, of_row)
    if not z_loss:
        return entropy
    log_sum = z.own + softplus(z.others - z.own) + (0.0 if cut is None else cut)
    return entropy + reduce_rows(z_loss * log_sum.square(), reduction, c.target, c.x)


def _constant(bias: Tensor) -> Tensor:
    """A constant to take off all biases: the one nearest to 0 if all have the same sign, otherwise 0."""
    if bias.shape[0] == 0:
        return bias.new_zeros(())
    low, high = bias.detach().aminmax()
    if (group := groups.sharded()) is not None:
        low, high = group.most(torch.stack([-low, high])).unbind()
        low = -low
    return low.clamp(min=0) + high.clamp(max=0)


@options(
    margin=learnables(high=math.pi, unit="radians"), scale=learnable(above=True), ignore_index=label,
    class_weight=optional(tensor), label_smoothing=number(high=1.0), sub_centers=integer(low=1, high=SUB_CENTERS),
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def arcface_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, margin: float | Tensor = 0.5, scale: float | Tensor = 64.0,
    ignore_index: int = -100, class_weight: Tensor | None = None, label_smoothing: float = 0.0, sub_centers: int = 1,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""ArcFace: softmax over the cosines to every class, in which the own class's angle must be smaller by a margin.

    ```math
    \ell_i = -\log \frac{e^{s \cos(\theta_{iy} + m)}}{e^{s \cos(\theta_{iy} + m)} + \sum_{c \ne y}
       e^{s \cos \theta_{ic}}}
    ```

    Where the angle plus the margin is beyond pi, cos(theta) - m sin(m) takes the place of cos(theta + m), which would
    rise again. The derivative of cos(theta + m) by the cosine has no limit at angle 0. Where the cosine is exactly 1,
    the part with 1 / sin(theta) is taken as 0, so that gradients are finite everywhere.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        weight: [C, D], one row per class; [C, K, D] with `sub_centers`.
        target: [N], class indices of any integer dtype.
        margin: m in radians, from 0 to pi (0.5 is 28.6 degrees); or [N], one per row, which may be negative. For one
            margin per class, pass `margins[target]`. A tensor receives its gradient.
        scale: s, above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0.
        class_weight: [C], the weight that every class gives its rows, like torch's `weight`; it receives no gradient.
        label_smoothing: epsilon, from 0 to 1, the share of the target that is spread evenly over all classes.
        sub_centers: K, from 1 to 8, the rows of each class. The cosine of a class is that of its nearest row, which
            helps with noisy or varied classes (Deng et al., "Sub-center ArcFace", ECCV 2020).
        reduction: "mean" over the rows that count, weighted by `class_weight`; "sum"; or "none" ([N], 0 for rows that
            do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts, it is 0 with
            zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    cos = F.normalize(embeddings) @ F.normalize(weight).T
    own = F.one_hot(target, C).bool()
    F.cross_entropy(scale * torch.where(own, (cos.acos() + margin).cos(), cos), target)
    ```

    It equals `ArcFaceLoss` of pytorch-metric-learning, whose margin is in degrees and whose weight is [D, C]. Losses
    that choose a margin for every row are this one with a formula for the margin:

    ```python
    # ElasticFace: a margin drawn anew for every row
    arcface_loss(x, weight, target, margin=(0.5 + 0.05 * torch.randn(N)).clamp(0, torch.pi))
    # MagFace: wider for longer rows; the length stands for the quality of the picture
    length = x.norm(dim=1).clamp(10, 110)
    arcface_loss(x, weight, target, margin=0.45 + 0.35 * (length - 10) / 100)
    ```

    A margin that is not only an angle, as in AdaFace, can be expressed with `cosface_loss`.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    Examples:
        >>> arcface_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=0.5, scale=1.0)
        tensor(0.3477)
    """
    c = centered(embeddings, weight, target, ignore_index, sub_centers)
    weights, of_row = _weights(class_weight, c)
    if not label_smoothing and isinstance(margin, float) and isinstance(scale, float):
        constants = scale, math.cos(margin), math.sin(margin), margin * math.sin(margin) if margin >= 0 else math.inf
        found = _margin_gap(c, scale, reduction, of_row, closings.arcface, constants)
        if found is not None:
            return found
    z = _cosines(c, scale, label_smoothing > 0, weights)
    m = _margins(margin, c, z.own)
    straight = torch.where(m < 0, math.inf, m * m.sin())
    own = scale * closings.with_angle(z.own, m.cos(), m.sin(), straight)
    terms = _entropy(z._replace(own=own), label_smoothing, c.C, weights, of_row)
    return reduce_rows(terms, reduction, c.target, c.x, of_row)


def _margin_gap(
    c: Classified, scale: float, reduction: str, of_row: Tensor | None, closing: Callable[..., closings.Means],
    constants: tuple[float, ...],
) -> Tensor | None:  # fmt: skip
    """`class_gap` of cosines, where the closing formula moves the cosine of the own class and then scales it."""
    numbers, own = {"scale": scale}, {"scale": 1.0}
    return class_gap(
        c, "softmax", "similarity", numbers, own, reduction, of_row, closing=closing, constants=constants
    )  # fmt: skip


def _cosines(c: Classified, scale: float | Tensor, smooth: bool, class_weight: Tensor | None) -> Logits:
    """Logits that are scaled cosines, except that of the own class, which is the cosine itself."""
    numbers = {"scale": scale}
    return class_logits(c, "softmax", "similarity", numbers, {"scale": 1.0}, smooth=smooth, class_weight=class_weight)


def _margins(margin: float | Tensor, c: Classified, like: Tensor) -> Tensor:
    """One margin for all rows, or one per row, 0 for rows without a class."""
    if not isinstance(margin, Tensor):
        return margin * like.new_ones(())
    if margin.dim() == 0:
        return margin
    found = checks.of_each("margin", margin, "row", c.x.shape[0], c.x, constant=False)
    return found.to(like.dtype).masked_fill(c.target < 0, 0.0)


@options(
    margin=learnables(), scale=learnable(above=True), ignore_index=label, class_weight=optional(tensor),
    label_smoothing=number(high=1.0), sub_centers=integer(low=1, high=SUB_CENTERS), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def cosface_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, margin: float | Tensor = 0.35, scale: float | Tensor = 64.0,
    ignore_index: int = -100, class_weight: Tensor | None = None, label_smoothing: float = 0.0, sub_centers: int = 1,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""CosFace: softmax over the cosines to every class, in which the own class's cosine must be larger by a margin.

    ```math
    \ell_i = -\log \frac{e^{s (\cos \theta_{iy} - m)}}{e^{s (\cos \theta_{iy} - m)} + \sum_{c \ne y}
       e^{s \cos \theta_{ic}}}
    ```

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        weight: [C, D], one row per class; [C, K, D] with `sub_centers`.
        target: [N], class indices of any integer dtype.
        margin: m, at least 0; or [N], one per row, which may be negative. For one margin per class, pass
            `margins[target]`. A tensor receives its gradient.
        scale: s, above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0.
        class_weight: [C], the weight that every class gives its rows, like torch's `weight`; it receives no gradient.
        label_smoothing: epsilon, from 0 to 1, the share of the target that is spread evenly over all classes.
        sub_centers: K, from 1 to 8, the rows of each class. The cosine of a class is that of its nearest row, which
            helps with noisy or varied classes (Deng et al., "Sub-center ArcFace", ECCV 2020).
        reduction: "mean" over the rows that count, weighted by `class_weight`; "sum"; or "none" ([N], 0 for rows that
            do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts, it is 0 with
            zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    cos = F.normalize(embeddings) @ F.normalize(weight).T
    F.cross_entropy(scale * (cos - margin * F.one_hot(target, C)), target)
    ```

    It equals `CosFaceLoss` of pytorch-metric-learning, whose weight is [D, C]. Since the margin receives its gradient,
    any logit of the own class can be expressed by one: the margin is the cosine less that logit. In AdaFace, for
    example, the margin depends on the quality of the picture, for which the length of the row stands:

    ```python
    length = x.norm(dim=1).detach()
    quality = ((length - mean) / (std + 1e-3) * 0.333).clamp(-1, 1)  # of running means and deviations
    cos = F.cosine_similarity(x, weight[target])
    theta = cos.clamp(-1 + 1e-3, 1 - 1e-3).acos()
    own = (theta - 0.4 * quality).clamp(1e-3, torch.pi - 1e-3).cos() - (0.4 + 0.4 * quality)
    cosface_loss(x, weight, target, margin=cos - own, scale=64.0)
    ```

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.

    Examples:
        >>> cosface_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=0.5, scale=1.0)
        tensor(0.4741)
    """
    c = centered(embeddings, weight, target, ignore_index, sub_centers)
    weights, of_row = _weights(class_weight, c)
    if not label_smoothing and isinstance(margin, float) and isinstance(scale, float):
        found = _margin_gap(c, scale, reduction, of_row, closings.cosface, (scale, margin))
        if found is not None:
            return found
    z = _cosines(c, scale, label_smoothing > 0, weights)
    own = scale * (z.own - _margins(margin, c, z.own))
    terms = _entropy(z._replace(own=own), label_smoothing, c.C, weights, of_row)
    return reduce_rows(terms, reduction, c.target, c.x, of_row)


@options(
    temperature=learnable(above=True), ignore_index=label, class_weight=optional(tensor),
    label_smoothing=number(high=1.0), sub_centers=integer(low=1, high=SUB_CENTERS), reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def normalized_softmax_loss(
    embeddings: Tensor, weight: Tensor, target: Tensor, *, temperature: float | Tensor = 0.05,
    ignore_index: int = -100, class_weight: Tensor | None = None, label_smoothing: float = 0.0, sub_centers: int = 1,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Normalised softmax: cross entropy of the cosines to every class, divided by a temperature.

    ```math
    \ell_i = -\log \frac{e^{\cos \theta_{iy} / \tau}}{\sum_c e^{\cos \theta_{ic} / \tau}}
    ```

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        weight: [C, D], one row per class; [C, K, D] with `sub_centers`.
        target: [N], class indices of any integer dtype.
        temperature: above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0.
        class_weight: [C], the weight that every class gives its rows, like torch's `weight`; it receives no gradient.
        label_smoothing: epsilon, from 0 to 1, the share of the target that is spread evenly over all classes.
        sub_centers: K, from 1 to 8, the rows of each class. The cosine of a class is that of its nearest row, which
            helps with noisy or varied classes (Deng et al., "Sub-center ArcFace", ECCV 2020).
        reduction: "mean" over the rows that count, weighted by `class_weight`; "sum"; or "none" ([N], 0 for rows that
            do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts, it is 0 with
            zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    F.cross_entropy(F.normalize(embeddings) @ F.normalize(weight).T / temperature, target)
    ```

    It equals `NormalizedSoftmaxLoss` of pytorch-metric-learning, whose weight is [D, C].

    Source: Zhai, Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019.

    Examples:
        >>> normalized_softmax_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0)
        tensor(0.3133)
    """
    c = centered(embeddings, weight, target, ignore_index, sub_centers)
    weights, of_row = _weights(class_weight, c)
    numbers = {"scale": 1 / temperature}
    found = None if label_smoothing else class_gap(c, "softmax", "similarity", numbers, numbers, reduction, of_row)
    if found is not None:
        return found
    z = cosine_logits(c, 1 / temperature, label_smoothing > 0, weights)
    return reduce_rows(_entropy(z, label_smoothing, c.C, weights, of_row), reduction, c.target, c.x, of_row)
