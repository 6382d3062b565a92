"""Every loss in a few lines of dense PyTorch: the specification, and the oracle of the tests.

Memory is O(N M). Arguments, defaults and formulas are those of the functions of the same name in `fusedloss`; only
`overwrite_logits` has no effect here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8


class HardestPairs(NamedTuple):
    positive_distance: Tensor
    positive_index: Tensor
    negative_distance: Tensor
    negative_index: Tensor


def _sqrt(s: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0."""
    return torch.where(s > 0, s.where(s > 0, s.new_ones(())).sqrt(), s)


def _softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)); torch's own drops what is below 2e-9 of it."""
    return -F.logsigmoid(-z)


def _normalize(x: Tensor) -> Tensor:
    return x / _sqrt(x.square().sum(-1, keepdim=True)).clamp_min(EPS)


def pairwise_distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """d(x_i, y_j). [N, M]"""
    if metric == "cosine":
        return 1 - _normalize(x) @ _normalize(y).T
    if metric == "manhattan":
        return (x[:, None] - y[None]).abs().sum(-1)
    s = (x.square().sum(-1)[:, None] + y.square().sum(-1)[None] - 2 * x @ y.T).clamp_min(0)
    return s if metric == "sqeuclidean" else _sqrt(s)


def row_distance(x: Tensor, y: Tensor, metric: str, eps: float = 0.0) -> Tensor:
    """d(x_i, y_i); eps is added to the difference, as torch.nn.functional.pairwise_distance does. [N]"""
    if metric == "cosine":
        return 1 - row_cosine(x, y)
    diff = x - y + eps
    if metric == "manhattan":
        return diff.abs().sum(-1)
    s = diff.square().sum(-1)
    return s if metric == "sqeuclidean" else _sqrt(s)


def row_cosine(x: Tensor, y: Tensor) -> Tensor:
    """cos(x_i, y_i). [N]"""
    return (_normalize(x) * _normalize(y)).sum(-1)


def _reduce(terms: Tensor, reduction: str) -> Tensor:
    return terms if reduction == "none" else terms.sum() / (max(len(terms), 1) if reduction == "mean" else 1)


def _mean_of(terms, counted, reduction):
    """Terms [N] or [N, ...]: "mean" over those that count, "active" over those above 0, "none" one sum an anchor."""
    if reduction == "none":
        return terms.flatten(1).sum(1) if terms.dim() > 1 else terms
    counted = terms > 0 if reduction == "active" else counted
    return terms.sum() / (1 if reduction == "sum" else counted.sum().clamp_min(1))


def _graded(target, similar, if_similar, if_not):
    """What each pair costs: the share of `if_similar` that its target says, and the rest of `if_not`."""
    target = target.to(if_not.dtype).clamp(min=0)
    share = target if similar == 1 else 1 - target
    mixed = share * if_similar + (1 - share) * if_not
    return torch.where(share == 1, if_similar, torch.where(share == 0, if_not, mixed))


def _short_of(x, y, metric, margin):
    """margin - d(x_i, y_i), which of small cosines is more than 1 - (1 - cos). [N]"""
    return row_cosine(x, y) - (1 - margin) if metric == "cosine" else margin - row_distance(x, y, metric)


def contrastive_loss(x1, x2, target, *, margin=1.0, metric="euclidean", similar=1, reduction="mean"):
    d, short = row_distance(x1, x2, metric), F.relu(_short_of(x1, x2, metric, margin))
    return _reduce(_graded(target, similar, d.square(), short.square()) / 2, reduction)


def euclidean_distance_loss(x1, x2, target, *, margin=1.0, similar=1, reduction="mean"):
    return 2 * contrastive_loss(x1, x2, target, margin=margin, similar=similar, reduction=reduction)


def cosine_similarity_loss(x1, x2, target=None, *, similar=1, reduction="mean"):
    cos = row_cosine(x1, x2)
    return _reduce(1 - cos if target is None else _graded(target, similar, 1 - cos, 1 + cos) / 2, reduction)


def cosine_embedding_loss(x1, x2, target, *, margin=0.0, similar=1, reduction="mean"):
    cos = row_cosine(x1, x2)
    return _reduce(_graded(target, similar, 1 - cos, F.relu(cos - margin)), reduction)


def triplet_margin_loss(
    anchor,
    positive,
    negative,
    *,
    margin=None,
    metric="euclidean",
    swap=False,
    soft_margin=False,
    eps=1e-6,
    reduction="mean",
):
    d_ap, d_an = row_distance(anchor, positive, metric, eps), row_distance(anchor, negative, metric, eps)
    if swap:
        d_an = torch.minimum(d_an, row_distance(positive, negative, metric, eps))
    return _reduce(_hinge(d_ap - d_an, _margin(margin, 1.0, soft_margin), soft_margin), reduction)


def _margin(margin, default, soft_margin):
    return margin if margin is not None else 0.0 if soft_margin else default


def _hinge(gap, margin, soft_margin):
    return _softplus(gap + margin) if soft_margin else F.relu(gap + margin)


def _own(logits, offset=0):
    """Which logits are those of row i and column i + offset."""
    return (
        torch.arange(logits.shape[1], device=logits.device)
        == torch.arange(len(logits), device=logits.device)[:, None] + offset
    )


def _counts(labels, ignore_index):
    """Which rows have a label that is not ignored."""
    return torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels.long() != ignore_index


def _where_counted(x, counts):
    """The rows that count, and ones, which have a direction in every dtype."""
    return torch.where(counts[:, None], x, x.new_ones(()))


def _pairs(embeddings, labels, ref_embeddings=None, ref_labels=None, ref_offset=None, ignore_index=None):
    """Both sides, with ones for ignored rows, and the masks of positive and negative pairs."""
    refs, ref_labels = (embeddings, labels) if ref_embeddings is None else (ref_embeddings, ref_labels)
    counts, ref_counts = _counts(labels, ignore_index), _counts(ref_labels, ignore_index)
    same = labels[:, None] == ref_labels[None]
    itself = _own(same, ref_offset or 0) & (ref_offset is not None or ref_embeddings is None)
    both = counts[:, None] & ref_counts
    x, refs = _where_counted(embeddings, counts), _where_counted(refs, ref_counts)
    return x, refs, same & both & ~itself, ~same & both


def pairwise_contrastive_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, pos_margin=0.0, neg_margin=1.0, metric="euclidean", power=2, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    terms = torch.where(pos, F.relu(d - pos_margin), F.relu(neg_margin - d)).pow(power) * (pos | neg) / power
    if reduction == "none":
        return terms.sum(1)
    if reduction == "active":
        return sum((terms * kind).sum() / ((terms > 0) & kind).sum().clamp_min(1) for kind in (pos, neg))
    return terms.sum() / ((pos | neg).sum().clamp_min(1) if reduction == "mean" else 1)


def hardest_pairs(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, metric="euclidean", positives="hardest", negatives="hardest",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)

    def extreme(mask, farthest):
        worst = -torch.inf if farthest else torch.inf
        candidates = d.detach().where(mask, d.new_tensor(worst))
        index = candidates.argmax(1) if farthest else candidates.argmin(1)  # the first on ties
        return torch.where(mask.any(1), index, -1)

    def at(index):
        distance = row_distance(x, refs[index.clamp_min(0)], metric)  # exact, not the expanded form
        return distance.where(index >= 0, distance.new_tensor(torch.nan))

    if d.numel() == 0:
        none = torch.full_like(labels, -1, dtype=torch.int64)
        nan = x.sum(1) * 0 + torch.nan
        return HardestPairs(nan, none, nan, none)
    positive = extreme(pos, positives == "hardest")
    if negatives == "semihard":
        neg = neg & (d > d.gather(1, positive.clamp_min(0)[:, None])) & (positive >= 0)[:, None]
    negative = extreme(neg, negatives == "easiest")
    return HardestPairs(at(positive), positive, at(negative), negative)


def batch_hard_triplet_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=None, metric="euclidean", soft_margin=False,
    positives="hardest", negatives="hardest", reduction="mean",
):  # fmt: skip
    mined = hardest_pairs(
        embeddings, labels, ref_embeddings, ref_labels,
        ref_offset=ref_offset, ignore_index=ignore_index, metric=metric, positives=positives, negatives=negatives,
    )  # fmt: skip
    counts = (mined.positive_index >= 0) & (mined.negative_index >= 0)
    gap = torch.where(counts, mined.positive_distance - mined.negative_distance, 0)
    terms = torch.where(counts, _hinge(gap, _margin(margin, 0.2, soft_margin), soft_margin), 0)
    return _mean_of(terms, counts, reduction)


def batch_all_triplet_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=None, metric="euclidean", soft_margin=False, triplets="all",
    reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    gap = d[:, :, None] - d[:, None]  # d(a, p) - d(a, n)
    margin = _margin(margin, 0.2, soft_margin)
    bands = dict(hard=gap >= 0, semihard=(gap < 0) & (gap >= -margin), easy=gap < -margin)
    chosen = pos[:, :, None] & neg[:, None] & bands.get(triplets, True)
    terms = _hinge(gap, margin, soft_margin).where(chosen, gap.new_zeros(()))
    return _mean_of(terms, chosen, reduction)


def batch_semihard_triplet_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=0.2, metric="sqeuclidean", reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = pairwise_distance(x, refs, metric)
    if d.numel() == 0:
        return _mean_of(d, pos, reduction)
    farther = neg[:, None] & (d[:, None] > d[:, :, None])  # than the positive [N, M, M]
    nearest = d[:, None].where(farther, d.new_tensor(torch.inf)).argmin(2)
    farthest = d.where(neg, d.new_tensor(-torch.inf)).argmax(1, keepdim=True)
    chosen = pos & neg.any(1, keepdim=True)
    d_an = d.gather(1, torch.where(farther.any(2), nearest, farthest))
    terms = F.relu(d - d_an + margin).where(chosen, d.new_zeros(()))
    return _mean_of(terms, chosen, reduction)


def _logits(x, y, scale, normalize=True):
    return scale * (_normalize(x) @ _normalize(y).T if normalize else x @ y.T)


def _cross_entropy(logits, pos, neg):
    """-log of the positive's share, of its row's logits: pos has one pair a row. [N]"""
    return -logits.masked_fill(~(pos | neg), -torch.inf).log_softmax(1).where(pos, logits.new_zeros(())).sum(1)


def info_nce_loss(
    query, key, negatives=None, *,
    temperature=0.07, normalize=True, in_batch_negatives=True, symmetric=False, offset=0, reduction="mean",
):  # fmt: skip
    logits = _logits(query, key, 1 / temperature, normalize)
    pos = _own(logits, offset)
    neg = ~pos & in_batch_negatives
    by_key = _cross_entropy(logits.T, pos.T, neg.T) if symmetric else None
    if negatives is not None:
        queue = torch.ones(len(query), len(negatives), dtype=torch.bool, device=query.device)
        logits = torch.cat([logits, _logits(query, negatives, 1 / temperature, normalize)], 1)
        pos, neg = torch.cat([pos, ~queue], 1), torch.cat([neg, queue], 1)
    by_query = _cross_entropy(logits, pos, neg)
    return _reduce((by_query + by_key) / 2 if symmetric else by_query, reduction)


def nt_xent_loss(z1, z2, *, temperature=0.5, reduction="mean"):
    z, labels = torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2)
    _, _, pos, neg = _pairs(z, labels)
    return _reduce(_cross_entropy(_logits(z, z, 1 / temperature), pos, neg), reduction)


def clip_loss(image, text, logit_scale, *, logit_bias=None, reduction="mean"):
    logits = logit_scale * image @ text.T + (0 if logit_bias is None else logit_bias)
    pos = _own(logits)
    return _reduce((_cross_entropy(logits, pos, ~pos) + _cross_entropy(logits.T, pos, ~pos)) / 2, reduction)


def siglip_loss(image, text, logit_scale, logit_bias, *, reduction="mean"):
    logits = logit_scale * image @ text.T + logit_bias
    return _reduce(-F.logsigmoid(torch.where(_own(logits), logits, -logits)).sum(1), reduction)


def supcon_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, temperature=0.1, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    logits = _logits(x, refs, 1 / temperature, normalize).masked_fill(~(pos | neg), -torch.inf)
    counts = pos.sum(1)
    terms = -logits.log_softmax(1).where(pos, logits.new_zeros(())).sum(1) / counts.clamp_min(1)
    return _mean_of(terms, counts > 0, reduction)


def n_pair_loss(anchor, positive, *, l2_reg=0.0, reduction="mean"):
    logits = anchor @ positive.T
    pos = _own(logits)
    return _reduce(_cross_entropy(logits, pos, ~pos) + l2_reg * (anchor.square() + positive.square()).sum(1), reduction)


def _log_sum_exp(terms, mask):
    """Over the pairs in mask; -inf, with gradient 0, where there is none. [N]"""
    some = mask.any(1)
    return terms.masked_fill(~mask & some[:, None], -torch.inf).logsumexp(1).masked_fill(~some, -torch.inf)


def multi_similarity_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, alpha=2.0, beta=50.0, base=0.5, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    s = _logits(x, refs, 1.0, normalize)
    pull, push = _log_sum_exp(-alpha * (s - base), pos), _log_sum_exp(beta * (s - base), neg)
    terms = _softplus(pull) / alpha + _softplus(push) / beta
    return _mean_of(terms, _counts(labels, ignore_index), reduction)


def circle_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, margin=0.4, gamma=80.0, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    s = _logits(x, refs, 1.0, normalize)
    pull = _log_sum_exp(-gamma * F.relu(1 + margin - s.detach()) * (s - (1 - margin)), pos)
    push = _log_sum_exp(gamma * F.relu(s.detach() + margin) * (s - margin), neg)
    terms = _softplus(pull + push).where(pos.any(1) & neg.any(1), s.new_zeros(()))
    return _mean_of(terms, terms > 0, reduction)


def _lifted_distance(x, y, normalize):
    return pairwise_distance(_normalize(x) if normalize else x, _normalize(y) if normalize else y, "euclidean")


def generalized_lifted_structure_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, neg_margin=1.0, pos_margin=0.0, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = _lifted_distance(x, refs, normalize)
    pull, push = _log_sum_exp(d - pos_margin, pos), _log_sum_exp(neg_margin - d, neg)
    terms = F.relu(pull.masked_fill(~pos.any(1), 0) + push.masked_fill(~neg.any(1), 0))
    return _mean_of(terms, _counts(labels, ignore_index), reduction)


def lifted_structure_loss(
    embeddings, labels, ref_embeddings=None, ref_labels=None, *,
    ref_offset=None, ignore_index=None, neg_margin=1.0, pos_margin=0.0, normalize=True, reduction="mean",
):  # fmt: skip
    x, refs, pos, neg = _pairs(embeddings, labels, ref_embeddings, ref_labels, ref_offset, ignore_index)
    d = _lifted_distance(x, refs, normalize)
    lowest = torch.finfo(d.dtype).min / 2  # two of -inf would have the gradient NaN
    own, other = (_log_sum_exp(neg_margin - m, of).clamp_min(lowest) for m, of in ((d, neg), (d.T, neg.T)))
    terms = F.relu(torch.logaddexp(own[:, None], other) + d - pos_margin).square().where(pos, d.new_zeros(())) / 2
    return _mean_of(terms, pos, reduction)


def _mean_of_classes(terms, weights, reduction):
    """Terms of rows, whose mean is by weights: 0 for a row that does not count."""
    if reduction == "none":
        return terms
    total = weights.sum()
    return terms.sum() / (1 if reduction == "sum" else total.where(total != 0, torch.ones_like(total)))


def _own_class(target, C, ignore_index=None):
    """1 for the class of every row, all 0 for one that does not count. [N, C, d1, ...]"""
    counted = target != ignore_index if ignore_index is not None else torch.ones_like(target, dtype=torch.bool)
    return (F.one_hot(target.where(counted, 0).long(), C).movedim(-1, 1) * counted.unsqueeze(1)).bool()


def _left_out(x, target, ignore_index):
    """Rows x with zeros where they do not count, whatever they hold. [N, C, d1, ...]"""
    return x.masked_fill((target == ignore_index).unsqueeze(1), 0)


def cross_entropy_loss(
    logits, target, *,
    weight=None, ignore_index=-100, label_smoothing=0.0, overwrite_logits=False, reduction="mean",
):  # fmt: skip
    C = logits.shape[1]
    w = (logits.new_ones(C) if weight is None else weight).view(1, C, *[1] * (logits.dim() - 2))
    if target.is_floating_point():
        q = target
        weights = smooth = torch.ones_like(logits[:, 0]).detach()
    else:
        logits = _left_out(logits, target, ignore_index)
        q = _own_class(target, C, ignore_index).to(logits.dtype)
        weights, smooth = (w * q).sum(1), q.sum(1)
    share = w * ((1 - label_smoothing) * q + label_smoothing / C * smooth.unsqueeze(1))
    log_p = logits.log_softmax(1)
    log_p = log_p.masked_fill((share == 0) & (logits == -torch.inf), 0)  # costs nothing
    terms = -(share * log_p).sum(1)
    return _mean_of_classes(terms, weights, reduction)


def _modulation(logits, own, gamma):
    """(1 - p)^gamma of the own class."""
    return (1 - (logits.softmax(1) * own).sum(1)) ** gamma


def focal_loss(
    logits, target, *, gamma=2.0, weight=None, ignore_index=-100, overwrite_logits=False, reduction="mean"
):  # fmt: skip
    logits, own = _left_out(logits, target, ignore_index), _own_class(target, logits.shape[1], ignore_index)
    terms = cross_entropy_loss(logits, target, weight=weight, ignore_index=ignore_index, reduction="none")
    w = 1 if weight is None else weight.view(1, -1, *[1] * (logits.dim() - 2))
    return _mean_of_classes(_modulation(logits, own, gamma) * terms, (w * own).sum(1), reduction)


def binary_cross_entropy_loss(
    logits, target, *, weight=None, pos_weight=None, overwrite_logits=False, reduction="mean"
):  # fmt: skip
    pw = 1 if pos_weight is None else pos_weight
    yes, no = (F.logsigmoid(z).masked_fill((t == 0) & (z == -torch.inf), 0) * t for z, t in (
        (logits, target), (-logits, 1 - target)
    ))  # fmt: skip
    terms = -(pw * yes + no)
    return _reduce((terms if weight is None else weight * terms).flatten(), reduction).view(
        logits.shape if reduction == "none" else ()
    )


def sigmoid_focal_loss(
    logits, target, *, alpha=0.25, gamma=2.0, overwrite_logits=False, reduction="mean"
):  # fmt: skip
    one_minus_p_t = logits.sigmoid() * (1 - target) + (-logits).sigmoid() * target
    alpha_t = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1
    entropy = binary_cross_entropy_loss(logits, target, reduction="none")
    terms = (alpha_t * one_minus_p_t**gamma * entropy).flatten()
    return _reduce(terms, reduction).view(logits.shape if reduction == "none" else ())


def linear_cross_entropy_loss(
    embeddings, weight, target, *, bias=None, gamma=0.0, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):  # fmt: skip
    logits = _left_out(embeddings, target, ignore_index) @ weight.T + (0 if bias is None else bias)
    own = _own_class(target, len(weight), ignore_index)
    terms = cross_entropy_loss(
        logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )  # fmt: skip
    return _mean_of_classes(_modulation(logits, own, gamma) * terms if gamma else terms, own.sum(1), reduction)


def _margin_softmax(cos, own_logit, scale, target, ignore_index, reduction):
    """Cross entropy of scaled cosines, of which that of the own class is replaced."""
    own = _own_class(target, cos.shape[1], ignore_index)
    logits = torch.where(own, own_logit, scale * cos)
    return cross_entropy_loss(logits, target, ignore_index=ignore_index, reduction=reduction)


def _cosines(embeddings, weight, target, ignore_index):
    """To every class, of ones for ignored rows."""
    return _logits(_where_counted(embeddings, _counts(target, ignore_index)), weight, 1.0)


def arcface_loss(embeddings, weight, target, *, margin=0.5, scale=64.0, ignore_index=-100, reduction="mean"):
    cos = _cosines(embeddings, weight, target, ignore_index)
    m = margin if isinstance(margin, Tensor) else cos.new_tensor(margin)
    shifted = torch.where(cos >= -m.cos(), cos * m.cos() - _sqrt(1 - cos.square()) * m.sin(), cos - m * m.sin())
    return _margin_softmax(cos, scale * shifted, scale, target, ignore_index, reduction)


def cosface_loss(embeddings, weight, target, *, margin=0.35, scale=64.0, ignore_index=-100, reduction="mean"):
    cos = _cosines(embeddings, weight, target, ignore_index)
    return _margin_softmax(cos, scale * (cos - margin), scale, target, ignore_index, reduction)


def normalized_softmax_loss(embeddings, weight, target, *, temperature=0.05, ignore_index=-100, reduction="mean"):
    logits = _cosines(embeddings, weight, target, ignore_index) / temperature
    return cross_entropy_loss(logits, target, ignore_index=ignore_index, reduction=reduction)


def proxy_nca_loss(embeddings, proxies, target, *, scale=1.0, ignore_index=None, reduction="mean"):
    logits = 2 * scale * _cosines(embeddings, proxies, target, ignore_index)
    none = -1 if ignore_index is None else ignore_index  # which is no class
    return cross_entropy_loss(logits, target, ignore_index=none, reduction=reduction)


def proxy_anchor_loss(
    embeddings, proxies, target, *, margin=0.1, alpha=32.0, ignore_index=None, reduction="mean"
):  # fmt: skip
    cos = _cosines(embeddings, proxies, target, ignore_index).T
    counts = _counts(target, ignore_index)
    own = torch.arange(len(proxies), device=target.device)[:, None] == target
    pull = _softplus(_log_sum_exp(-alpha * (cos - margin), own & counts))
    push = _softplus(_log_sum_exp(alpha * (cos + margin), ~own & counts))
    if reduction == "mean":
        return pull.sum() / (own & counts).any(1).sum().clamp_min(1) + push.sum() / max(len(proxies), 1)
    return _reduce(pull + push, reduction)


def center_loss(embeddings, centers, target, *, ignore_index=None, reduction="mean"):
    counts = _counts(target, ignore_index)
    own = centers[target.long().where(counts, 0)]
    terms = row_distance(_where_counted(embeddings, counts), own, "sqeuclidean") / 2
    return _mean_of(torch.where(counts, terms, 0), counts, reduction)


def island_loss(embeddings, centers, target, *, weight=10.0, ignore_index=None, reduction="mean"):
    cos = _logits(centers, centers, 1.0)
    near = center_loss(embeddings, centers, target, ignore_index=ignore_index, reduction=reduction)
    return near + weight * (cos + 1)[~_own(cos)].sum()
