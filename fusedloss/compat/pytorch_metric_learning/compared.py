"""What a loss or a miner of the library compares: pairs by labels, which the engine folds, or listed pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import distances
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from ... import checks, ops
from ...backends.dtypes import loss_dtype, state_dtype
from ...checks import Batch
from ...ops import Of
from ..calls import NotFused

METRICS = {(2, 1): "euclidean", (2, 2): "sqeuclidean", (1, 1): "manhattan"}  # LpDistance by p and power
NOTHING = ops.of()
Indices = Sequence[Tensor]  # of anchors, positives and negatives; or of anchors, positives, anchors, negatives


class Compared(NamedTuple):
    """Two sets of rows, and how a distance of the library compares them."""

    x: Tensor
    y: Tensor | None  # None: x
    score: str  # the engine's name: "similarity" (the cosine), "dot" or a distance

    @property
    def sign(self) -> float:
        """1 where a score is a similarity, -1 where it is a distance."""
        return 1.0 if self.score in ("similarity", "dot") else -1.0

    @property
    def rows(self) -> int:
        """How many rows there are to compare with."""
        return (self.x if self.y is None else self.y).shape[0]

    @property
    def loss_dtype(self) -> torch.dtype:
        return loss_dtype(self.x)

    def metric(self, *margins: Any) -> tuple[str, list[Any]]:
        """The score as a distance, with margins to match: cos < m is the same as 1 - cos > 1 - m."""
        if self.score == "dot":
            raise NotFused("dot products that are not normalised, by labels")
        if self.score == "similarity":
            return "cosine", [1 - margin for margin in margins]
        return self.score, [*margins]

    def placed(self, indices: Indices) -> tuple[Tensor, ...]:
        """The listed indices as torch reads them: one below 0 counts from the end, one out of range is an error."""
        rows, others = (torch.arange(n, device=self.x.device) for n in (self.x.shape[0], self.rows))
        anchors = (0,) if len(indices) == 3 else (0, 2)
        return tuple(
            (rows if i in anchors else others)[index.to(rows.device, torch.int64)] for i, index in enumerate(indices)
        )

    def of_pairs(self, anchors: Tensor, others: Tensor) -> Tensor:
        """The scores of listed pairs. [P]"""
        return ops.listed_distances(self.x, self.y, anchors, others, self.score)


def compared(distance: Any, embeddings: Tensor, ref_emb: Tensor) -> Compared:
    score = score_of(distance)
    x = checks.rows("embeddings", embeddings)
    y = None if ref_emb is embeddings else checks.same_dimensions("embeddings", x, "ref_emb", ref_emb)
    if isinstance(distance, distances.LpDistance):
        x, y = distance.maybe_normalize(x), None if y is None else distance.maybe_normalize(y)
    return Compared(x, y, score)


def score_of(distance: Any) -> str:
    """The engine's score that equals the library's distance, or its similarity of rows that are not normalised."""
    kind, p, power = type(distance), distance.p, distance.power
    if distance.collect_stats:
        raise NotFused("the distance collects stats")
    if kind is distances.LpDistance and (p, power) in METRICS:
        return METRICS[p, power]
    if kind in (distances.CosineSimilarity, distances.DotProductSimilarity) and power == 1:
        if not distance.normalize_embeddings:
            return "dot"
        if p == 2:
            return "similarity"
    raise NotFused(f"distance {kind.__name__}(p={p}, power={power})")


class AllPairs(NamedTuple):
    """Stands for a list of all pairs of a batch with references, except that of a row i with itself, which is reference
    (first + i) modulo the number of references."""

    first: int

    def listed(self, labels: Tensor, ref_labels: Tensor) -> Indices:
        """The list, as the library makes it."""
        M = ref_labels.shape[0]
        own = (self.first + torch.arange(labels.shape[0], device=labels.device)) % M
        return lmu.remove_self_comparisons(lmu.get_all_pairs_indices(labels, ref_labels), own, M)


class ByLabels:
    """All pairs of rows, positive where their labels are equal."""

    def __init__(self, c: Compared, labels: Tensor, ref_labels: Tensor, first: int | None) -> None:
        """first: reference (first + i) modulo the number of references is row i itself, which is not paired with it;
        None: no reference is."""
        x, y = c.x, c.x if c.y is None and first is None else c.y
        x_labels, y_labels = integer_labels(labels, ref_labels)
        if y is not None and first is not None and first + x.shape[0] > y.shape[0]:  # a ring buffer that has begun anew
            y, y_labels, first = y.roll(-first, 0), y_labels.roll(-first), 0
        self.compared = c._replace(y=y)
        self.batch = Batch(x, y, x_labels, y_labels, first)

    def fold(self, loss: str, *, pos: Of = NOTHING, neg: Of = NOTHING, **options: Any) -> tuple[Tensor, ...]:
        return ops.fold(self.batch, loss, self.compared.score, pos=pos, neg=neg, **options)

    @cached_property
    def positives(self) -> Tensor:
        """How many positives each anchor has. [N]"""
        known, _ = self.batch.y_labels.sort()
        low, high = (torch.searchsorted(known, self.batch.x_labels, right=right) for right in (False, True))
        return high - low - int(self.batch.ref_offset is not None)

    @cached_property
    def negatives(self) -> Tensor:
        return self.compared.rows - int(self.batch.ref_offset is not None) - self.positives

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positive and negative pairs there are."""
        return self.positives.sum(), self.negatives.sum()


def integer_labels(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as the engine takes them; floating labels become their places among all distinct ones."""
    if labels.is_floating_point() or ref_labels.is_floating_point():
        _, number = torch.unique(torch.cat([labels, ref_labels]), return_inverse=True)
        return number[: labels.shape[0]], number[labels.shape[0] :]
    return labels.long(), ref_labels.long()


class Listed:
    """Listed pairs of anchors and positives and of anchors and negatives, whose scores are folded."""

    def __init__(self, c: Compared, indices: Indices) -> None:
        self.compared = c
        self.indices = c.placed(indices)

    @classmethod
    def once(cls, c: Compared, indices: Indices) -> Listed:
        """The pairs as a set: a pair that is listed twice is one pair."""
        found = cls(c, indices)
        a1, p, a2, n = found.indices
        pos, neg = ((a * c.rows + b).unique() for a, b in ((a1, p), (a2, n)))
        if neg.shape[0] and bool((neg[torch.searchsorted(neg, pos).clamp(max=neg.shape[0] - 1)] == pos).any()):
            raise NotFused("a pair is listed as positive and as negative")
        found.indices = (pos // c.rows, pos % c.rows, neg // c.rows, neg % c.rows)
        return found

    @cached_property
    def pos(self) -> OfAnchors:
        return OfAnchors(self.compared, *self.indices[:2])

    @cached_property
    def neg(self) -> OfAnchors:
        return OfAnchors(self.compared, *self.indices[2:])

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        counts = (torch.tensor(self.indices[i].shape[0], device=self.compared.x.device) for i in (0, 2))
        return next(counts), next(counts)

    def fold(self, loss: str, *, pos: Of = NOTHING, neg: Of = NOTHING) -> tuple[Tensor, ...]:
        return (*self.pos.fold(loss, pos, True), *self.neg.fold(loss, neg, False))


class OfAnchors:
    """Listed pairs of one kind, and what they add up to for every anchor."""

    def __init__(self, c: Compared, anchors: Tensor, others: Tensor) -> None:
        self.anchors, self.others, self.N = anchors, others, c.x.shape[0]
        self.scores = c.of_pairs(anchors, others)
        self.dtype = state_dtype(c.x)

    @cached_property
    def order(self) -> tuple[Tensor, Tensor]:
        """The pairs in the order of their anchors [P], so that sums have a fixed order, and how many each has [N]."""
        known, order = self.anchors, torch.arange(self.anchors.shape[0], device=self.anchors.device)
        if not (checks.readable(known) and bool((known.diff() >= 0).all())):
            known, order = known.sort(stable=True)
        ends = torch.searchsorted(known, torch.arange(self.N, device=known.device), right=True)
        return order, ends.diff(prepend=ends.new_zeros(1))

    def fold(self, loss: str, of: Of, positive: bool) -> list[Tensor]:
        """The same as `ops.fold`, over these pairs alone."""
        if not of.folds:
            return []
        order, lengths = self.order
        terms = TERMS[loss](self.scores[order].to(self.dtype), positive, **of.numbers)
        return [
            log_sum_exp(z, lengths) if kind == "lse" else total(z, lengths)
            for kind, z in zip(of.folds, terms, strict=False)
        ]

    def log_sum_exp(self, scale: float, bias: float) -> Tensor:
        """The log sum exp of scale score + bias; -inf for an anchor without a pair. [N]"""
        return self.fold("softmax", ops.of("lse", scale=scale, bias=bias), False)[0]


def softmax_terms(s: Tensor, positive: bool, scale: float, bias: float = 0.0) -> list[Tensor]:
    z = scale * s + bias
    return [z, z, torch.ones_like(z)]


def circle_terms(s: Tensor, positive: bool, margin: float, gamma: float) -> list[Tensor]:
    if positive:
        return [-gamma * (1 + margin - s.detach()).clamp(min=0) * (s - (1 - margin))]
    return [gamma * (s.detach() + margin).clamp(min=0) * (s - margin)]


TERMS: dict[str, Callable[..., list[Tensor]]] = {
    "softmax": softmax_terms,
    "circle": circle_terms,
}  # the same as in `kernels/losses.py`


def total(z: Tensor, lengths: Tensor) -> Tensor:
    """The sums over the runs of z that have these lengths."""
    return torch.segment_reduce(z, "sum", lengths=lengths, unsafe=True)


def log_sum_exp(z: Tensor, lengths: Tensor) -> Tensor:
    """The log sum exp over the runs of z that have these lengths; -inf for an empty run."""
    high = torch.segment_reduce(z.detach(), "max", lengths=lengths, unsafe=True)
    high = high.where(high.isfinite(), 0.0)
    sums = total((z - high.repeat_interleave(lengths, output_size=z.shape[0])).exp(), lengths)
    none = lengths == 0
    return (sums.masked_fill(none, 1.0).log() + high).masked_fill(none, -torch.inf)
