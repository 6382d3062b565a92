"""What is asked of a backend: a record for each of its functions, which travels whole from the losses to a launch.

A function of a backend has the name of an operation and takes its record. Those named ...Grad hold the record of the
forward whose gradient they want. The leaves of a record are the arguments of the operation, see `ops/registration.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Batch
from .dtypes import state_dtype

MOVED = ("euclidean", "sqeuclidean")  # metrics that do not change when all rows are moved


def box(b: Batch, metric: str) -> tuple[Tensor, ...]:
    """The least and the most of every dimension [D] over the rows of both sides, without those that are ignored, by
    which all rows may be moved; () where they may not, and without rows."""
    if metric not in MOVED:
        return ()
    extremes = []
    for x, labels in ((b.x, b.x_labels), (b.y, b.y_labels)):
        if x is None or not x.shape[0]:
            continue
        if b.ignored is not None:
            counted = labels != b.ignored
            x = torch.where(counted[:, None], x, x.index_select(0, counted.int().argmax().reshape(1)))
        # on a CPU one after the other is 5 to 30 times as fast
        extremes.append((x.amin(0), x.amax(0)) if x.device.type == "cpu" else tuple(x.aminmax(dim=0)))
    if not extremes:
        return ()
    low, high = extremes[0]
    for least, most in extremes[1:]:
        low, high = torch.minimum(low, least), torch.maximum(high, most)
    return low, high


class Piece(NamedTuple):
    """A loss of `kernels/losses.py`, by what it takes and gives."""

    numbers: dict[str, float | None]  # their names, as it takes them, and what a number is that is not given
    terms: int  # how many folds it has a term for
    costly: bool = False  # it takes so many registers that its gradient has tiles of its own
    sparse: bool = False  # most gradients of a trained model are exactly 0, so tiles of zeros are skipped


PIECES = {
    "contrastive": Piece({"margin": None}, terms=3, sparse=True),
    "linear_contrastive": Piece({"margin": None}, terms=2, sparse=True),
    "softmax": Piece({"scale": None, "bias": 0.0}, terms=3),
    "capped": Piece({"cap": None}, terms=2, costly=True),
    "sigmoid": Piece({"scale": None, "bias": 0.0}, terms=2),
    "circle": Piece({"margin": None, "gamma": None}, terms=1),
}
FOLDS = ("sum", "lse")  # of terms: their sum, and log sum exp


class Fold(NamedTuple):
    """Row states: what a loss's terms of each anchor's positives, and of its negatives, add up to. [folds, anchors]"""

    batch: Batch
    numbers: Tensor  # of the loss for positives, then for negatives [2, numbers]
    offsets: Tensor | None  # added to scores: of rows [N] or columns [M]; of both [N + M], [N] in a self batch
    loss: str  # of PIECES
    metric: str
    pos: list[str]  # folds of the positives, of FOLDS; fold k takes the loss's term k
    neg: list[str]
    columns: bool = False  # the rows of y are anchors too, whose states follow those of x
    offsets_of: str = "columns"  # or "rows" or "both"
    weights: Tensor | None = None  # of the columns, in sums over negatives [M]
    group: int = 1  # so many neighbours among the columns are a group, of which the highest score alone counts

    @property
    def split_offsets(self) -> tuple[Tensor | None, Tensor | None]:
        """Those of the rows and those of the columns, the same ones in a self batch."""
        v = self.offsets
        if v is None or self.batch.y is None:
            return v, v
        if self.offsets_of == "both":
            N = self.batch.x.shape[0]
            return v[:N], v[N:]
        return (v, None) if self.offsets_of == "rows" else (None, v)


class FoldGrad(NamedTuple):
    """dx, dy, and by numbers and offsets, for derivatives of the states; empty tensors for those not wanted."""

    fold: Fold
    states: Tensor  # of the anchors [folds, anchors]
    dstates: Tensor
    want_x: bool
    want_y: bool
    want_numbers: bool
    want_x_offsets: bool  # those of both sides follow each other
    want_y_offsets: bool
    anchors: str = "rows"  # or "columns" or "both": whose states these are

    @property
    def of_sides(self) -> tuple[States | None, States | None]:
        """Those of the rows and those of the columns, the same ones in a self batch."""
        both, N = States(self.states, self.dstates), self.fold.batch.x.shape[0]
        if self.fold.batch.y is None:
            return both, both
        if self.anchors == "both":
            return States(*(t[:, :N] for t in both)), States(*(t[:, N:] for t in both))
        return (both, None) if self.anchors == "rows" else (None, both)


class States(NamedTuple):
    """Of the anchors on one side, and dL/dstates. [folds, n] each"""

    states: Tensor
    dstates: Tensor


class Block(NamedTuple):
    """Columns of another process that the rows of a fold meet too."""

    y: Tensor
    labels: Tensor
    offsets: Tensor | None = None
    states: States | None = None  # in the backward, of columns that are anchors


class Others(NamedTuple):
    """What the rows of a fold meet after its own columns: one block at a time, of which memory is enough.

    In the backward only dx, and what is by numbers and by the rows' offsets, has a share of theirs; in a self batch
    their processes count each pair by numbers too, so that it is a half here.
    """

    blocks: Iterable[Block]
    box: tuple[Tensor, ...]  # as `box` has it, of the rows of all processes


NO_OTHERS = Others((), ())


STORED = 32  # semi-hard negatives of an anchor that are kept for the backward, which mines any others again


class Triplets(NamedTuple):
    """States of every anchor: the sum of its triplets' terms, how many are chosen, how many cost something, and if
    `sloped` the sum of their slopes, which is the derivative by the margin. [3 or 4, N]

    For "nearest" (one triplet for each positive) also the row of the negative of the first positives of every anchor,
    -1 for those that cost nothing, in the order of the labels. [STORED, N]
    """

    batch: Batch
    margin: Tensor  # [1]
    metric: str
    triplets: str  # "all", "hard", "semihard", "easy" or "nearest"
    soft: bool
    sloped: bool  # for soft terms: of others the slopes are 1 where they cost something

    @property
    def use(self) -> str:
        """What kernels are compiled for."""
        return f"{self.metric} {self.triplets}{' soft' if self.soft else ''}"

    def new_states(self) -> Tensor:
        x = self.batch.x
        return torch.zeros(3 + self.sloped, x.shape[0], dtype=state_dtype(x), device=x.device)

    def new_negatives(self) -> Tensor:
        x, kept = self.batch.x, STORED if self.triplets == "nearest" else 0
        return torch.full((kept, x.shape[0]), -1, dtype=torch.int32, device=x.device)


class TripletsGrad(NamedTuple):
    """dx and dy for derivatives dsums [N] of the sums; empty tensors for those not wanted."""

    forward: Triplets
    negatives: Tensor  # for "nearest" those that the forward found
    dsums: Tensor
    want_x: bool
    want_y: bool


class Ranking(NamedTuple):
    """States of every anchor: the sums over its positives of each term of a piece of their ranks, and then how many
    positives it has. [terms + 1, N]

    The rank of a positive is 1 + the sum of logistic(scale (s - its own score)) over the anchor's other rows.
    """

    batch: Batch
    metric: str
    scale: float
    piece: str  # of `kernels/losses.py`: "imprecision" or "recall"
    numbers: list[float]  # the piece's
    terms: int

    @property
    def use(self) -> str:
        """What kernels are compiled for."""
        return f"{self.metric} {self.piece} {self.terms}"

    def new_states(self) -> Tensor:
        x = self.batch.x
        return torch.zeros(self.terms + 1, x.shape[0], dtype=state_dtype(x), device=x.device)


class RankingGrad(NamedTuple):
    """dx and dy for derivatives dstates [terms, N]; empty tensors for those not wanted."""

    forward: Ranking
    dstates: Tensor
    want_x: bool
    want_y: bool


class Mining(NamedTuple):
    """Index of every anchor's positive and negative, -1 where there is none. [2, N] int64"""

    batch: Batch
    metric: str
    positives: str  # "farthest" or "nearest"
    negatives: str  # these two, or "beyond": the nearest farther than the positive


class ListedDistances(NamedTuple):
    """Exact distances of pairs of rows that are named by their index. [others.shape]

    Without anchors each row of x is in two pairs, with the rows that it mined: NaN where it has none. They may be
    listed in any order, and more than once.
    """

    x: Tensor
    y: Tensor | None
    anchors: Tensor | None  # rows of x [P]; None: each row, in order
    others: Tensor  # rows of y [1, P]; without anchors the positives and the negatives [2, N], -1 for none
    metric: str


class ListedDistancesGrad(NamedTuple):
    """dx and dy: a gather, for every row, over the pairs that it is in; empty tensors for those not wanted."""

    forward: ListedDistances
    ddistances: Tensor
    want_x: bool
    want_y: bool


class RowDistances(NamedTuple):
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N]"""

    a: Tensor
    b: Tensor
    c: Tensor | None
    metric: str
    eps: float  # added to every difference
    pairs: int


class RowDistancesGrad(NamedTuple):
    """da, db, dc; dc is empty without c."""

    forward: RowDistances
    ddistances: Tensor


class Logits(NamedTuple):
    """Row states of logits [N, C, P], rows being the samples n and places p. [folds, N P]

    The logit of the own class and log sum exp of the others. If `shares`, which probabilities need, with the shares
    b = weight (smoothed target) of the classes: the sum of b, log sum exp of all classes, and the cost, which is the
    sum of b (log sum exp - logit).
    """

    z: Tensor
    target: Tensor  # the class of every row, -1 for none [N P]; or probabilities [N, C, P]
    weight: Tensor | None  # of every class [C]
    smoothing: float
    shares: bool
    overwrite: bool  # the backward may write dz into the memory of z


class LogitsGrad(NamedTuple):
    """dz, into the tensor that the backend is given, which may be z. The derivative of a log sum exp of all classes is
    what comes from the cost too."""

    forward: Logits
    states: Tensor
    dstates: Tensor


class Elements(NamedTuple):
    """The loss of every logit, in the shape of z, or if `total` their sum."""

    z: Tensor
    target: Tensor
    weight: Tensor | None  # of the elements: as many as z has, or of a period of it
    pos_weight: Tensor | None  # of their positive part
    loss: str
    numbers: list[float]
    total: bool
    overwrite: bool  # as in `Logits`


class ElementsGrad(NamedTuple):
    """dz, into the tensor that the backend is given, which may be z."""

    forward: Elements
    dloss: Tensor
