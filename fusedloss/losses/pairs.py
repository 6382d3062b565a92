"""Losses of given pairs, a row of x1 with the same row of x2, and of their order."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, ops
from ..backends.dtypes import loss_dtype, state_dtype
from ..checks import METRICS
from ..options import learnable, one_of, options
from .reduce import OF_HINGES, REDUCTIONS, reduce, softplus


@options(margin=learnable(), metric=one_of(*METRICS), similar=one_of(0, 1), reduction=one_of(*OF_HINGES))
def contrastive_loss(
    x1: Tensor, x2: Tensor, target: Tensor, *,
    margin: float | Tensor = 1.0, metric: str = "euclidean", similar: int = 1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Contrastive loss of given pairs: similar pairs are pulled together, others are pushed at least `margin` apart.

    ```math
    \ell_i = \tfrac12 d_i^2 \text{ if similar, else } \tfrac12 \max(0, m - d_i)^2, \quad d_i = d(x1_i, x2_i)
    ```

    Args:
        x1: embeddings [N, D], float16, bfloat16, float32 or float64.
        x2: embeddings [N, D]; row i is paired with row i of `x1`.
        target: [N]. A pair is similar where its target equals `similar`. A floating target between 0 and 1 is graded:
            with `similar=1` the pair costs that share of the similar term and the remaining share of the dissimilar
            one, with 0 the other way round. It receives no gradient.
        similar: 1 or 0. With 1, targets may be bool, {0, 1} or {-1, +1}; 0 is the convention of the paper.
        margin: distance beyond which a dissimilar pair costs nothing; a tensor of one element receives its gradient.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos) or "manhattan".
        reduction: "mean" over the pairs, "active" (the mean over the pairs that cost something), "sum", or "none" (one
            value per pair).

    Returns:
        A scalar, or [N] for reduction "none"; float32 (float64 for float64 inputs). N = 0 gives 0.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. Any other target is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss of
            such a pair is NaN if the target is floating.

    Equivalent to (euclidean):

    ```python
    d = (x1 - x2).norm(dim=1)
    torch.where(target == 1, d**2, F.relu(margin - d) ** 2).mean() / 2
    ```

    Source: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006.

    Examples:
        >>> x1, x2 = torch.zeros(2, 1), torch.tensor([[2.0], [1.0]])
        >>> contrastive_loss(x1, x2, torch.tensor([1, 0]), margin=2.0, reduction="none")
        tensor([2.0000, 0.5000])
    """
    return _given_pairs_hinge(x1, x2, target, margin, metric, similar, reduction, scale=0.5)


@options(margin=learnable(), similar=one_of(0, 1), reduction=one_of(*OF_HINGES))
def euclidean_distance_loss(
    x1: Tensor, x2: Tensor, target: Tensor, *, margin: float | Tensor = 1.0, similar: int = 1, reduction: str = "mean"
) -> Tensor:
    r"""Contrastive loss of given pairs without the factor 1/2, on the euclidean distance.

    ```math
    \ell_i = d_i^2 \text{ if similar, else } \max(0, m - d_i)^2, \quad d_i = \|x1_i - x2_i\|
    ```

    The arguments, the result and the errors are those of `contrastive_loss`.

    Equivalent to:

    ```python
    d = (x1 - x2).norm(dim=1)
    torch.where(target == 1, d**2, F.relu(margin - d) ** 2).mean()
    ```

    Examples:
        >>> x1, x2 = torch.zeros(2, 1), torch.tensor([[2.0], [1.0]])
        >>> euclidean_distance_loss(x1, x2, torch.tensor([1, 0]), margin=2.0, reduction="none")
        tensor([4., 1.])
    """
    return _given_pairs_hinge(x1, x2, target, margin, "euclidean", similar, reduction, scale=1.0)


def _given_pairs_hinge(
    x1: Tensor, x2: Tensor, target: Tensor, margin: float | Tensor, metric: str, similar: int, reduction: str,
    scale: float,
) -> Tensor:  # fmt: skip
    x1, x2 = checks.given_rows(("x1", "x2"), (x1, x2))
    share = checks.similar_pairs(target, similar, x1)
    if metric == "cosine":
        cos = ops.row_distances(x1, x2, None, "similarity")[0]
        d, short = 1 - cos, F.relu(cos - (1 - margin))  # from the cosine itself: 1 - (1 - cos) loses small cosines
    else:
        d = ops.row_distances(x1, x2, None, metric)[0]
        short = F.relu(-(d - margin))  # margin - d, written so that compiled code lets the margin vary
    loss = reduce(_graded(share, d, short, torch.square), reduction, d.shape[0], x1)
    return loss if scale == 1 else scale * loss


def _graded(
    share: Tensor, similar: Tensor, dissimilar: Tensor, cost: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """The loss of each pair: its share of the similar term plus the remaining share of the dissimilar one. A bool takes
    one term, even if the other is not finite. [N]"""
    if share.dtype == torch.bool:
        return cost(torch.where(share, similar, dissimilar))
    similar, dissimilar = similar.masked_fill(share == 0, 0.0), dissimilar.masked_fill(share == 1, 0.0)
    return share * cost(similar) + (1 - share) * cost(dissimilar)


def _given_cosines(x1: Tensor, x2: Tensor, target: Tensor, similar: int) -> tuple[Tensor, Tensor]:
    """How similar the pairs ought to be, see `checks.similar_pairs`, and their cosines. [N] each"""
    x1, x2 = checks.given_rows(("x1", "x2"), (x1, x2))
    return checks.similar_pairs(target, similar, x1), ops.row_distances(x1, x2, None, "similarity")[0]


@options(similar=one_of(0, 1), reduction=one_of(*REDUCTIONS))
def cosine_similarity_loss(
    x1: Tensor, x2: Tensor, target: Tensor | None = None, *, similar: int = 1, reduction: str = "mean"
) -> Tensor:
    r"""Cosine similarity of given pairs as a loss between 0 and 1.

    ```math
    \ell_i = 1 - s_i \text{ if similar, else } s_i, \quad s_i = \tfrac12 (1 + \cos(x1_i, x2_i))
    ```

    Without `target` every pair is similar and the value is the cosine distance 1 - cos, between 0 and 2. Norms are
    clamped to at least 1e-8. The loss is not a hinge, so `reduction` cannot be "active". The arguments, the result and
    the errors are otherwise those of `contrastive_loss`.

    Equivalent to:

    ```python
    s = (1 + F.cosine_similarity(x1, x2)) / 2
    torch.where(target == 1, 1 - s, s).mean()  # without target: (1 - F.cosine_similarity(x1, x2)).mean()
    ```

    Examples:
        >>> x = torch.eye(2)
        >>> cosine_similarity_loss(x, x.flip(0), torch.tensor([1, 0]), reduction="none")
        tensor([0.5000, 0.5000])
    """
    if target is None:
        checks.one_of("reduction", reduction, REDUCTIONS)
        checks.one_of("similar", similar, (0, 1))
        x1, x2 = checks.given_rows(("x1", "x2"), (x1, x2))
        d = ops.row_distances(x1, x2, None, "cosine")[0]
        return reduce(d, reduction, d.shape[0], x1)
    share, cos = _given_cosines(x1, x2, target, similar)
    return reduce(0.5 * _graded(share, 1 - cos, 1 + cos), reduction, cos.shape[0], x1)


@options(margin=learnable(low=-1.0), similar=one_of(0, 1), reduction=one_of(*OF_HINGES))
def cosine_embedding_loss(
    x1: Tensor, x2: Tensor, target: Tensor, margin: float | Tensor = 0.0, *, similar: int = 1, reduction: str = "mean"
) -> Tensor:
    r"""Cosine embedding loss of given pairs; equals `torch.nn.functional.cosine_embedding_loss`.

    ```math
    \ell_i = 1 - \cos_i \text{ if similar, else } \max(0, \cos_i - m)
    ```

    `target` may mix both kinds. `margin` is a cosine, between -1 and 1. The other arguments, the result and the errors
    are those of `contrastive_loss`.

    Equivalent to:

    ```python
    F.cosine_embedding_loss(x1, x2, target, margin=margin)  # target in {-1, +1}
    ```

    Examples:
        >>> x1, x2 = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 2.0]])
        >>> cosine_embedding_loss(x1, x2, torch.tensor([-1]), margin=0.5)
        tensor(0.5000)
    """
    share, cos = _given_cosines(x1, x2, target, similar)
    return reduce(_graded(share, 1 - cos, F.relu(cos - margin)), reduction, cos.shape[0], x1)


@options(scale=learnable(above=True))
def cosent_loss(x1: Tensor, x2: Tensor, target: Tensor, *, scale: float | Tensor = 20.0) -> Tensor:
    r"""CoSENT: the cosines of given pairs ought to be in the order of their targets, whatever their values.

    ```math
    \log\Bigl(1 + \sum_{t_i > t_j} e^{s (\cos_j - \cos_i)}\Bigr), \quad \cos_i = \cos(x1_i, x2_i)
    ```

    Any two pairs with different targets are a term of the sum: the one with the lower target ought to have the lower
    cosine. The terms are not listed: sorting the targets takes O(N log N) time and, beside the rows, O(N) memory.

    Args:
        x1: embeddings [N, D], float16, bfloat16, float32 or float64.
        x2: embeddings [N, D]; row i is paired with row i of `x1`.
        target: [N], how similar each pair ought to be (ratings, scores of a teacher, 0 and 1), of any real dtype or
            bool. Only the order of the targets counts, and pairs with equal targets are not compared. It receives no
            gradient.
        scale: s, the sharpness of the comparison, above 0; a tensor of one element receives its gradient.

    Returns:
        A scalar for all pairs together; float32 (float64 for float64 inputs). If no two targets differ, it is 0 with
            zero gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen. A target that is NaN is an
            error on a CPU only: on a GPU, where the check would wait for the device, and in compiled code, the loss is
            NaN.

    Equivalent to:

    ```python
    z = scale * F.cosine_similarity(x1, x2)
    F.softplus((z - z[:, None])[target[:, None] > target].logsumexp(0))
    ```

    It is the loss of sentence-transformers' `CoSENTLoss`, and is exact even where it is below the last bit of 1.

    Source: Huang et al., "CoSENT: Consistent Sentence Embedding via Similarity Ranking", IEEE/ACM Transactions on
    Audio, Speech, and Language Processing, 2024.

    Examples:
        >>> x1, x2 = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> cosent_loss(x1, x2, torch.tensor([0.2, 0.9]), scale=2.0)
        tensor(2.1269)
    """
    x1, x2 = checks.given_rows(("x1", "x2"), (x1, x2))
    target = checks.grades(target, x1)
    return in_order(ops.row_distances(x1, x2, None, "similarity")[0], target, scale)


def in_order(scores: Tensor, target: Tensor, scale: float | Tensor) -> Tensor:
    """`cosent_loss` of given scores, for targets that `checks.grades` has checked."""
    target, order = target.sort()
    z = scale * scores.to(state_dtype(scores))[order].masked_fill(target.isnan(), torch.nan)
    z = z - z.detach().logsumexp(0)  # differences stay; the largest scores come near 0, where rounding is least
    lower = torch.searchsorted(target, target)  # how many targets are below each one; they come first
    below = z.logcumsumexp(0)[(lower - 1).clamp(min=0)]
    lowest = torch.finfo(z.dtype).min / 2  # the gradient of terms that are all -inf would be NaN
    return softplus((below - z).masked_fill(lower == 0, lowest).logsumexp(0)).to(loss_dtype(scores))
