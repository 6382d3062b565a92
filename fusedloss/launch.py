"""The Triton backend: allocates outputs, picks tiles and launches the kernels. Same functions as `blocked`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels import configs, engine, losses, mining, rows, scores
from .kernels.prepare import prepare as prepare_kernel
from .kernels.tiles import INTERPRETED


class Loss(NamedTuple):
    """A loss on a tile. `sparse`: most gradients of a trained model are exactly 0, so tiles of zeros are skipped."""

    step: Any
    grad: Any
    sparse: bool = False


LOSSES = {
    "contrastive": Loss(losses.contrastive_step, losses.contrastive_grad, sparse=True),
    "linear_contrastive": Loss(losses.linear_contrastive_step, losses.linear_contrastive_grad, sparse=True),
}
SCORES = {name: getattr(scores, name) for name in ("euclidean", "sqeuclidean", "cosine", "manhattan")}
SIGNS = {"farthest": 1, "nearest": -1, "beyond": -2, "": 0}


class Launch(NamedTuple):
    """One kernel launch, complete: `run` starts it, the compile report compiles it for a GPU that is not there."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        if 0 not in self.grid:
            self.kernel[self.grid](*self.args, **self.options)


class Side(NamedTuple):
    """One side of the score matrix for the kernels: rows [n, D] ([D, n] for manhattan), norms [n], labels [n]."""

    rows: Tensor
    norms: Tensor
    labels: Tensor


def compute_format(x: Tensor) -> tuple[str, str]:
    """How `prepare` rounds rows, and the input_precision of the products; fp32 follows torch's matmul precision."""
    if x.dtype != torch.float32:
        return "", "ieee"
    mode = torch.get_float32_matmul_precision()
    if mode == "medium":
        return "bf16", "ieee"
    if INTERPRETED or torch.version.hip or x.device.type == "xpu":
        return ("tf32", "tf32") if mode == "high" and INTERPRETED else ("", "ieee")
    return ("tf32", "tf32") if mode == "high" else ("", "tf32x3")


def prepare_launch(x: Tensor, rounded: Tensor, norms: Tensor, rounding: str, inverse: bool) -> Launch:
    BM = configs.ROWS_PER_PROGRAM
    args = (x, rounded, norms, *x.shape)
    options = dict(ROUND=rounding, INVERSE=inverse, BM=BM, BD=configs.ROW_CHUNK, num_warps=4)
    return Launch(prepare_kernel, (cdiv(len(x), BM),), args, options)


def prepare(x: Tensor, labels: Tensor, metric: str) -> tuple[Side, str]:
    """A side in its compute format, and the precision of its products."""
    norms = torch.empty(len(x), dtype=torch.float32, device=x.device)
    rounding, precision = ("", "manhattan") if metric == "manhattan" else compute_format(x)
    rounded = torch.empty_like(x, dtype=torch.bfloat16 if rounding == "bf16" else x.dtype) if rounding else x
    prepare_launch(x, rounded, norms, rounding, metric == "cosine").run()
    return Side(x.t().contiguous() if metric == "manhattan" else rounded, norms, labels), precision


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def splits(N: int, M: int, tile: configs.Tile) -> int:
    """How many programs share the columns of a row block, so that a small N still fills the device."""
    return max(1, min(configs.SPLIT_TARGET // max(1, cdiv(N, tile.BM)), cdiv(M, tile.BN)))


@functools.cache
def architecture() -> str:
    """The name of the GPU's architecture, sm_90 or gfx942 say; sm_90 where there is none (the interpreter)."""
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def pick(kernel: str, side: Side, precision: str, D: int) -> tuple[configs.Tile, dict[str, Any]]:
    """The tile of a kernel and the launch options that follow from it."""
    manhattan = precision == "manhattan"
    itemsize = 4 if manhattan else side.rows.element_size()
    tile = configs.choose("manhattan" if manhattan else kernel, itemsize, D, architecture())
    chunks = 0 if manhattan or tile.held < D else cdiv(D, tile.BD)
    options = dict(PRECISION=precision, BM=tile.BM, BN=tile.BN, BD=tile.BD, CHUNKS=chunks)
    return tile, options | dict(num_warps=tile.num_warps, num_stages=tile.num_stages)


def loss_params(params: Tensor) -> tuple[tuple[Any, ...], bool]:
    """A loss's numbers as kernel arguments: by value from the CPU, or pointers to scalars that are on the device."""
    by_value = params.device.type == "cpu"
    return tuple(params.tolist()) if by_value else params.unbind(), not by_value


def fold_launch(
    x: Side, y: Side, out: Tensor, D: int, params: Tensor, loss: str, metric: str, precision: str, self_batch: bool
) -> Launch:
    tile, options = pick("fold", x, precision, D)
    N, M = len(x.labels), len(y.labels)
    numbers, from_memory = loss_params(params)
    options |= dict(SCORE=SCORES[metric], STEP=LOSSES[loss].step, SELF=self_batch)
    neutral = (0.0,) * out.shape[1]  # every state so far is a sum, and splits are added up
    grid = (cdiv(N, tile.BM), out.shape[0])
    return Launch(
        engine.fold, grid, (x, y, out, numbers, neutral, N, M, D), options | dict(PARAMS_FROM_MEMORY=from_memory)
    )


def fold(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, loss: str, metric: str, states: int
) -> Tensor:
    """Row states of every anchor. [states, N] float32"""
    xs, precision = prepare(x, x_labels, metric)
    ys = xs if y is None else prepare(y, y_labels, metric)[0]
    tile, _ = pick("fold", xs, precision, x.shape[1])
    parts = splits(len(x), len(ys.labels), tile)
    out = torch.empty(parts, states, len(x), dtype=torch.float32, device=x.device)
    fold_launch(xs, ys, out, x.shape[1], params, loss, metric, precision, y is None).run()
    return out[0] if parts == 1 else out.sum(0)


def grad_launch(
    x: Side,
    y: Side,
    states: tuple[Tensor, Tensor],
    out: Tensor,
    params: Tensor,
    loss: str,
    metric: str,
    precision: str,
    anchors: str,
) -> Launch:
    D = out.shape[2]
    tile, options = pick("grad", x, precision, D)
    slab = cdiv(min(tile.held, D), tile.BD)  # chunks of the gradient that one program owns
    N, M = len(x.labels), len(y.labels)
    numbers, from_memory = loss_params(params)
    options |= dict(SCORE=SCORES[metric], GRAD=LOSSES[loss].grad, STATES=len(states[0]), ANCHORS=anchors, SLAB=slab)
    options |= dict(SKIP=LOSSES[loss].sparse, PARAMS_FROM_MEMORY=from_memory)
    grid = (cdiv(N, tile.BM), out.shape[0], cdiv(D, slab * tile.BD))
    return Launch(engine.grad, grid, (x, y, *states, out, numbers, N, M, D), options)


def fold_grad(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, states: Tensor, dstates: Tensor,
    loss: str, metric: str, want_x: bool, want_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dy for derivatives dstates [states, N] of the row states; an empty tensor for a gradient not wanted."""
    unit = None
    if x.dtype == torch.float16 and len(x):
        # The products take fp16 operands: bring the largest derivative near 1, and undo it after.
        unit = dstates.abs().amax().clamp_min(1e-30)
        dstates = dstates / unit
    sort = LOSSES[loss].sparse and len(x_labels) * len(y_labels) > configs.SORT_FROM
    x_order = x_labels.argsort(stable=True) if sort else None
    y_order = x_order if y is None else y_labels.argsort(stable=True) if sort else None
    xs, precision = prepare(reorder(x, x_order), reorder(x_labels, x_order), metric)
    ys = xs if y is None else prepare(reorder(y, y_order), reorder(y_labels, y_order), metric)[0]
    both = (reorder(states, x_order, 1), reorder(dstates, x_order, 1))

    def side(own: Side, other: Side, anchors: str, like: Tensor, order: Tensor | None) -> Tensor:
        N, D = like.shape
        tile, _ = pick("grad", own, precision, D)
        parts = splits(N, len(other.labels), tile)
        plain = parts == 1 and unit is None
        out = torch.empty(parts, N, D, dtype=like.dtype if plain else torch.float32, device=like.device)
        grad_launch(own, other, both, out, params, loss, metric, precision, anchors).run()
        d = out[0] if parts == 1 else out.sum(0)
        d = (d if unit is None else d * unit).to(like.dtype)
        return d if order is None else torch.empty_like(d).index_copy_(0, order, d)

    empty = x.new_empty(0)
    dx = side(xs, ys, "both" if y is None else "x", x, x_order) if want_x else empty
    dy = side(ys, xs, "y", y, y_order) if y is not None and want_y else empty
    return dx, dy


def reorder(t: Tensor, order: Tensor | None, dim: int = 0) -> Tensor:
    return t if order is None else t.index_select(dim, order)


def mine_launch(
    x: Side, y: Side, floor: Tensor, best: Tensor, index: Tensor, D: int, metric: str, precision: str,
    positives: str, negatives: str, self_batch: bool,
) -> Launch:  # fmt: skip
    tile, options = pick("mine", x, precision, D)
    N, M = len(x.labels), len(y.labels)
    options |= dict(SCORE=SCORES[metric], POSITIVE=SIGNS[positives], NEGATIVE=SIGNS[negatives], SELF=self_batch)
    return Launch(mining.mine, (cdiv(N, tile.BM), len(best)), (x, y, floor, best, index, N, M, D), options)


def mine(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, metric: str, positives: str, negatives: str
) -> Tensor:
    """Index of every anchor's positive and negative, -1 where there is none. [2, N] int64"""
    metric = "sqeuclidean" if metric == "euclidean" else metric  # the same order, no root
    xs, precision = prepare(x, x_labels, metric)
    ys = xs if y is None else prepare(y, y_labels, metric)[0]
    N, M, D = len(x), len(ys.labels), x.shape[1]
    tile, _ = pick("mine", xs, precision, D)
    parts = splits(N, M, tile)

    def select(floor: Tensor, positives: str, negatives: str) -> tuple[Tensor, Tensor]:
        best = torch.empty(parts, 2, N, dtype=torch.float32, device=x.device)
        index = torch.empty(parts, 2, N, dtype=torch.int32, device=x.device)
        mine_launch(xs, ys, floor, best, index, D, metric, precision, positives, negatives, y is None).run()
        if parts == 1:
            return best[0], index[0]
        first = best.argmax(0, keepdim=True)  # the first split on ties, so the lowest index
        return best.gather(0, first)[0], index.gather(0, first)[0]

    if N == 0 or M == 0:
        return torch.full((2, N), -1, dtype=torch.int64, device=x.device)
    if negatives != "beyond":
        return select(xs.norms, positives, negatives)[1].long()
    best, index = select(xs.norms, positives, "")
    _, beyond = select(best[0] * SIGNS[positives], "", negatives)
    return torch.stack([index[0], torch.where(index[0] >= 0, beyond[1], -1)]).long()


def row_launch(
    kernel: Any, ends: tuple[Tensor, ...], indices: tuple[Tensor, Tensor] | None, outs: tuple[Tensor, ...], metric: str,
    eps: float, pairs: int,
) -> Launch:  # fmt: skip
    a = ends[0]
    N, D = a.shape
    b_index, c_index = indices if indices else (a, a)
    options = dict(
        METRIC=metric, PAIRS=pairs, INDEXED=indices is not None, BM=configs.ROWS_PER_PROGRAM, BD=configs.ROW_CHUNK
    )
    args = (*ends, b_index, c_index, *outs, N, D, eps)
    return Launch(kernel, (cdiv(N, configs.ROWS_PER_PROGRAM),), args, options | dict(num_warps=4))


def row_distances(a: Tensor, b: Tensor, c: Tensor | None, metric: str, eps: float, pairs: int) -> Tensor:
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N] float32"""
    out = torch.empty(pairs, len(a), dtype=torch.float32, device=a.device)
    row_launch(rows.row_distances, (a, b, b if c is None else c), None, (out,), metric, eps, pairs).run()
    return out


def row_distances_grad(
    a: Tensor, b: Tensor, c: Tensor | None, dout: Tensor, metric: str, eps: float, pairs: int
) -> tuple[Tensor, ...]:
    """da, db, dc; dc is empty without c."""
    da, db, dc = torch.empty_like(a), torch.empty_like(b), a.new_empty(0) if c is None else torch.empty_like(c)
    ends = (a, b, b if c is None else c)
    row_launch(rows.row_distances_grad, ends, None, (dout, da, db, dc), metric, eps, pairs).run()
    return da, db, dc


def mined_distances(x: Tensor, y: Tensor | None, index: Tensor, metric: str) -> Tensor:
    """Exact distances of x_i to y[index[0, i]] and y[index[1, i]], NaN for index -1. [2, N] float32"""
    refs = x if y is None else y
    out = torch.empty(2, len(x), dtype=torch.float32, device=x.device)
    row_launch(rows.row_distances, (x, refs, refs), tuple(index), (out,), metric, 0.0, 2).run()
    return out


def mined_distances_grad(
    x: Tensor, y: Tensor | None, index: Tensor, dout: Tensor, metric: str, want_y: bool
) -> tuple[Tensor, Tensor]:
    """dx, and dy if wanted: an O(N D) gather over the anchors that mined each row."""
    refs = x if y is None else y
    slopes = torch.empty(4, len(x), dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x, dtype=torch.float32 if y is None else x.dtype)
    outs = (dout, dx, slopes, slopes)
    row_launch(rows.row_distances_grad, (x, refs, refs), tuple(index), outs, metric, 0.0, 2).run()
    if y is not None and not want_y:
        return dx, x.new_empty(0)
    dy = torch.empty_like(refs)
    entries, starts = mined_runs(index, len(refs))
    gather_launch(x, refs, entries, starts, slopes, dx, dy, metric, y is None).run()
    return (dy, x.new_empty(0)) if y is None else (dx, dy)


def mined_runs(index: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """The mined pairs ordered by the row they mined [2N], and where each row's run begins [M + 1]."""
    flat = index.reshape(-1)
    mined, entries = torch.where(flat < 0, M, flat).sort(stable=True)
    return entries, torch.searchsorted(mined, torch.arange(M + 1, device=index.device))


def gather_launch(
    x: Tensor,
    y: Tensor,
    entries: Tensor,
    starts: Tensor,
    slopes: Tensor,
    base: Tensor,
    out: Tensor,
    metric: str,
    add: bool,
) -> Launch:
    (M, D), N = y.shape, len(x)
    options = dict(METRIC=metric, ADD=add, BE=configs.ENTRIES, BD=configs.ROW_CHUNK, num_warps=4)
    grid = (M, cdiv(D, configs.ROW_CHUNK))
    return Launch(rows.gather_grad, grid, (x, y, entries, starts, slopes, base, out, N, D), options)
