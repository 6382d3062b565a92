"""Row folds: the states of every anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import resolve_backend
from ..backends.dtypes import loss_dtype, state_dtype
from ..backends.request import FOLDS, PIECES, Close, Fold, FoldGrad
from ..checks import Batch
from . import direct, shared
from .registration import Operation
from .shared import group_of


def _fold_fake(f: Fold) -> Tensor:
    b = f.batch
    anchors = b.x.shape[0] + (b.y_labels.shape[0] if f.columns else 0)
    return b.x.new_empty(len(f.pos) + len(f.neg), anchors, dtype=state_dtype(b.x))


def _fold_grad_fake(g: FoldGrad) -> tuple[Tensor, ...]:
    b = g.fold.batch
    tensors = ((b.x, g.want_x), (b.y, g.want_y), (g.fold.numbers, g.want_numbers))
    rows = (b.x.new_empty(0) if t is None or not wanted else t.new_empty(t.shape) for t, wanted in tensors)
    sides = zip(g.fold.split_offsets, (g.want_x_offsets, g.want_y_offsets and b.y is not None), strict=True)
    shifted = [v for v, wanted in sides if v is not None and wanted]
    return (*rows, (shifted[0] if shifted else b.x).new_empty(sum(v.shape[0] for v in shifted)))


fold_grad_op = Operation("fold_grad", FoldGrad, "(Tensor, Tensor, Tensor, Tensor)", _fold_grad_fake)


def _fold_backward(f: Fold, wanted: Any, backend: str, outputs: Any, derivatives: Any) -> dict[str, Tensor]:
    """Recomputes the tiles."""
    wants = (wanted.batch.x, wanted.batch.y, wanted.numbers, wanted.offsets, wanted.offsets)
    anchors = "both" if f.columns else "rows"
    found = fold_grad_op(FoldGrad(f, outputs[0], derivatives[0], *wants, anchors), backend)
    return dict(zip(("x", "y", "numbers", "offsets"), found, strict=True))


fold_op = Operation("fold", Fold, "Tensor", _fold_fake, _fold_backward)


class Of(NamedTuple):
    """What is folded over one kind of pairs: fold k, "sum" or "lse", of the loss's term k; and the loss's numbers."""

    folds: list[str]
    numbers: Mapping[str, float | Tensor]


def of(*folds: str, **numbers: float | Tensor) -> Of:
    return Of([*folds], numbers)


NOTHING = of()


def fold(
    batch: Batch, loss: str, metric: str, *, pos: Of = NOTHING, neg: Of = NOTHING, columns: bool = False,
    offsets: Tensor | None = None, offsets_of: str = "columns", weights: Tensor | None = None, group: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Row states of x against y: each fold of `pos`, then each of `neg`, [N].

    They are differentiable by x, y, the offsets and the numbers.

    loss: a name of `PIECES`.
    columns: whether the rows of y are anchors too; every state is then [N + M], with the rows of y last.
    offsets: numbers that are added to the scores of "columns" [M] or of "rows" [N]. With offsets v for "both", [N + M]
        or [N] if there is no y, log(exp(v_i) + exp(v_j)) is added to every score.
    weights: the weights of the columns [M] in a "sum" over negatives; they receive no gradient.
    group: the size, a power of 2, of groups of neighbouring columns (the sub-centers of a class). Only the highest
        score of a group counts, the first of equal ones.
    """
    request = requested(batch, loss, metric, pos, neg, columns, offsets, offsets_of, weights, group)
    backend, processes = resolve_backend(batch.x), group_of(batch)
    if processes is not None:
        return shared.fold(request, processes, backend).unbind()
    if direct.possible(direct.tensors_in(request), backend):
        return direct.apply(Close(request), backend).unbind()
    states: Tensor = fold_op(request, backend)
    return states.unbind()


def requested(
    batch: Batch, loss: str, metric: str, pos: Of = NOTHING, neg: Of = NOTHING, columns: bool = False,
    offsets: Tensor | None = None, offsets_of: str = "columns", weights: Tensor | None = None, group: int = 1,
) -> Fold:  # fmt: skip
    """The record of what `fold` is asked for."""
    if offsets is not None and offsets_of == "rows" and batch.y is None:  # s_ij and s_ji differ
        batch = batch._replace(y=batch.x, ref_offset=0, y_sorted=batch.x_sorted)
    given = [*numbers_of(loss, pos), *numbers_of(loss, neg)]
    offsets, weights = (None if t is None else t.to(loss_dtype(batch.x)) for t in (offsets, weights))
    numbers = as_tensor(given, batch.x).view(2, -1)
    return Fold(batch, numbers, offsets, loss, metric, pos.folds, neg.folds, columns, offsets_of, weights, group)


def numbers_of(loss: str, kind: Of) -> list[float | Tensor]:
    """The loss's numbers for one kind of pairs, in the loss's order; if nothing is folded, they have no effect.

    Raises:
        ValueError: The loss has other numbers, or does not have these terms.
    """
    if loss not in PIECES:
        raise ValueError(f"loss must be one of PIECES (backends/request.py), {', '.join(PIECES)}, got {loss!r}")
    piece, numbers, missing = PIECES[loss], [], False
    for name, default in piece.numbers.items():
        value = kind.numbers.get(name, default)
        missing |= value is None
        numbers.append(0.0 if value is None else value)
    if (missing and kind.folds) or kind.numbers.keys() - piece.numbers.keys():
        given = ", ".join(kind.numbers) or "none"
        raise ValueError(f"{loss} takes the numbers {', '.join(piece.numbers)}, got {given}")
    if len(kind.folds) > piece.terms or not set(kind.folds) <= set(FOLDS):
        raise ValueError(f"{loss} has {piece.terms} terms, each to be folded as one of {FOLDS}, got {kind.folds}")
    return numbers


def as_tensor(numbers: list[float | Tensor], x: Tensor) -> Tensor:
    """A loss's numbers as a tensor, on the CPU, where reading needs no sync, unless one is a tensor on the device."""
    dtype, symbolic = loss_dtype(x), torch.compiler.is_compiling()
    tensors = list(filter(torch.is_tensor, numbers))
    device = x.device if any(p.device.type != "cpu" for p in tensors) else torch.device("cpu")
    if not tensors and not symbolic:
        return torch.tensor(numbers, dtype=dtype, device=device)
    # Unlike a copy from the CPU, a fill can be captured in a CUDA graph, and compiled code lets a product vary.
    one = torch.ones((), dtype=dtype, device=device)
    filled = [p if isinstance(p, Tensor) else one * p if symbolic else torch.full_like(one, p) for p in numbers]
    return torch.stack([p.to(device, dtype) for p in filled])
