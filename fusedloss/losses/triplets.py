"""Losses of triplets, which are given or mined from the batch without the distance matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks, ops
from ..checks import METRICS
from ..options import flag, integer, label, learnable, number, one_of, optional, options
from .reduce import OF_HINGES, reduce, softplus

POSITIVES = {"hardest": "farthest", "easiest": "nearest"}
NEGATIVES = {"hardest": "nearest", "easiest": "farthest", "semihard": "beyond"}
TRIPLETS = ("all", "hard", "semihard", "easy")
COUNTED = {"mean": "chosen", "active": "active"}  # which triplets a reduction counts


class HardestPairs(NamedTuple):
    """What `hardest_pairs` has found for every anchor, [N] each."""

    positive_distance: Tensor
    positive_index: Tensor
    negative_distance: Tensor
    negative_index: Tensor


@options(
    margin=optional(learnable()), metric=one_of(*METRICS), swap=flag, soft_margin=flag, eps=number(),
    reduction=one_of(*OF_HINGES),
)  # fmt: skip
def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float | Tensor | None = None, *,
    metric: str = "euclidean", swap: bool = False, soft_margin: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Triplet loss of given triplets; equals `torch.nn.functional.triplet_margin_loss` for p = 2 and 1.

    ```math
    \ell_i = \max(0, z_i), \quad \text{soft: } \log(1 + \exp(z_i)), \quad z_i = d(a_i, p_i) - d(a_i, n_i) + m
    ```

    Args:
        anchor: [N, D], float16, bfloat16, float32 or float64.
        positive: [N, D], the positive of every anchor.
        negative: [N, D], the negative of every anchor.
        margin: m, how much farther the negative has to be; a tensor of one element receives its gradient. None
            (default): 1.0, or 0 with `soft_margin`.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos) or "manhattan".
        swap: use the smaller of d(a, n) and d(p, n) (Balntas et al., BMVC 2016).
        soft_margin: use the soft form above.
        eps: a number that is added to every difference, as in `torch.nn.functional.pairwise_distance`; the cosine
            metric has none.
        reduction: "mean", "active" (the mean over the triplets that cost something; with `soft_margin` all do), "sum",
            or "none" (one value per triplet).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    d_ap, d_an = F.pairwise_distance(anchor, positive), F.pairwise_distance(anchor, negative)
    F.relu(d_ap - d_an + margin).mean()
    ```

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015.

    Examples:
        >>> a = torch.zeros(1, 1)
        >>> triplet_margin_loss(a, a + 2, a + 1, margin=0.5, eps=0.0)
        tensor(1.5000)

        A mean in which triplets have weights:

        >>> a, p, n, w = torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([[1.5], [1.0]]), torch.tensor([3.0, 1.0])
        >>> (w * triplet_margin_loss(a, p, n, reduction="none")).sum() / w.sum()
        tensor(0.6250)
    """
    a, p, n = checks.given_rows(("anchor", "positive", "negative"), (anchor, positive, negative))
    margin = _margin(margin, 1.0, soft_margin)
    d = _to_compare(lambda of: ops.row_distances(a, p, n, of, eps, pairs=3 if swap else 2), metric)
    d_an = torch.minimum(d[1], d[2]) if swap else d[1]
    return reduce(_hinge(d[0] - d_an, margin, soft_margin), reduction, d_an.shape[0], a)


def _margin(margin: float | Tensor | None, default: float, soft_margin: bool) -> float | Tensor:
    if margin is None:
        return 0.0 if soft_margin else default
    return margin


def _hinge(gap: Tensor, margin: float | Tensor, soft_margin: bool) -> Tensor:
    return softplus(gap + margin) if soft_margin else F.relu(gap + margin)


def _to_compare(distances: Callable[[str], Tensor], metric: str) -> Tensor:
    """Distances to take differences of; for "cosine" they are -cos, since 1 - cos loses bits of small cosines."""
    return -distances("similarity") if metric == "cosine" else distances(metric)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), metric=one_of(*METRICS), positives=one_of(*POSITIVES),
    negatives=one_of(*NEGATIVES),
)  # fmt: skip
def hardest_pairs(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, metric: str = "euclidean",
    positives: str = "hardest", negatives: str = "hardest",
) -> HardestPairs:  # fmt: skip
    r"""The selected positive and negative of every anchor, in O((N + M) D) memory.

    It serves losses of your own, and logging: while a model learns, the hardest positives come nearer and the hardest
    negatives move away; if both distances go to 0, the embeddings collapse. Under `torch.no_grad()` it costs one pass:

    ```python
    with torch.no_grad():
        found = hardest_pairs(embeddings, labels)
    log("hardest positive", found.positive_distance.nanmean())
    log("hardest negative", found.negative_distance.nanmean())
    log("violations", (found.positive_distance + margin > found.negative_distance).float().mean())
    ```

    Args:
        embeddings: [N, D], float16, bfloat16, float32 or float64.
        labels: [N], any integer dtype or bool; rows with equal labels are positive pairs.
        ref_embeddings: [M, D], the set to mine from. None: the batch itself, without the pairs (i, i).
        ref_labels: [M], the labels of `ref_embeddings`.
        ref_offset: row i of `embeddings` is also row ref_offset + i of `ref_embeddings` (a gathered batch, a memory
            bank), and the two are not paired. None: no row is in both.
        ignore_index: rows of either side with this label (padding, rows without a label) are in no pair and count in no
            mean, whatever values they have; their gradient is 0. None: every label is a class.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos) or "manhattan".
        positives: "hardest" (farthest) or "easiest" (nearest).
        negatives: "hardest" (nearest), "easiest" (farthest) or "semihard" (the nearest that is farther than the
            selected positive).

    Returns:
        `HardestPairs(positive_distance, positive_index, negative_distance, negative_index)`, each [N]. Indices are
            int64 numbers of rows of the reference set (the lowest on ties). Where an anchor has no such pair, the index
            is -1 and the distance NaN. Distances are recomputed exactly from the rows as given, as sum((x - y)^2) in
            float32, and are differentiable.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to (euclidean, hardest):

    ```python
    d = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    d.masked_fill(~same | eye, -inf).max(1), d.masked_fill(same, inf).min(1)
    ```

    Examples:
        >>> found = hardest_pairs(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> found.positive_index, found.negative_index
        (tensor([ 1,  0, -1]), tensor([2, 2, 1]))
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    batch = ops.minable(batch, NEGATIVES[negatives])
    index = ops.mine(batch, metric, POSITIVES[positives], NEGATIVES[negatives])
    distance = ops.mined_distances(batch, index, metric)
    return HardestPairs(distance[0], index[0], distance[1], index[1])


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), margin=optional(learnable()), metric=one_of(*METRICS),
    soft_margin=flag, positives=one_of(*POSITIVES), negatives=one_of(*NEGATIVES), reduction=one_of(*OF_HINGES),
)  # fmt: skip
def batch_hard_triplet_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, margin: float | Tensor | None = None,
    metric: str = "euclidean", soft_margin: bool = False, positives: str = "hardest", negatives: str = "hardest",
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Triplet loss with one mined positive and one mined negative per anchor, without the distance matrix.

    ```math
    \ell_i = \max(0, d_{ap} - d_{an} + m), \quad \text{soft: } \log(1 + \exp(d_{ap} - d_{an} + m))
    ```

    with d_ap and d_an the distances of anchor i to its selected positive and negative. Anchors without a positive or
    without a negative do not count (sentence-transformers counts those without a positive). Memory is O((N + M) D).
    Arguments that are not listed are those of `hardest_pairs`.

    Args:
        margin: m, how much farther the negative has to be; a tensor of one element receives its gradient. None
            (default): 0.2, or 0 with `soft_margin`.
        soft_margin: use the soft form above.
        reduction: "mean" over the anchors that count, "active" (the mean over those that cost something; with
            `soft_margin` all do), "sum", or "none" ([N], 0 for anchors that do not count).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without any triplet it is 0 with zero
            gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to:

    ```python
    d = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    d_ap = d.masked_fill(~same | eye, -inf).amax(1)
    d_an = d.masked_fill(same, inf).amin(1)
    F.relu(d_ap - d_an + margin).mean()
    ```

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017; semi-hard
    negatives are from Schroff et al., "FaceNet", CVPR 2015.

    Examples:
        >>> x, labels = torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([0, 0, 1])
        >>> batch_hard_triplet_loss(x, labels, margin=0.5, reduction="none")
        tensor([0., 1., 0.])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    batch, margin = ops.minable(batch, NEGATIVES[negatives]), _margin(margin, 0.2, soft_margin)
    mined = POSITIVES[positives], NEGATIVES[negatives]
    if ops.closes(batch.x, reduction):
        return ops.hard_triplets(batch, metric, *mined, margin, soft_margin, reduction)
    index = ops.mine(batch, metric, *mined)
    d_ap, d_an = _to_compare(lambda of: ops.mined_distances(batch, index, of), metric)
    counts = (index >= 0).all(0)
    gap = torch.where(counts, d_ap - d_an, 0.0)
    terms = torch.where(counts, _hinge(gap, margin, soft_margin), 0.0)
    return reduce(terms, reduction, counts.sum(), batch.x)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), margin=optional(learnable()), metric=one_of(*METRICS),
    soft_margin=flag, triplets=one_of(*TRIPLETS), reduction=one_of(*OF_HINGES),
)  # fmt: skip
def batch_all_triplet_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, margin: float | Tensor | None = None,
    metric: str = "euclidean", soft_margin: bool = False, triplets: str = "all", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Triplet loss of all triplets of a batch, or of all of one kind, without the triplets in memory.

    ```math
    \ell_{apn} = \max(0, d_{ap} - d_{an} + m), \quad \text{soft: } \log(1 + \exp(d_{ap} - d_{an} + m))
    ```

    for every anchor a, positive p (same label) and negative n (another label). Memory is O((N + M) D), whatever the
    sizes of the classes. Counts are exact up to 2^53 triplets. Arguments that are not listed are those of
    `hardest_pairs`; positives and negatives are rows of the reference set, if there is one.

    Args:
        margin: m, how much farther the negative has to be; a tensor of one element receives its gradient. None
            (default): 0.2, or 0 with `soft_margin`; with margin 0 no triplet is semi-hard.
        soft_margin: use the soft form above.
        triplets: which triplets count: "all"; "hard", d_an <= d_ap; "semihard", d_ap < d_an <= d_ap + margin; "easy",
            d_an > d_ap + margin, which cost something only with `soft_margin`.
        reduction: "mean" over the triplets that count; "active": the mean over those whose term is above 0; "sum";
            "none" ([N], the sum of each anchor's terms).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without any triplet it is 0 with zero
            gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to (without references):

    ```python
    d = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    valid = (same & ~eye)[:, :, None] & ~same[:, None]
    F.relu(d[:, :, None] - d[:, None] + margin)[valid].mean()
    ```

    `TripletMarginLoss` of pytorch-metric-learning with triplets_per_anchor="all" is this loss of normalised embeddings
    with reduction="active"; the kinds are those of the library's `TripletMarginMiner`.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017 ("batch all").

    Examples:
        >>> x, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0]]), torch.tensor([0, 0, 1, 1])
        >>> batch_all_triplet_loss(x, labels, margin=0.5, reduction="none")
        tensor([0., 1., 4., 0.])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    if margin is None and soft_margin and triplets == "semihard":
        raise ValueError(
            "margin must be given where soft_margin is True and triplets 'semihard': none is between 0 and the margin "
            "that is 0 then, got None"
        )
    margin = _margin(margin, 0.2, soft_margin)
    total, count = ops.fold_triplets(batch, margin, metric, triplets, soft_margin, COUNTED.get(reduction, "none"))
    return reduce(total, reduction, count.detach().sum(), batch.x, count)


@options(
    ref_offset=optional(integer()), ignore_index=optional(label), margin=learnable(), metric=one_of(*METRICS),
    reduction=one_of(*OF_HINGES),
)  # fmt: skip
def batch_semihard_triplet_loss(
    embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None = None, ref_labels: Tensor | None = None, *,
    ref_offset: int | None = None, ignore_index: int | None = None, margin: float | Tensor = 0.2,
    metric: str = "sqeuclidean", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Triplet loss of every positive pair with a semi-hard negative: the nearest that is farther than the positive.

    ```math
    \ell_{ap} = \max(0, d_{ap} - d_{an} + m), \quad n = \arg\min_{n: d_{an} > d_{ap}} d_{an}
    ```

    or, where no negative of the anchor is farther than the positive, its farthest negative. Of several negatives at the
    same distance the first one of the lowest label is taken. Memory is O((N + M) D). Arguments that are not listed are
    those of `hardest_pairs`; positives and negatives are rows of the reference set, if there is one.

    Args:
        margin: m, how much farther the negative has to be; a tensor of one element receives its gradient.
        reduction: "mean" over the pairs (a, p) whose anchor has a negative, "active" (the mean over those that cost
            something), "sum", or "none" ([N], the sum of each anchor's terms).

    Returns:
        A scalar, or [N] for "none"; float32 (float64 for float64 inputs). Without any triplet it is 0 with zero
            gradient.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it and what was seen.

    Equivalent to (without references):

    ```python
    d = (embeddings[:, None] - embeddings).square().sum(2)
    farther = ~same[:, None] & (d[:, None] > d[:, :, None])  # [a, p, n]
    d_an = d[:, None].where(farther, inf).amin(2)
    d_an = torch.where(farther.any(2), d_an, d.where(~same, -inf).amax(1, keepdim=True))
    F.relu(d - d_an + margin)[same & ~eye].mean()
    ```

    It is the loss of TensorFlow Addons' `TripletSemiHardLoss` (there with margin 1) and of sentence-transformers'
    `BatchSemiHardTripletLoss` (there with euclidean distances and margin 5).

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015.

    Examples:
        >>> x, labels = torch.tensor([[0.0], [1.0], [1.5], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> batch_semihard_triplet_loss(x, labels, margin=2.0, reduction="none")
        tensor([0.7500, 0.0000, 2.0000, 0.2500])
    """
    batch = checks.batch(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    total, count = ops.fold_triplets(batch, margin, metric, "nearest", counted=COUNTED.get(reduction, "none"))
    return reduce(total, reduction, count.detach().sum(), batch.x, count)
