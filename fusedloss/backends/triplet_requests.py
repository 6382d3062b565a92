"""Requests about every positive of an anchor, see `request.py`: triplets, and ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Batch
from ..kernels import configs
from .dtypes import state_dtype

# Of how many positives of an anchor the forward keeps for the backward what it found, at most. Where semi-hard
# negatives were not kept, kernels mine them again in turns, so that they keep all for which there is memory.
STORED = {("triton", "all"): 512, ("triton", "nearest"): 1 << 30, ("blocked", "all"): 0, ("blocked", "nearest"): 32}


class Triplets(NamedTuple):
    """States of every anchor: the sum of its triplets' terms, what is counted, and the sum of the slopes, which is the
    derivative by the margin. [3, N]

    For its backward a backend also returns what it has found of some positives: `new_places` and `new_kept`.
    """

    batch: Batch
    margin: Tensor  # [1]
    metric: str
    triplets: str  # "all", "hard", "semihard", "easy" or "nearest": one for each positive, with a semi-hard negative
    soft: bool
    counted: str  # "chosen": the triplets; "active": those that cost something; "none"
    stored: int  # of how many positives something is kept, at most

    @property
    def use(self) -> str:
        """The name of what kernels are compiled for."""
        return f"{self.metric} {self.triplets}{' soft' if self.soft else ''}"

    @property
    def splits(self) -> int:
        """How many programs share the columns of some rows, so that few rows fill a device too."""
        N, M = self.batch.x.shape[0], self.batch.y_labels.shape[0]
        return at_least_one(torch.sym_min(8, torch.sym_min(configs.SPLIT_TARGET // at_least_one(N // 64), M // 16)))

    @property
    def width(self) -> int:
        """Of how many positives something is kept."""
        N, M = self.batch.x.shape[0], self.batch.y_labels.shape[0]
        each = 8 if self.triplets == "nearest" else 10 * self.splits
        room = configs.WORKSPACE // (each * at_least_one(N))
        some = torch.sym_min(torch.sym_min(self.stored, M), at_least_one(room))
        return (some + configs.POSITIVES - 1) // configs.POSITIVES * configs.POSITIVES

    @property
    def lanes(self) -> int:
        """As many as `kernels.triplets.lanes` of the anchors."""
        return (self.batch.x.shape[0] + 255) // 256 * 256

    def new_states(self) -> Tensor:
        x = self.batch.x
        return torch.zeros(3, x.shape[0], dtype=state_dtype(x), device=x.device)

    def new_places(self) -> Tensor:
        """For "nearest", the column of each positive's negative, -1 where it costs nothing [width, N]; else the place
        of each positive among the anchor's sorted positives [splits, width, lanes]."""
        x = self.batch.x
        if self.triplets == "nearest":
            return torch.empty(self.width, x.shape[0], dtype=torch.int32, device=x.device)
        return torch.empty(self.splits, self.width, self.lanes, dtype=torch.int16, device=x.device)

    def new_kept(self) -> Tensor:
        """The sorted positives' scores, and the sums of the slopes of their triplets; only where it is for all.
        [2, splits, width, lanes]"""
        kinds = 0 if self.triplets == "nearest" else 2
        size = (kinds, self.splits, self.width, self.lanes)
        return torch.empty(size, dtype=torch.float32, device=self.batch.x.device)

    def by_margin(self, states: Tensor, dsums: Tensor) -> Tensor:
        """The derivative by the margin: a term grows with it as with its gap. [1]"""
        return (dsums * states[2]).sum().reshape(1).to(self.margin)


def at_least_one(n: int) -> int:
    """The larger of 1 and a number, which may be symbolic."""
    return torch.sym_max(1, n)


class TripletsGrad(NamedTuple):
    """dx and dy from the derivatives dsums [N] by the sums; empty tensors where not wanted."""

    forward: Triplets
    places: Tensor  # what the forward kept
    kept: Tensor
    dsums: Tensor
    want_x: bool
    want_y: bool


class Ranking(NamedTuple):
    """States of every anchor: the sum over its positives' ranks of each term of a piece, and how many positives it has.
    [terms + 1, N]

    The rank of a positive is 1 + the sum of logistic(scale (s - its own score)) over the anchor's other rows.
    """

    batch: Batch
    metric: str
    scale: float
    piece: str  # of `kernels/losses.py`: "imprecision" or "recall"
    numbers: list[float]  # the numbers of the piece
    terms: int

    @property
    def use(self) -> str:
        """The name of what kernels are compiled for."""
        return f"{self.metric} {self.piece} {self.terms}"

    def new_states(self) -> Tensor:
        x = self.batch.x
        return torch.zeros(self.terms + 1, x.shape[0], dtype=state_dtype(x), device=x.device)


class RankingGrad(NamedTuple):
    """dx and dy from the derivatives dstates [terms, N]; empty tensors where not wanted."""

    forward: Ranking
    dstates: Tensor
    want_x: bool
    want_y: bool
