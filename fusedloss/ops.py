"""From the losses to a backend: custom ops and their backward.

The backward is registered on the op (PyTorch makes the `torch.autograd.Function` from it): a `Function` of our own
around an op cannot be traced by `torch.compile` when no input needs a gradient (torch 2.13).

An op compares rows x [N, D] with y [M, D], or with themselves where y is None. The pairs (i, i) are left out of a self
batch, and with `own` (the first N rows of y are those of x) of one with references too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import tuning
from .backends import module, resolve_backend
from .states import loss_dtype, new_index, state_dtype


def no_double_backward(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("fusedloss losses can be differentiated once: double backward is not implemented")


def call_backend(name: str, *args: Any) -> Any:
    """A function of the backend that the last argument names, on contiguous tensors."""
    x, backend = args[0], args[-1]
    function = getattr(module(backend), name)
    contiguous = [a.contiguous() if isinstance(a, Tensor) else a for a in args[:-1]]
    device = x.device.type
    autocast = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
    # Kernels launch on the current device; products inside a backend keep their precision under autocast.
    with torch.cuda.device_of(x), autocast:
        found = function(*contiguous)
        if tuning.wanted:
            tuning.tune_wanted(function, contiguous)
        return found


FUNCTIONS: dict[str, Any] = {}  # what an op calls, by its name


def register_fake(op: Any, name: str, function: Any, fake: Any) -> None:
    """The fake of an op. On the device "meta" the Triton backend goes as far as its launches, to be recorded."""
    FUNCTIONS[f"fusedloss::{name}"] = function
    op.register_fake(lambda *args: (function if args[0].is_meta and args[-1] == "triton" else fake)(*args))


def _op(name: str, schema: str, fake: Any) -> Any:
    """The custom op of a backend function: same name and arguments, then the backend's name."""
    function = partial(call_backend, name)
    op = torch.library.custom_op(f"fusedloss::{name}", function, mutates_args=(), schema=schema)
    register_fake(op, name, function, fake)
    return op


def _grad_op(name: str, schema: str, fake: Any) -> Any:
    """An op that computes a gradient: a double backward through it is an error that says so."""
    op = _op(name, schema, fake)
    op.register_autograd(no_double_backward)
    return op


# ------------------------------------------------------------------------------------------------- fold: row states


# The loss, its scores, and its folds of positives and of negatives.
SPEC = "str loss, str metric, str[] pos, str[] neg, bool own"


def _fold_fake(
    x: Tensor, y: Tensor | None, xl: Tensor, yl: Tensor, params: Tensor, offsets: Tensor | None, *spec: Any
) -> Tensor:
    pos, neg, _, columns = spec[2:6]
    return x.new_empty(len(pos) + len(neg), len(x) + (len(yl) if columns else 0), dtype=state_dtype(x))


def _fold_grad_fake(
    x: Tensor, y: Tensor | None, xl: Tensor, yl: Tensor, params: Tensor, offsets: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want_x, want_y, want_params, want_offsets = rest[-5:-1]

    def like(t: Tensor | None, wanted: bool) -> Tensor:
        return t.new_empty(t.shape) if t is not None and wanted else x.new_empty(0)

    return like(x, want_x), like(y, want_y), like(params, want_params), like(offsets, want_offsets)


fold_op = _op(
    "fold",
    "(Tensor x, Tensor? y, Tensor x_labels, Tensor y_labels, Tensor params, Tensor? offsets, "
    f"{SPEC}, bool columns, str backend) -> Tensor",
    _fold_fake,
)
fold_grad_op = _grad_op(
    "fold_grad",
    "(Tensor x, Tensor? y, Tensor x_labels, Tensor y_labels, Tensor params, Tensor? offsets, Tensor states, "
    f"Tensor dstates, {SPEC}, bool want_x, bool want_y, bool want_params, bool want_offsets, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fold_grad_fake,
)


def _fold_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    *tensors, loss, metric, pos, neg, own, _, ctx.backend = inputs
    ctx.spec = (loss, metric, pos, neg, own)
    ctx.save_for_backward(*tensors, output)


def _fold_backward(ctx: Any, dstates: Tensor) -> Any:
    """Recomputes the tiles."""
    saved = ctx.saved_tensors  # read once: activation checkpointing unpacks them as they are read
    want_x, want_y, _, _, want_params, want_offsets = ctx.needs_input_grad[:6]
    wants = (want_x, want_y, want_params, want_offsets)
    grads = fold_grad_op(*saved, dstates, *ctx.spec, *wants, ctx.backend)
    dx, dy, dparams, doffsets = (grad if want else None for grad, want in zip(grads, wants, strict=True))
    return dx, dy, None, None, dparams, doffsets, *[None] * 7


fold_op.register_autograd(_fold_backward, setup_context=_fold_setup)


def fold(
    x: Tensor,
    y: Tensor | None,
    x_labels: Tensor,
    y_labels: Tensor | None,
    own: bool,
    params: Sequence[float | Tensor],
    loss: str,
    metric: str,
    *,
    pos: Sequence[str] = (),
    neg: Sequence[str] = (),
    columns: bool = False,
    offsets: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Row states of x against y: each fold of `pos` and of `neg`, [N].

    pos, neg: the folds, "sum" or "lse", of the loss's terms of the positives and of the negatives.
    columns: the rows of y are anchors too, and every state is [N + M], theirs last.
    offsets: [M], one of every column, added to its scores; or [N + M], or [N] in a self batch: then log(exp(v_i) +
    exp(v_j)) of the offsets v is added to every score.
    Differentiable by x, y, offsets and the numbers in params.
    """
    y_labels = x_labels if y_labels is None else y_labels
    numbers, backend = _numbers(params, x), resolve_backend(x)
    offsets = None if offsets is None else offsets.to(loss_dtype(x))
    spec = (loss, metric, list(pos), list(neg), own)
    return fold_op(x, y, x_labels, y_labels, numbers, offsets, *spec, columns, backend).unbind()


def _numbers(params: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """A loss's numbers: on the CPU, where reading them takes no sync, unless one of them is a tensor on the device."""
    dtype = loss_dtype(x)
    tensors = [p for p in params if isinstance(p, Tensor)]
    if not tensors:
        return torch.tensor(params, dtype=dtype)
    device = x.device if any(p.device.type != "cpu" for p in tensors) else torch.device("cpu")
    # A fill, unlike a copy from the CPU, can be captured in a CUDA graph.
    filled = [p if isinstance(p, Tensor) else torch.full((), p, dtype=dtype, device=device) for p in params]
    return torch.stack([p.to(device, dtype) for p in filled])


# ---------------------------------------------------------------------------------------------------- all triplets


TRIPLETS = "Tensor x, Tensor? y, Tensor x_labels, Tensor y_labels, Tensor margin"

fold_triplets_op = _op(
    "fold_triplets",
    f"({TRIPLETS}, str metric, str triplets, bool soft, bool own, str backend) -> (Tensor, Tensor)",
    lambda x, y, xl, yl, margin, metric, triplets, *_: (
        x.new_empty(3, len(x), dtype=state_dtype(x)),
        new_index(x, len(yl), triplets),
    ),
)
fold_triplets_grad_op = _grad_op(
    "fold_triplets_grad",
    f"({TRIPLETS}, Tensor index, Tensor dsums, str metric, str triplets, bool soft, bool own, bool want_x, "
    "bool want_y, str backend) -> (Tensor, Tensor)",
    lambda x, y, *rest: (
        x.new_empty(x.shape if rest[-3] else 0),
        x.new_empty(0) if y is None or not rest[-2] else y.new_empty(y.shape),
    ),
)


def _triplets_setup(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    *tensors, metric, triplets, soft, own, ctx.backend = inputs
    states, index = output
    ctx.spec = (metric, triplets, soft, own)
    ctx.mark_non_differentiable(index)
    ctx.save_for_backward(*tensors, index, states)


def _triplets_backward(ctx: Any, dstates: Tensor, _: Any) -> Any:
    """Recomputes the tiles. Of the states only the sums have a derivative: the others are counts."""
    *tensors, states = ctx.saved_tensors
    want_x, want_y, _, _, want_margin = ctx.needs_input_grad[:5]
    dx, dy = fold_triplets_grad_op(*tensors, dstates[0], *ctx.spec, want_x, want_y, ctx.backend)
    dmargin = None
    if want_margin:  # every term that costs something grows with the margin; a soft one has none
        total = states.new_zeros(()) if ctx.spec[2] else (dstates[0] * states[2]).sum()
        dmargin = total.reshape(1).to(tensors[4])
    return dx if want_x else None, dy if want_y else None, None, None, dmargin, *[None] * 5


fold_triplets_op.register_autograd(_triplets_backward, setup_context=_triplets_setup)


def fold_triplets(
    x: Tensor,
    y: Tensor | None,
    x_labels: Tensor,
    y_labels: Tensor | None,
    own: bool,
    margin: float | Tensor,
    metric: str,
    triplets: str,
    soft: bool = False,
) -> tuple[Tensor, ...]:
    """Of every anchor: the sum of the terms of its triplets, how many are chosen, how many terms are above 0. [N] each

    triplets: "all", or those that are "hard", "semihard" or "easy"; or "nearest": one for each positive, with the
    nearest negative that is farther, else the farthest. Differentiable by x, y and the margin.
    """
    y_labels = x_labels if y_labels is None else y_labels
    spec = (metric, triplets, soft, own, resolve_backend(x))
    return fold_triplets_op(x, y, x_labels, y_labels, _numbers([margin], x), *spec)[0].unbind()


# ------------------------------------------------------------------------------------------- mined and given pairs


mine_op = _op(
    "mine",
    "(Tensor x, Tensor? y, Tensor x_labels, Tensor y_labels, str metric, str positives, str negatives, bool own, "
    "str backend) -> Tensor",
    lambda x, *args: x.new_empty(2, len(x), dtype=torch.int64),
)


def mine(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor | None, own: bool, metric: str, positives: str,
    negatives: str,
) -> Tensor:  # fmt: skip
    """Index of every anchor's positive and negative, -1 where there is none. [2, N] int64

    positives: "farthest" or "nearest"; negatives: those two, or "beyond": the nearest farther than the positive.
    """
    y_labels = x_labels if y_labels is None else y_labels
    rows = (x.detach(), None if y is None else y.detach())
    return mine_op(*rows, x_labels, y_labels, metric, positives, negatives, own, resolve_backend(x))


mined_distances_op = _op(
    "mined_distances",
    "(Tensor x, Tensor? y, Tensor index, str metric, str backend) -> Tensor",
    lambda x, y, index, metric, backend: x.new_empty(index.shape, dtype=loss_dtype(x)),
)
mined_distances_grad_op = _grad_op(
    "mined_distances_grad",
    "(Tensor x, Tensor? y, Tensor index, Tensor dout, str metric, bool want_y, str backend) -> (Tensor, Tensor)",
    lambda x, y, index, dout, metric, want_y, backend: (
        x.new_empty(x.shape),
        x.new_empty(0) if y is None or not want_y else y.new_empty(y.shape),
    ),
)


def _mined_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, y, index, ctx.metric, ctx.backend = inputs
    ctx.save_for_backward(x, y, index)


def _mined_backward(ctx: Any, dout: Tensor) -> Any:
    """Gathers, for every row, from the anchors that mined it."""
    saved = ctx.saved_tensors
    want_x, want_y = ctx.needs_input_grad[:2]
    dx, dy = mined_distances_grad_op(*saved, dout, ctx.metric, want_y, ctx.backend)
    return dx if want_x else None, dy if want_y else None, None, None, None


mined_distances_op.register_autograd(_mined_backward, setup_context=_mined_setup)


def mined_distances(x: Tensor, y: Tensor | None, index: Tensor, metric: str) -> Tensor:
    """Exact distances of every anchor to its mined pairs, NaN where there is none. [2, N]"""
    return mined_distances_op(x, y, index, metric, resolve_backend(x))


row_distances_op = _op(
    "row_distances",
    "(Tensor a, Tensor b, Tensor? c, str metric, float eps, int pairs, str backend) -> Tensor",
    lambda a, b, c, metric, eps, pairs, backend: a.new_empty(pairs, len(a), dtype=loss_dtype(a)),
)
row_distances_grad_op = _grad_op(
    "row_distances_grad",
    "(Tensor a, Tensor b, Tensor? c, Tensor dout, str metric, float eps, int pairs, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    lambda a, b, c, *args: (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(0 if c is None else a.shape)),
)


def _row_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    a, b, c, ctx.metric, ctx.eps, ctx.pairs, ctx.backend = inputs
    ctx.save_for_backward(a, b, c)


def _row_backward(ctx: Any, dout: Tensor) -> Any:
    saved = ctx.saved_tensors
    da, db, dc = row_distances_grad_op(*saved, dout, ctx.metric, ctx.eps, ctx.pairs, ctx.backend)
    return da, db, dc if ctx.needs_input_grad[2] else None, None, None, None, None


row_distances_op.register_autograd(_row_backward, setup_context=_row_setup)


def row_distances(a: Tensor, b: Tensor, c: Tensor | None, metric: str, eps: float = 0.0, pairs: int = 1) -> Tensor:
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N]"""
    return row_distances_op(a, b, c, metric, eps, pairs, resolve_backend(a))
