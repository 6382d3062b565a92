"""pytorch_metric_learning.miners with miners that never hold the distance matrix, nor all triplets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_metric_learning import miners as _library
from torch import Tensor

from ... import ops
from ..calls import NotFused, attempt
from ..library import handed_through
from .compared import ByLabels, Indices, compared

CHUNK = 1 << 22  # how many distances, or comparisons of triplets, are held at a time
STRATEGIES = {"hard": ("farthest", "nearest"), "easy": ("nearest", "farthest"), "semihard": (None, "beyond")}


class BatchEasyHardMiner(_library.BatchEasyHardMiner):
    """The hardest, easiest or semi-hard pair of every anchor.

    It is fused for strategies other than "all", without allowed ranges, and unless positives are to be semi-hard. Among
    pairs at the same distance the first is mined. Distances are exact, so what is a tie of the library's rounded
    distances may not be one here.
    """

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Indices:
        library = super().mine

        def ours() -> Indices:
            if self.allowed_pos_range is not None or self.allowed_neg_range is not None:
                raise NotFused("an allowed range of distances")
            positives, negatives = (STRATEGIES.get(s) for s in (self.pos_strategy, self.neg_strategy))
            if positives is None or negatives is None or positives[0] is None:
                raise NotFused('strategy "all", or semi-hard positives')
            return self.selected(embeddings, labels, ref_emb, ref_labels, positives[0], str(negatives[1]))

        return attempt(type(self).__name__, ours, lambda: library(embeddings, labels, ref_emb, ref_labels))

    def selected(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, positives: str, negatives: str
    ) -> Indices:  # fmt: skip
        c = compared(self.distance, embeddings, ref_emb)
        metric, _ = c.metric()
        given = ByLabels(c, labels, ref_labels, 0 if ref_labels is labels else None)
        p, n = ops.mine(given.batch, metric, positives, negatives)
        a = torch.where((p >= 0) & (n >= 0))[0]
        p, n = p[a], n[a]
        if self.collect_stats:
            self.set_stats(c.of_pairs(a, p), c.of_pairs(a, n))
        return a, p, a, n


class BatchHardMiner(BatchEasyHardMiner, _library.BatchHardMiner):
    """The farthest positive and the nearest negative of every anchor, fused."""

    def selected(self, *args: Any) -> Indices:
        a, p, _a, n = super().selected(*args)
        return a, p, n


class ByRows:
    """A base class to put before a miner of the library that lists pairs or triplets: it lists the same ones by the
    library's own distance, with only as many rows of the distance matrix at a time as fit into `CHUNK`."""

    distance: Any
    collect_stats: bool

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Indices:
        library = super().mine  # type: ignore[misc]

        def ours() -> Indices:
            if self.collect_stats or self.distance.collect_stats:
                raise NotFused("the miner collects stats")
            return self.by_rows(embeddings, labels, ref_emb, ref_labels)

        return attempt(type(self).__name__, ours, lambda: library(embeddings, labels, ref_emb, ref_labels))

    @abstractmethod
    def by_rows(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Indices: ...

    def rows(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """For some rows at a time: the number of the first row, the distances to all references, and which pairs are
        positive and which are negative. [n, M] each"""
        N, M = labels.shape[0], ref_labels.shape[0]
        size = max(1, CHUNK // max(M, 1))
        for first in range(0, N, size):
            some = slice(first, first + size)
            same = labels[some, None] == ref_labels
            different = ~same
            if ref_labels is labels:
                own = torch.arange(same.shape[0], device=same.device)
                same[own, own + first] = False
            yield first, self.distance(embeddings[some], ref_emb), same, different


def joined(found: list[Indices], like: Tensor, kinds: int) -> Indices:
    """The lists of all rows, one after another."""
    if not found:
        return tuple(torch.empty(0, dtype=torch.int64, device=like.device) for _ in range(kinds))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


class PairMarginMiner(ByRows, _library.PairMarginMiner):
    """Positive pairs farther than one margin, negative pairs nearer than another."""

    def by_rows(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Indices:
        found: list[Indices] = []
        for first, d, same, different in self.rows(embeddings, labels, ref_emb, ref_labels):
            far = d < self.pos_margin if self.distance.is_inverted else d > self.pos_margin
            near = d > self.neg_margin if self.distance.is_inverted else d < self.neg_margin
            a1, p = torch.where(same & far)
            a2, n = torch.where(different & near)
            found.append((a1 + first, p, a2 + first, n))
        return joined(found, labels, 4)


class MultiSimilarityMiner(ByRows, _library.MultiSimilarityMiner):
    """Positives that are not much nearer than the nearest negative, and negatives that are not much farther than the
    farthest positive. The pairs of an anchor are in the order of their similarity."""

    def by_rows(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Indices:
        if ref_labels is labels and embeddings is not ref_emb:
            raise NotFused("ref_labels is labels, with other rows")
        found: list[Indices] = []
        some = [False, False]
        for first, d, same, different in self.rows(embeddings, labels, ref_emb, ref_labels):
            some = [some[0] or bool(same.any()), some[1] or bool(different.any())]
            inf = torch.finfo(d.dtype).max
            inverted = self.distance.is_inverted
            pos, p = d.where(same, inf if inverted else -inf).sort(1)
            neg, n = d.where(different, -inf if inverted else inf).sort(1)
            if inverted:
                hard_pos, hard_neg = pos - self.epsilon < neg[:, -1:], neg + self.epsilon > pos[:, :1]
            else:
                hard_pos, hard_neg = pos + self.epsilon > neg[:, :1], neg - self.epsilon < pos[:, -1:]
            (a1, at1), (a2, at2) = torch.where(hard_pos), torch.where(hard_neg)
            found.append((a1 + first, p[a1, at1], a2 + first, n[a2, at2]))
        return joined(found if all(some) else [], labels, 4)


class TripletMarginMiner(ByRows, _library.TripletMarginMiner):
    """Triplets of one kind; only the mined ones are ever listed."""

    def by_rows(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Indices:
        found: list[Indices] = []
        for first, d, same, different in self.rows(embeddings, labels, ref_emb, ref_labels):
            a, p = torch.where(same)
            for some in torch.arange(a.shape[0], device=a.device).split(max(1, CHUNK // max(d.shape[1], 1))):
                rows = d[a[some]]
                gap = self.distance.margin(rows, d[a[some], p[some], None])
                pair, n = torch.where(different[a[some]] & self.of_kind(gap))
                found.append((a[some][pair] + first, p[some][pair], n))
        return joined(found, labels, 3)

    def of_kind(self, gap: Tensor) -> Tensor:
        """Whether triplets are of the kind, by how much farther the negative is than the positive."""
        if self.type_of_triplets == "easy":
            return gap > self.margin
        chosen = gap <= self.margin
        if self.type_of_triplets == "hard":
            return chosen & (gap <= 0)
        return chosen & (gap > 0) if self.type_of_triplets == "semihard" else chosen


__all__ = [
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
]
__getattr__, __dir__ = handed_through(_library, __all__)
