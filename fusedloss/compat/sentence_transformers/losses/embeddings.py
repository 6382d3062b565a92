"""What the losses have in common: when a call goes to the library, and what the losses are given."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...calls import NotFused, attempt

T = TypeVar("T")


class OfEmbeddings:
    """A loss of the model's embeddings; among the bases it comes before the library's class."""

    @abstractmethod
    def _fused(self, embeddings: list[Tensor], labels: Tensor) -> Tensor: ...

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        library = partial(super().compute_loss_from_embeddings, embeddings, labels)  # type: ignore[misc]
        return attempt(type(self).__name__, lambda: self._fused(dense(embeddings), labels), library)


class OfCachedEmbeddings:
    """A loss of embeddings in mini-batches (GradCache); among the bases it comes before the library's class. All
    embeddings are taken at once, since the fused loss needs no mini-batches."""

    @abstractmethod
    def _fused(self, embeddings: list[Tensor]) -> Tensor: ...

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        library = partial(super().calculate_loss, reps, labels, with_backward=with_backward)  # type: ignore[misc]
        return attempt(type(self).__name__, lambda: self._at_once(reps, with_backward), library)

    def _at_once(self, reps: list[list[Tensor]], with_backward: bool) -> Tensor:
        loss = self._fused(dense([torch.cat(column) for column in reps]))
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()


def dense(embeddings: list[Tensor]) -> list[Tensor]:
    if any(t.layout != torch.strided for t in embeddings):
        raise NotFused("embeddings are sparse")
    return embeddings


def known(option: str, function: Callable[..., Tensor], table: Mapping[Any, T]) -> T:
    """The table's entry for one of the library's functions."""
    if function not in table:
        names = ", ".join(getattr(f, "__name__", str(f)) for f in table)
        raise NotFused(f"{option} is {getattr(function, '__name__', function)!s}, fused are {names}")
    return table[function]


def each_has_one(labels: Tensor, rows: Tensor) -> Tensor:
    """The labels, one per row. [N]"""
    if labels.numel() != rows.shape[0]:
        raise NotFused("labels are not one an example")
    return labels.view(-1)


def precision_of(metric: str, rows: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The precision in which the library compares all rows with each other: under autocast, cosines and dot products
    have its dtype, distances do not."""
    if metric in ("cosine", "similarity", "dot"):
        return contextlib.nullcontext()
    return torch.autocast(rows.device.type, enabled=False)
