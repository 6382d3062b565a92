"""Rows with labels, among which pairs are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import groups
from . import tensors
from .tensors import first_of, ignored_rows, one_a_row, rows, same_dimensions, without

METRICS = ("euclidean", "sqeuclidean", "cosine", "manhattan")
SIMILARITIES = ("cosine", "dot", "euclidean", "sqeuclidean", "manhattan")  # a distance means its negative


class Batch(NamedTuple):
    """Rows to be compared, and their labels: [N, D] with [M, D], or with themselves."""

    x: Tensor
    y: Tensor | None  # None: x
    x_labels: Tensor
    y_labels: Tensor
    # Row i of x is row ref_offset + i of y, and the two are not paired. 0 without y; None: no row is on both sides.
    ref_offset: int | None
    ignored: int | None = None  # rows with this label are in no pair
    x_sorted: bool = False  # whether the labels are known to ascend
    y_sorted: bool = False
    # Over a group (`groups.py`) the rows are compared with those of all processes: with so many for each row that a
    # process gives (2 for two views). 0: with the y of this process alone.
    shared: int = 0

    @property
    def anchors(self) -> int | Tensor:
        """How many rows of x are not ignored."""
        return self.x.shape[0] if self.ignored is None else (self.x_labels != self.ignored).sum()


def batch(
    embeddings: object, labels: object, ref_embeddings: object, ref_labels: object, ref_offset: int | None,
    ignore_index: int | None,
) -> Batch:  # fmt: skip
    x = rows("embeddings", embeddings)
    x_labels = integers("labels", labels, x)
    if (ref_embeddings is None) != (ref_labels is None):
        missing, given = ("ref_labels", "ref_embeddings") if ref_labels is None else ("ref_embeddings", "ref_labels")
        raise ValueError(f"{missing} must be given together with {given}, got None")
    if ref_embeddings is None:
        if ref_offset is not None:
            raise ValueError(f"ref_offset must be None where there are no ref_embeddings, got {ref_offset!r}")
        return ignoring(Batch(x, None, x_labels, x_labels, 0, shared=1), ignore_index)
    y = same_dimensions("embeddings", x, "ref_embeddings", ref_embeddings)
    y_labels = integers("ref_labels", ref_labels, y)
    if x_labels.dtype != y_labels.dtype:
        x_labels, y_labels = x_labels.long(), y_labels.long()
    found = ignoring(Batch(x, y, x_labels, y_labels, ref_offset), ignore_index)
    check_place(found)
    return found


def integers(name: str, labels: object, x: Tensor) -> Tensor:
    """Integer or bool labels, one per row of x, as int32 or int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be an integer or bool tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        if labels.shape == x.shape:
            advice = ": rows of a second view belong to nt_xent_loss or info_nce_loss"
        else:
            advice = one_a_row(name, labels, x.shape[0])
        raise TypeError(f"{name} must be an integer or bool tensor, got {labels.dtype}{advice}")
    if labels.shape != x.shape[:1]:
        advice = one_a_row(name, labels, x.shape[0])
        raise ValueError(f"{name} must have shape ({x.shape[0]},), one label a row, got {tuple(labels.shape)}{advice}")
    if labels.device != x.device:
        raise ValueError(f"{name} must be on the device of the embeddings, {x.device}, got {labels.device}")
    return labels if labels.dtype in (torch.int32, torch.int64) else labels.to(torch.int64)


def identities(
    ids: object, y_name: str, y_ids: object, x: Tensor, y: Tensor, offset: int | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The ids of rows x and of rows y, which are those of x if no others are given.

    Row i of x and row offset + i of y must have equal ids. This is checked only where it needs no sync; elsewhere wrong
    ids make the loss wrong.
    """
    N, M = x.shape[0], y.shape[0]
    of_x = integers("ids", ids, x)
    if y_ids is None and N != M:
        raise ValueError(f"{y_name} must be given with ids where there are {M} rows for {N} ids, got None")
    of_y = of_x if y_ids is None else integers(y_name, y_ids, y)
    of_x, of_y = of_x.long(), of_y.long()
    if offset is None or not tensors.readable(of_x, of_y):
        return of_x, of_y
    if (i := first_of(of_x != of_y[offset : offset + N])) is not None:
        raise ValueError(
            f"{y_name} must be those of ids from row {offset} (offset) on, but row {offset + i} has id "
            f"{of_y[offset + i]}, row {i} of ids {of_x[i]}"
        )
    return of_x, of_y


def ignoring(b: Batch, ignore_index: int | None) -> Batch:
    """The batch without the pairs of rows that have the label ignore_index; these rows are replaced by zeros."""
    if ignore_index is None:
        return b
    x_labels, y_labels = b.x_labels.long(), b.y_labels.long()  # narrower dtypes would see only its last bits
    of_x, of_y = ignored_rows(x_labels, ignore_index), ignored_rows(y_labels, ignore_index)
    if of_x is None and of_y is None and groups.current() is None:  # other processes may have such rows
        return b
    y = None if b.y is None else without(b.y, of_y)
    return b._replace(x=without(b.x, of_x), y=y, x_labels=x_labels, y_labels=y_labels, ignored=ignore_index)


def check_place(b: Batch) -> None:
    """Check that the references from ref_offset on are the rows. This is done only where it needs no sync; elsewhere a
    wrong ref_offset makes the loss wrong."""
    x, y, x_labels, y_labels, first = b[:5]
    if y is None or first is None:
        return
    N, M = x.shape[0], y.shape[0]
    if first + N > M:
        raise ValueError(
            f"ref_embeddings must have the {N} rows of embeddings from row {first} on, got {M} rows{found_at(x, y)}"
        )
    if tensors.readable(x, y) and (i := first_of(apart(x, y[first : first + N]))) is not None:
        raise ValueError(
            f"ref_embeddings must have the rows of embeddings from row {first} (ref_offset) on, but row "
            f"{first + i} is not row {i} of embeddings{found_at(x, y)}"
        )
    if tensors.readable(x_labels, y_labels) and (i := first_of(x_labels != y_labels[first : first + N])) is not None:
        raise ValueError(
            f"ref_labels must have the labels from row {first} (ref_offset) on, but row {first + i} has label "
            f"{y_labels[first + i]}, row {i} of labels {x_labels[i]}"
        )


def apart(x: Tensor, y: Tensor) -> Tensor:
    """Which rows of x and y differ; NaN equals NaN here. [N] bool"""
    x, y = x.detach(), y.detach()
    return ((x != y) & ~((x != x) & (y != y))).any(-1)


def found_at(x: Tensor, y: Tensor) -> str:
    """The advice at the end of an error, where rows x are not the rows of y that they should be."""
    N, M = x.shape[0], y.shape[0]
    if tensors.readable(x, y) and 0 < N <= M:
        for at in (~apart(x[:1], y[: M - N + 1])).nonzero().flatten().tolist():
            if not apart(x, y[at : at + N]).any():
                return f"; they are there from row {at} on: ref_offset={at}"
    return "; where no row of embeddings is a reference leave it out"
