"""Which rows of a batch are compared, and how the terms of a loss become its value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .scores import double


def nothing(*inputs: float | Tensor | None) -> Tensor:
    """0, attached to the graphs of all inputs that are floating tensors, which receive gradient 0."""
    total = torch.zeros((), dtype=torch.float64)
    for value in inputs:
        if isinstance(value, Tensor) and value.is_floating_point():
            total = total + double(value.flatten()[:0]).sum()
    return total


def rows_that_count(rows: Tensor, labels: Sequence[int], ignore_index: int) -> Tensor:
    """The rows, with zeros in place of those that are ignored, which receive gradient 0."""
    counts = torch.tensor([label != ignore_index for label in labels], dtype=torch.bool)
    return torch.where(counts[:, None], rows, 0.0)


class Batch:
    """A batch and what it is compared with: the rows, and for every anchor the places of its positives and negatives.

    Rows with an ignored label have none and are none. Zeros stand in their places, so that what they hold is nowhere.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ref_offset: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        self.x = self.y = double(embeddings)
        self.labels: list[int] = labels.tolist()
        self.ref_labels = self.labels
        own_place: int | None = 0
        if ref_embeddings is not None and ref_labels is not None:
            self.y = double(ref_embeddings)
            self.ref_labels = ref_labels.tolist()
            own_place = ref_offset
        if ignore_index is not None:
            self.x = rows_that_count(self.x, self.labels, ignore_index)
            self.y = rows_that_count(self.y, self.ref_labels, ignore_index)
        self.anchors = [i for i, label in enumerate(self.labels) if label != ignore_index]
        self.positives: list[list[int]] = [[] for _ in self.labels]
        self.negatives: list[list[int]] = [[] for _ in self.labels]
        for i in self.anchors:
            for j, label in enumerate(self.ref_labels):
                if label == ignore_index or (own_place is not None and j == i + own_place):
                    continue
                (self.positives if label == self.labels[i] else self.negatives)[i].append(j)

    def others(self, i: int) -> list[int]:
        """The places of all rows that anchor i is compared with, in order."""
        return sorted(self.positives[i] + self.negatives[i])


def total(terms: Sequence[Tensor], zero: Tensor) -> Tensor:
    """The sum of scalars."""
    return torch.stack([zero, *terms]).sum()


def average(terms: Sequence[Tensor], zero: Tensor) -> Tensor:
    """The mean of scalars; 0 for none of them."""
    return total(terms, zero) / max(len(terms), 1)


def reduced(terms: Sequence[Sequence[Tensor]], reduction: str, zero: Tensor) -> Tensor:
    """The value of a loss whose rows or anchors have scalar terms, any number of them each.

    A row that does not count has no term. "active" is the mean of the terms above 0.
    """
    if reduction == "none":
        return torch.stack([total(own, zero) for own in terms]) if terms else zero.new_zeros(0) + zero
    every = [term for own in terms for term in own]
    if reduction == "sum":
        return total(every, zero)
    if reduction == "active":
        every = [term for term in every if term > 0]
    return average(every, zero)
