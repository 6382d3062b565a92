"""Requests to a backend: one record per function, which is passed on unchanged from the losses to a launch.

A function of a backend has the name of an operation and takes the operation's record. Records named ...Grad contain the
record of the forward whose gradient they ask for. The leaves of a record are the arguments of the operation, see
`ops/registration.py`. Those of triplets and ranks are in `triplet_requests.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from ..checks import Batch


class Piece(NamedTuple):
    """A loss of `kernels/losses.py`: what it takes, and what it returns."""

    numbers: dict[str, float | None]  # the names of its numbers, in order, and their defaults
    terms: int  # how many folds it has terms for
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
FOLDS = ("sum", "lse")  # folds of terms: the sum, and the log sum exp


class Fold(NamedTuple):
    """Row states: folds of a loss's terms over each anchor's positives, and over its negatives. [folds, anchors]"""

    batch: Batch
    numbers: Tensor  # the loss's numbers for positives, then for negatives [2, numbers]
    offsets: Tensor | None  # added to scores: one per row [N], column [M] or both [N + M]; [N] for both without y
    loss: str  # a name of PIECES
    metric: str
    pos: list[str]  # folds over the positives, names of FOLDS; fold k takes the loss's term k
    neg: list[str]
    columns: bool = False  # the rows of y are anchors too, whose states follow those of x
    offsets_of: str = "columns"  # or "rows" or "both"
    weights: Tensor | None = None  # weights of the columns in sums over negatives [M]
    group: int = 1  # the size of groups of neighbouring columns, of which only the highest score counts

    @property
    def split_offsets(self) -> tuple[Tensor | None, Tensor | None]:
        """What belongs to the rows, and what belongs to the columns; the same if there is no y."""
        v = self.offsets
        if v is None or self.batch.y is None:
            return v, v
        if self.offsets_of == "both":
            N = self.batch.x.shape[0]
            return v[:N], v[N:]
        return (v, None) if self.offsets_of == "rows" else (None, v)


class FoldGrad(NamedTuple):
    """dx, dy, and the derivatives by numbers and offsets, from those by the states; empty tensors where not wanted."""

    fold: Fold
    states: Tensor  # of the anchors [folds, anchors]
    dstates: Tensor
    want_x: bool
    want_y: bool
    want_numbers: bool
    want_x_offsets: bool  # the gradients of both sides' offsets follow each other
    want_y_offsets: bool
    anchors: str = "rows"  # or "columns" or "both": whose states these are

    @property
    def of_sides(self) -> tuple[States | None, States | None]:
        """What belongs to the rows, and what belongs to the columns; the same if there is no y."""
        both, N = States(self.states, self.dstates), self.fold.batch.x.shape[0]
        if self.fold.batch.y is None:
            return both, both
        if self.anchors == "both":
            return States(*(t[:, :N] for t in both)), States(*(t[:, N:] for t in both))
        return (both, None) if self.anchors == "rows" else (None, both)


# Closing formulas (`kernels/closings.py`), and how many means the loss is the sum of; "sums" adds up all states.
CLOSINGS = {
    "sums": 0, "gap": 1, "supcon": 1, "nca": 1, "multi_similarity": 1, "circle": 1, "lifted": 1, "active": 1,
    "active_by_kind": 2, "cosface": 1, "arcface": 1, "proxy_anchor": 2,
}  # fmt: skip


class Close(NamedTuple):
    """A loss from row states: the sum of what a closing formula makes of each anchor's states, or their mean. Without a
    closing formula the states themselves, see `Fold`."""

    fold: Fold
    closing: str = ""  # a name of CLOSINGS
    constants: tuple[float, ...] = ()  # the numbers of the closing formula
    mean: bool = False
    divisor: int | Tensor | None = None  # of the mean of "sums"
    classes: Tensor | None = None  # of the rows, IGNORED or WRONG where they have none [N]
    weights: Tensor | None = None  # how much the rows count [N]


class Wants(NamedTuple):
    """The derivatives that are wanted; those by offsets are of either side."""

    x: bool
    y: bool
    numbers: bool
    x_offsets: bool
    y_offsets: bool


class States(NamedTuple):
    """The states of the anchors on one side, and dL/dstates. [folds, n] each"""

    states: Tensor
    dstates: Tensor


class Block(NamedTuple):
    """Columns of another process, which the rows of a fold are compared with too."""

    y: Tensor
    labels: Tensor
    offsets: Tensor | None = None
    states: States | None = None  # in the backward, of columns that are anchors


class Others(NamedTuple):
    """What the rows of a fold are compared with after its own columns: one block at a time, to save memory.

    In the backward they contribute only to dx and to the derivatives by numbers and by the rows' offsets. Without y the
    other process counts each of these pairs in its derivatives by numbers too, so half of it is counted here.
    """

    blocks: Iterable[Block]
    box: tuple[Tensor, ...]  # the `box` around the rows of all processes


NO_OTHERS = Others((), ())


class Mining(NamedTuple):
    """The index of every anchor's positive and negative; -1 where there is none. [2, N] int64"""

    batch: Batch
    metric: str
    positives: str  # "farthest" or "nearest"
    negatives: str  # one of these, or "beyond": the nearest that is farther than the positive


class ListedDistances(NamedTuple):
    """The exact distances of pairs of rows that are given by index. [others.shape]

    Pairs may be listed in any order, and more than once. Without anchors each row of x is in two pairs, with its mined
    positive and negative; the distance is NaN where there is none.
    """

    x: Tensor
    y: Tensor | None
    anchors: Tensor | None  # rows of x [P]; None: each row, in order
    others: Tensor  # rows of y [1, P]; without anchors the positives and the negatives [2, N], -1 for none
    metric: str


class ListedDistancesGrad(NamedTuple):
    """dx and dy: for every row, a sum over the pairs that it is in; empty tensors where not wanted."""

    forward: ListedDistances
    ddistances: Tensor
    want_x: bool
    want_y: bool


class HardTriplets(NamedTuple):
    """The loss of every anchor's mined positive and negative, closed by the backend: a scalar.

    With it come what its backward needs: the derivatives of the loss by the sum of the terms and by the margin [2], the
    index of the pairs [2, N], and the slopes of their distances [3, 2, N].
    """

    batch: Batch
    margin: Tensor  # [1]
    metric: str
    positives: str  # as in `Mining`
    negatives: str
    soft: bool
    reduction: str  # "mean", "sum" or "active"


class ToCenters(NamedTuple):
    """Half the squared distance of every row to one of the centers, reduced by the backend: a scalar.

    With it come what its backward needs beside the classes, as in `HardTriplets`. [2], [3, 1, N]
    """

    x: Tensor
    centers: Tensor
    classes: Tensor  # the class of every row, as from `checks.class_indices` [N]
    reduction: str  # "mean" or "sum"


class MinedGrad(NamedTuple):
    """dx and dy of a loss that the backend has closed; empty tensors where not wanted."""

    x: Tensor
    y: Tensor | None
    others: Tensor  # the rows of y in the pairs of each row of x, negative for none [K, N]
    slopes: Tensor  # [3, K, N]
    factors: Tensor  # [2]
    dloss: Tensor  # the derivative by the loss, a scalar
    metric: str
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
    """Row states of logits [N, C, P], where a row is a sample n and a place p. [folds, N P]

    They are the logit of the own class and the log sum exp of the other classes. With `shares`, which probabilities
    need, every class has the share b = weight (smoothed target), and the states are the sum of b, the log sum exp of
    all classes, and the cost, which is the sum of b (log sum exp - logit).
    """

    z: Tensor
    target: Tensor  # the class of every row, -1 for none [N P]; or probabilities [N, C, P]
    weight: Tensor | None  # of every class [C]
    smoothing: float
    shares: bool
    overwrite: bool  # the backward may write dz into the memory of z


class LogitsGrad(NamedTuple):
    """dz, written into the tensor that the backend is given, which may be z. The derivative by the log sum exp of all
    classes includes what comes from the cost."""

    forward: Logits
    states: Tensor
    dstates: Tensor


class Elements(NamedTuple):
    """The loss of every logit, in the shape of z, or the sum of all if `total`."""

    z: Tensor
    target: Tensor
    weight: Tensor | None  # the weights of the elements: as many as z has, or one period of them
    pos_weight: Tensor | None  # the weights of the positive part, likewise
    loss: str
    numbers: list[float]
    total: bool
    overwrite: bool  # as in `Logits`


class ElementsGrad(NamedTuple):
    """dz, written into the tensor that the backend is given, which may be z."""

    forward: Elements
    dloss: Tensor
