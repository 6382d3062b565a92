"""Losses of embeddings and a learned proxy of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, ops
from ..backends.dtypes import loss_dtype
from ..options import label, learnable, one_of, optional, options
from . import closings
from .classified import class_gap, class_of, classified, compared, cosine_logits
from .closings import closed
from .reduce import REDUCTIONS, reduce, reduce_rows, softplus


@options(scale=learnable(above=True), ignore_index=optional(label), reduction=one_of(*REDUCTIONS))
def proxy_nca_loss(
    embeddings: Tensor, proxies: Tensor, target: Tensor, *, scale: float | Tensor = 1.0,
    ignore_index: int | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""ProxyNCA: softmax over the negative squared distances to every class's proxy, all on the unit sphere.

    ```math
    \ell_i = -\log \frac{e^{-s \|\hat x_i - \hat p_y\|^2}}{\sum_c e^{-s \|\hat x_i - \hat p_c\|^2}}
    ```

    On the sphere a squared distance is 2 - 2 cos, so this is `normalized_softmax_loss` of temperature 1 / (2 s). The
    proxy of the own class is in the denominator, as in ProxyNCA++; the paper leaves it out.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        proxies: [C, D], one row per class.
        target: [N], class indices of any integer dtype.
        scale: s, above 0, an inverse temperature; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0. None:
            every target is a class.
        reduction: "mean" over the rows that count, "sum", or "none" ([N], 0 for rows that do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts, it is 0 with
            zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a row is NaN.

    Equivalent to:

    ```python
    F.cross_entropy(-scale * torch.cdist(F.normalize(embeddings), F.normalize(proxies)).square(), target)
    ```

    It equals `ProxyNCALoss(softmax_scale=scale)` of pytorch-metric-learning, except that the library leaves out rows
    whose probability is below the smallest float.

    Source: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017; Teh, DeVries,
    Taylor, "ProxyNCA++", ECCV 2020.

    Examples:
        >>> proxy_nca_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
        tensor(0.1269)
    """
    c = classified(embeddings, "proxies", proxies, target, ignore_index)
    numbers = {"scale": 2 * scale}
    loss = class_gap(c, "softmax", "similarity", numbers, numbers, reduction)
    if loss is not None:
        return loss
    z = cosine_logits(c, 2 * scale)
    return reduce_rows(softplus(z.others - z.own), reduction, c.target, c.x)


@options(margin=learnable(), alpha=learnable(above=True), ignore_index=optional(label), reduction=one_of(*REDUCTIONS))
def proxy_anchor_loss(
    embeddings: Tensor, proxies: Tensor, target: Tensor, *, margin: float | Tensor = 0.1, alpha: float | Tensor = 32.0,
    ignore_index: int | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Proxy anchor: every class's proxy pulls the rows of its class and pushes all others, the hardest the most.

    ```math
    \ell = \frac{1}{|P^+|} \sum_{p \in P^+} \log\Bigl(1 + \sum_{x \in X_p} e^{-\alpha (\cos(x, p) - m)}\Bigr)
       + \frac{1}{C} \sum_p \log\Bigl(1 + \sum_{x \notin X_p} e^{\alpha (\cos(x, p) + m)}\Bigr)
    ```

    where P+ are the proxies of the classes in the batch.

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64; norms are clamped to at least 1e-8.
        proxies: [C, D], one row per class.
        target: [N], class indices of any integer dtype.
        margin: m, at least 0; a tensor of one element receives its gradient.
        alpha: the sharpness, above 0; a tensor of one element receives its gradient.
        ignore_index: rows with this target do not count, whatever values they have, and their gradient is 0. None:
            every target is a class.
        reduction: "mean": the formula above; "none": the pull plus the push of every proxy, [C]; "sum": their sum.

    Returns:
        A scalar, or [C] for "none"; float32 (float64 for float64 inputs), at least 0. If no row counts, it is 0 with
            zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A class out of range is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, it makes the
            loss NaN.

    Equivalent to:

    ```python
    cos = F.normalize(proxies) @ F.normalize(embeddings).T
    own = torch.arange(C)[:, None] == target
    pull = (1 + ((-alpha * (cos - margin)).exp() * own).sum(1)).log()
    push = (1 + ((alpha * (cos + margin)).exp() * ~own).sum(1)).log()
    pull.sum() / own.any(1).sum() + push.mean()
    ```

    It equals `ProxyAnchorLoss` of pytorch-metric-learning.

    Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020.

    Examples:
        >>> proxy_anchor_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), margin=0.0, alpha=1.0)
        tensor(1.0064)
    """
    c = classified(embeddings, "proxies", proxies, target, ignore_index)
    (x, index), p = compared(c), c.classes
    batch = checks.Batch(p, x, class_of(c), index, None, None if ignore_index is None else checks.IGNORED)
    pos, neg = ops.of("lse", scale=-alpha, bias=alpha * margin), ops.of("lse", scale=alpha, bias=alpha * margin)
    none = torch.zeros((), dtype=loss_dtype(x), device=x.device)
    wrong = none.masked_fill((index == checks.WRONG).any(), torch.nan)
    if reduction == "mean":
        loss = closed(
            batch, "softmax", "similarity", closings.proxy_anchor, reduction, p.shape[0], pos=pos, neg=neg
        )  # fmt: skip
        return loss + wrong
    positive, negative = ops.fold(batch, "softmax", "similarity", pos=pos, neg=neg)
    return reduce(softplus(positive) + softplus(negative) + wrong, reduction, p.shape[0], x)
