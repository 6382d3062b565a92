"""What references of several families use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8


def root(s: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    return torch.where(s > 0, s.where(s > 0, s.new_ones(())).sqrt(), s)


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)); torch's own returns z for z above 20, which drops 2e-9."""
    return -F.logsigmoid(-z)


def unit(x: Tensor) -> Tensor:
    return x / root(x.square().sum(-1, keepdim=True)).clamp_min(EPS)


def pairwise_distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """d(x_i, y_j). [N, M]"""
    if metric == "cosine":
        return 1 - unit(x) @ unit(y).T
    if metric == "manhattan":
        return (x[:, None] - y[None]).abs().sum(-1)
    s = (x.square().sum(-1)[:, None] + y.square().sum(-1)[None] - 2 * x @ y.T).clamp_min(0)
    return s if metric == "sqeuclidean" else root(s)


def similarities(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The cosine, the dot product, or the negative of a distance. [N, M]"""
    if metric == "cosine":
        return unit(x) @ unit(y).T
    return x @ y.T if metric == "dot" else -pairwise_distance(x, y, metric)


def row_distance(x: Tensor, y: Tensor, metric: str, eps: float = 0.0) -> Tensor:
    """d(x_i, y_i); eps is added to the difference, as torch.nn.functional.pairwise_distance does. [N]"""
    if metric == "cosine":
        return 1 - row_cosine(x, y)
    diff = x - y + eps
    if metric == "manhattan":
        return diff.abs().sum(-1)
    s = diff.square().sum(-1)
    return s if metric == "sqeuclidean" else root(s)


def row_cosine(x: Tensor, y: Tensor) -> Tensor:
    """cos(x_i, y_i). [N]"""
    return (unit(x) * unit(y)).sum(-1)


def reduce(terms: Tensor, reduction: str) -> Tensor:
    """`mean_of` of terms [N], all of which count."""
    return mean_of(terms, torch.ones_like(terms, dtype=torch.bool), reduction)


def mean_of(terms, counted, reduction):
    """Reduced terms [N] or [N, ...]: "mean" over those that count, "active" over those above 0, "none" per anchor."""
    if reduction == "none":
        return terms.flatten(1).sum(1) if terms.dim() > 1 else terms
    counted = terms > 0 if reduction == "active" else counted
    return terms.sum() / (1 if reduction == "sum" else counted.sum().clamp_min(1))


def diagonal(logits, offset=0):
    """A mask of the logits of row i and column i + offset."""
    return (
        torch.arange(logits.shape[1], device=logits.device)
        == torch.arange(len(logits), device=logits.device)[:, None] + offset
    )


def which_count(labels, ignore_index):
    """Which rows have a label that is not ignored."""
    return torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels.long() != ignore_index


def where_counted(x, counts):
    """The rows that count, and ones in place of the others; a row of ones has a direction in every dtype."""
    return torch.where(counts[:, None], x, x.new_ones(()))


def pairs_of(embeddings, labels, ref_embeddings=None, ref_labels=None, ref_offset=None, ignore_index=None):
    """Both sides, with ones for ignored rows, and the masks of positive and negative pairs."""
    refs, ref_labels = (embeddings, labels) if ref_embeddings is None else (ref_embeddings, ref_labels)
    counts, ref_counts = which_count(labels, ignore_index), which_count(ref_labels, ignore_index)
    same = labels[:, None] == ref_labels[None]
    itself = diagonal(same, ref_offset or 0) & (ref_offset is not None or ref_embeddings is None)
    both = counts[:, None] & ref_counts
    x, refs = where_counted(embeddings, counts), where_counted(refs, ref_counts)
    return x, refs, same & both & ~itself, ~same & both


def cross_entropy(logits, pos, neg):
    """-log of the positive's share in the logits of its row; pos has one pair per row. [N]"""
    return -logits.masked_fill(~(pos | neg), -torch.inf).log_softmax(1).where(pos, logits.new_zeros(())).sum(1)


def log_sum_exp(terms, mask):
    """The log sum exp over the pairs in the mask; -inf, with gradient 0, where there is none. [N]"""
    some = mask.any(1)
    return terms.masked_fill(~mask & some[:, None], -torch.inf).logsumexp(1).masked_fill(~some, -torch.inf)
