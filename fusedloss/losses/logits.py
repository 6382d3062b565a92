"""Losses of given logits: one pass over them forward, one backward, and no other tensor of their size is kept."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import checks, ops
from ..options import flag, integer, number, one_of, optional, options, tensor
from .reduce import REDUCTIONS, focal, reduce, reduce_rows, softplus


@options(
    weight=optional(tensor), ignore_index=integer(low=-(2**63)), label_smoothing=number(high=1.0),
    overwrite_logits=flag, reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def cross_entropy_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    label_smoothing: float = 0.0, overwrite_logits: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Cross entropy of a softmax over the classes.

    ```math
    \ell_i = -\sum_c w_c \Bigl((1 - \epsilon)\, q_{ic} + \frac{\epsilon}{C}\Bigr) \log p_{ic}
    ```

    with p the softmax of the logits, and q the target probabilities, or 1 for the class that an index names.

    Args:
        logits: [N, C] or [N, C, d1, ...], float16, bfloat16, float32 or float64, in any memory format.
        target: class indices [N] or [N, d1, ...] of any integer dtype, or probabilities in the shape of the logits and
            of any floating dtype, which receive their gradient.
        weight: [C], the weight of every class; it receives no gradient.
        ignore_index: rows with this target do not count, whatever their logits are, even NaN; for class indices only.
        label_smoothing: epsilon, from 0 to 1.
        overwrite_logits: let the backward write the gradient into the memory of the logits, so that no second tensor of
            their size is needed. The logits must be a result, such as that of a linear layer, and nothing else may read
            them afterwards; autograd raises an error where it knows of such a reader. Compiled code decides by itself.
        reduction: "mean": the sum divided by the total weight of the rows that count (for probabilities, by the number
            of rows); "sum"; "none" (the shape of an index target, 0 for rows that do not count).

    Returns:
        A scalar, or the terms for "none"; float32 (float64 for float64 logits). If no row counts, it is 0 with zero
            gradient, where torch gives NaN.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    F.cross_entropy(logits.float(), target, weight, label_smoothing=label_smoothing)
    ```

    It stays exact where p is so near 1 that log p is 0 in float32, and where logits are large: a constant added to them
    changes nothing. A class left out by a logit of -inf costs nothing where its probability is 0 (NaN in torch).
    As in torch, any probabilities are taken: they need not add up to 1, and are not checked.

    Source: `torch.nn.functional.cross_entropy`.

    Examples:
        >>> cross_entropy_loss(torch.eye(2), torch.tensor([0, 1]))
        tensor(0.3133)
    """
    z = checks.logits(logits, overwrite_logits, classes=True)
    if not isinstance(target, Tensor) or not target.is_floating_point():
        return _of_index(z, target, weight, ignore_index, label_smoothing, 0.0, overwrite_logits, reduction)
    checks.like_logits("target", target, z, constant=False)
    if ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative where target has probabilities, got {ignore_index}")
    w = None if weight is None else checks.of_each("weight", weight, "class", z.shape[1], z, constant=True)
    z_rows, q_rows = _rows(z, target)
    *_, terms = ops.fold_logits(z_rows, q_rows, w, label_smoothing, shares=True, overwrite=overwrite_logits)
    return _shaped(reduce(terms, reduction, terms.shape[0], z), z)


def _of_index(
    z: Tensor, target: object, weight: Tensor | None, ignore_index: int, smoothing: float, gamma: float,
    overwrite: bool, reduction: str,
) -> Tensor:  # fmt: skip
    """The cross entropy of class indices, or the focal loss if gamma is above 0."""
    C = z.shape[1]
    index = checks.class_indices("target", target, z.shape[:1] + z.shape[2:], C, z, ignore_index)
    w = None if weight is None else checks.of_each("weight", weight, "class", C, z, constant=True)
    own, others, *cost = ops.fold_logits(_rows(z)[0], index, w, smoothing, shares=smoothing > 0, overwrite=overwrite)
    weights = None if w is None else w.to(own.dtype)[index.clamp(min=0)]
    if cost:
        return _shaped(reduce_rows(cost[0], reduction, index, z, weights), z)
    terms = softplus(others - own) if weights is None else weights * softplus(others - own)
    if gamma:
        terms = terms * focal(others - own, gamma)
    return _shaped(reduce_rows(terms, reduction, index, z, weights), z)


def _rows(z: Tensor, *alike: Tensor) -> list[Tensor]:
    """Tensors [N, C, d1, ...] as contiguous [N, C, P], or as [N P, C, 1] where the memory format is channels last."""
    if z.dim() > 2 and z.movedim(1, -1).is_contiguous():
        return [t.movedim(1, -1).flatten(0, -2)[..., None].contiguous() for t in (z, *alike)]
    return [t.unsqueeze(-1).flatten(2).contiguous() for t in (z, *alike)]


def _shaped(loss: Tensor, z: Tensor) -> Tensor:
    """A loss of rows in the shape of their target."""
    return loss.view(z.shape[:1] + z.shape[2:]) if loss.dim() else loss


@options(
    gamma=number(), weight=optional(tensor), ignore_index=integer(low=-(2**63)), overwrite_logits=flag,
    reduction=one_of(*REDUCTIONS),
)  # fmt: skip
def focal_loss(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None, ignore_index: int = -100,
    overwrite_logits: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Focal loss of a softmax over the classes: rows that are already right count less.

    ```math
    \ell_i = -w_y (1 - p_{iy})^\gamma \log p_{iy}
    ```

    Args:
        logits: [N, C] or [N, C, d1, ...], float16, bfloat16, float32 or float64, in any memory format.
        target: class indices [N] or [N, d1, ...] of any integer dtype.
        gamma: at least 0; 0 gives cross entropy.
        weight: [C], the weight of every class; it receives no gradient.
        ignore_index: rows with this target do not count, whatever their logits are, even NaN.
        overwrite_logits: let the backward write the gradient into the memory of the logits, see `cross_entropy_loss`.
        reduction: "mean": the sum divided by the total weight of the rows that count; "sum"; "none" (the shape of the
            target, 0 for rows that do not count).

    Returns:
        A scalar, or the terms for "none"; float32 (float64 for float64 logits). If no row counts, it is 0 with zero
            gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    p = logits.softmax(1).gather(1, target[:, None])
    (-((1 - p) ** gamma) * p.log()).mean()
    ```

    Its gradient is finite at p = 1 for gamma below 1 too.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples:
        >>> focal_loss(torch.eye(2), torch.tensor([0, 1]))
        tensor(0.0227)
    """
    z = checks.logits(logits, overwrite_logits, classes=True)
    return _of_index(z, target, weight, ignore_index, 0.0, gamma, overwrite_logits, reduction)


@options(weight=optional(tensor), pos_weight=optional(tensor), overwrite_logits=flag, reduction=one_of(*REDUCTIONS))
def binary_cross_entropy_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, pos_weight: Tensor | None = None,
    overwrite_logits: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Binary cross entropy of every logit.

    ```math
    \ell = -w \bigl(v\, t \log \sigma(z) + (1 - t) \log \sigma(-z)\bigr)
    ```

    Args:
        logits: z, of any shape, float16, bfloat16, float32 or float64.
        target: t, from 0 to 1, in the shape of the logits and of any floating, integer or bool dtype; it receives no
            gradient.
        weight: w, the weight of every element, in a shape that broadcasts to that of the logits; it receives no
            gradient.
        pos_weight: v, the weight of the positive part, in a shape that broadcasts likewise: [C] for one per column.
        overwrite_logits: let the backward write the gradient into the memory of the logits, see `cross_entropy_loss`.
        reduction: "mean" over the elements, "sum", or "none" (the shape of the logits).

    Returns:
        A scalar, or the terms for "none"; float32 (float64 for float64 logits). Without elements it is 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A target below 0 or above 1
            is an error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the
            loss of such a target has no meaning.

    Equivalent to:

    ```python
    F.binary_cross_entropy_with_logits(logits, target, weight, pos_weight=pos_weight)
    ```

    Source: `torch.nn.functional.binary_cross_entropy_with_logits`.

    Examples:
        >>> binary_cross_entropy_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]))
        tensor(0.7201)
    """
    z = checks.logits(logits, overwrite_logits)
    w = None if weight is None else checks.factors("weight", weight, z)
    pw = None if pos_weight is None else checks.factors("pos_weight", pos_weight, z)
    return _of_elements(z, target, "binary_cross_entropy", [], overwrite_logits, reduction, w, pw)


def _of_elements(
    z: Tensor, target: object, loss: str, numbers: list[float], overwrite: bool, reduction: str,
    weight: Tensor | None = None, pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    t, total = checks.answers("target", target, z), reduction != "none"
    terms = ops.fold_elements(z.contiguous(), t, weight, pos_weight, loss, numbers, total=total, overwrite=overwrite)
    return reduce(terms, reduction, z.numel(), z)


def _alpha(name: str, value: object) -> Any:
    """A share from 0 to 1, or -1 for no weights."""
    return -1 if isinstance(value, int | float) and value == -1 else checks.number(name, value, high=1.0)


@options(alpha=_alpha, gamma=number(), overwrite_logits=flag, reduction=one_of(*REDUCTIONS))
def sigmoid_focal_loss(
    logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean", *,
    overwrite_logits: bool = False,
) -> Tensor:  # fmt: skip
    r"""Focal loss of every logit by itself, as detectors use it.

    ```math
    \ell = -\alpha_t (1 - p_t)^\gamma \bigl(t \log p + (1 - t) \log(1 - p)\bigr), \quad
       p_t = p\, t + (1 - p)(1 - t), \quad \alpha_t = \alpha\, t + (1 - \alpha)(1 - t)
    ```

    with p the sigmoid of the logit.

    Args:
        logits: any shape; float16, bfloat16, float32 or float64.
        target: t, from 0 to 1, in the shape of the logits and of any floating, integer or bool dtype; it receives no
            gradient.
        alpha: the weight of the positives, from 0 to 1, or -1 for no weights.
        gamma: at least 0; 0 gives binary cross entropy.
        overwrite_logits: let the backward write the gradient into the memory of the logits, see `cross_entropy_loss`.
        reduction: "mean" over the elements, "sum", or "none" (the shape of the logits).

    Returns:
        A scalar, or the terms for "none"; float32 (float64 for float64 logits). Without elements it is 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A target below 0 or above 1
            is an error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the
            loss of such a target has no meaning.

    Equivalent to:

    ```python
    p = logits.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = alpha * target + (1 - alpha) * (1 - target)
    (alpha_t * (1 - p_t) ** gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean()
    ```

    It equals `sigmoid_focal_loss` of torchvision, whose default reduction is "none". Where 1 - p_t is 0, torchvision's
    gradient is NaN for gamma below 1; here it is finite.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples:
        >>> sigmoid_focal_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]))
        tensor(0.0880)
    """
    z = checks.logits(logits, overwrite_logits)
    return _of_elements(z, target, "sigmoid_focal", [alpha, gamma], overwrite_logits, reduction)
