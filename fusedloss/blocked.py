"""The PyTorch backend: the same functions as `launch`, tile by tile, on any device and in float64.

Memory is O((N + M) D) plus one tile. On a CPU the rows are sorted by label first, so that most tiles hold no positive
pair and need no masks, and tiles that contribute nothing are left early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 512  # rows and columns of a tile: 1 MiB in float32 stays in a core's L2 cache

# ---------------------------------------------------------------------------------------------------------- scores


def score(x: Tensor, y: Tensor, own: Tensor, other: Tensor, metric: str) -> Tensor:
    """Scores of a tile from rows x, y and their norms. [BM, BN]"""
    if metric == "manhattan":
        return torch.cdist(x, y, p=1.0)
    if metric == "cosine":
        return (x @ y.T).mul_(own[:, None]).mul_(other).neg_().add_(1)
    s = torch.addmm(other, x, y.T, alpha=-2).add_(own[:, None]).clamp_(min=0)
    return s.sqrt_() if metric == "euclidean" else s


def score_norms(x: Tensor, metric: str) -> Tensor:
    """|x|^2, or 1 / max(|x|, 1e-8) for cosine. [N]"""
    norms = x.square().sum(1)
    return norms.clamp_(min=1e-16).rsqrt_() if metric == "cosine" else norms


def pull(g: Tensor, s: Tensor, own: Tensor, other: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """w and u for g = dL/ds, where dx_i = sum_j w_ij y_j + own_factor_i x_i sum_j u_ij. Overwrites g. [BM, BN]"""
    if metric == "cosine":
        return (g * own[:, None]).mul_(other).neg_(), g.mul_(1 - s)
    if metric == "sqeuclidean":
        return g * -2, g
    w = g.mul_(s.reciprocal().nan_to_num_(nan=float("nan"), posinf=0.0)).neg_()  # the gradient of a distance at 0 is 0
    return w, w


def own_factor(norms: Tensor, metric: str) -> Tensor | float:
    if metric == "cosine":
        return norms.square().where(norms < 9.9e7, norms.new_zeros(()))  # a clamped norm is a constant
    return 2.0 if metric == "sqeuclidean" else -1.0


def manhattan_grad(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_j g_ij sign(x_i - y_j), a dimension at a time. [BM, D]"""
    columns = [(g * (a[:, None] - b).sign_()).sum(1) for a, b in zip(x.unbind(1), y.unbind(1), strict=True)]
    return torch.stack(columns, 1)


# ---------------------------------------------------------------------------------------------------------- losses


class Loss(NamedTuple):
    """A loss on a tile, as in `kernels/losses.py`.

    terms(s, pos, params, states) -> what each state sums, None for nothing
    grad(state, dstate, s, pos, params) -> dL/ds, states broadcastable to the tile
    pos is boolean [BM, BN], or None in a tile where every pair is negative; (i, i) is left out afterwards.
    """

    terms: Any
    grad: Any


def pair_hinge(s: Tensor, pos: Tensor | None, params: Sequence[Any]) -> Tensor:
    h = (params[1] - s).clamp_(min=0)
    return h if pos is None else torch.where(pos, (s - params[0]).clamp_(min=0), h)


def split_terms(terms: Sequence[Tensor], pos: Tensor | None, states: int) -> list[Tensor | None]:
    """One state: the first term. Otherwise every term over the positives and over the negatives."""
    if states == 1:
        return list(terms[:1])
    parts: list[Tensor | None] = []
    for term in terms:
        positive = None if pos is None else torch.where(pos, term, 0.0)
        parts += [positive, term if positive is None else term - positive]
    return parts


def signed_slope(dstate: Sequence[Tensor], slope: Tensor, pos: Tensor | None) -> Tensor:
    up, down = dstate[0], dstate[0 if len(dstate) == 1 else 1]
    return slope.mul_(-down if pos is None else torch.where(pos, up, -down))


def contrastive_terms(s: Tensor, pos: Tensor | None, params: Any, states: int) -> list[Tensor | None]:
    h = pair_hinge(s, pos, params)
    return split_terms([(h * h).mul_(0.5)] + ([h.ne(0).to(h.dtype), h] if states > 1 else []), pos, states)


def contrastive_grad(state: Any, dstate: Any, s: Tensor, pos: Tensor | None, params: Any) -> Tensor:
    return signed_slope(dstate, pair_hinge(s, pos, params), pos)


def linear_contrastive_terms(s: Tensor, pos: Tensor | None, params: Any, states: int) -> list[Tensor | None]:
    h = pair_hinge(s, pos, params)
    return split_terms([h] + ([h.ne(0).to(h.dtype)] * 2 if states > 1 else []), pos, states)


def linear_contrastive_grad(state: Any, dstate: Any, s: Tensor, pos: Tensor | None, params: Any) -> Tensor:
    return signed_slope(dstate, pair_hinge(s, pos, params).ne_(0), pos)


LOSSES = {
    "contrastive": Loss(contrastive_terms, contrastive_grad),
    "linear_contrastive": Loss(linear_contrastive_terms, linear_contrastive_grad),
}

# ---------------------------------------------------------------------------------------------------------- engine


class Side(NamedTuple):
    """One side of the score matrix in the order it is walked."""

    rows: Tensor
    norms: Tensor
    labels: Tensor
    order: Tensor | None
    bounds: list[tuple[int, int]] | None  # first and last label of each block, where reading them costs no sync

    @staticmethod
    def of(x: Tensor, labels: Tensor, metric: str, sort: bool) -> Side:
        order = labels.argsort(stable=True) if sort and x.device.type == "cpu" else None
        if order is not None:
            x, labels = x[order], labels[order]
        rows = widen(x)
        blocks = labels.split(BLOCK) if order is not None and len(labels) else ()
        bounds = [(int(b[0]), int(b[-1])) for b in blocks] if order is not None else None
        return Side(rows, score_norms(rows, metric), labels, order, bounds)


def sides(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, metric: str, sort: bool
) -> tuple[Side, Side]:
    own = Side.of(x, x_labels, metric, sort)
    return own, own if y is None else Side.of(y, y_labels, metric, sort)


def in_order(t: Tensor, order: Tensor | None) -> Tensor:
    """t [K, N] in the walking order."""
    return t if order is None else t[:, order]


def restore(t: Tensor, order: Tensor | None, dim: int) -> Tensor:
    return t if order is None else torch.empty_like(t).index_copy_(dim, order, t)


class BlockPair(NamedTuple):
    r: slice
    c: slice
    s: Tensor
    pos: Any  # [BM, BN] bool, equal labels; None where every pair is negative
    itself: bool  # the diagonal of the tile holds the pairs (i, i) of a self batch
    mirrored: bool  # a self batch walks each pair of blocks once; off the diagonal it stands for both orders

    def without_itself(self, t: Tensor) -> Tensor:
        return t.fill_diagonal_(0) if self.itself else t


def row_tiles(x: Side, y: Side, metric: str, i: int, first: int = 0) -> Iterator[BlockPair]:
    """The tiles of the rows from i, columns from `first` on."""
    for j in range(first, len(y.rows), BLOCK):
        r, c = slice(i, i + BLOCK), slice(j, j + BLOCK)
        s = score(x.rows[r], y.rows[c], x.norms[r], y.norms[c], metric)
        apart = disjoint(x.bounds, y.bounds, i // BLOCK, j // BLOCK)
        pos = None if apart else x.labels[r, None] == y.labels[c]
        yield BlockPair(r, c, s, pos, x is y and i == j, x is y and i != j)


def tiles(x: Side, y: Side, metric: str) -> Iterator[BlockPair]:
    """Every tile; of a self batch only those on and above the diagonal."""
    for i in range(0, len(x.rows), BLOCK):
        yield from row_tiles(x, y, metric, i, first=i if x is y else 0)


def disjoint(x_bounds: list[tuple[int, int]] | None, y_bounds: list[tuple[int, int]] | None, i: int, j: int) -> bool:
    """Whether two blocks of sorted rows share no label."""
    if x_bounds is None or y_bounds is None:
        return False
    return x_bounds[i][1] < y_bounds[j][0] or y_bounds[j][1] < x_bounds[i][0]


def numbers(params: Tensor) -> Sequence[Any]:
    return params.tolist() if params.device.type == "cpu" else params.unbind()


def fold(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, loss: str, metric: str, states: int
) -> Tensor:
    """Row states of every anchor. [states, N]"""
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=True)
    out = xs.rows.new_zeros(states, len(x))
    margins = numbers(params)
    for t in tiles(xs, ys, metric):
        for k, term in enumerate(LOSSES[loss].terms(t.s, t.pos, margins, states)):
            if term is not None:
                out[k, t.r] += t.without_itself(term).sum(1)
                if t.mirrored:
                    out[k, t.c] += term.sum(0)
    return restore(out, xs.order, 1)


def fold_grad(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, params: Tensor, states: Tensor, dstates: Tensor,
    loss: str, metric: str, want_x: bool, want_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dy for derivatives dstates [states, N] of the row states; an empty tensor for a gradient not wanted."""
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=True)
    states, dstates = in_order(states, xs.order), in_order(dstates, xs.order)
    dx = torch.zeros_like(xs.rows)
    dy = dx if y is None else torch.zeros_like(ys.rows)
    own_x = torch.zeros_like(xs.norms)
    own_y = own_x if y is None else torch.zeros_like(ys.norms)
    margins = numbers(params)
    for t in tiles(xs, ys, metric):
        g = LOSSES[loss].grad(states[:, t.r, None], dstates[:, t.r, None], t.s, t.pos, margins)
        if y is None:  # row j of a self batch is an anchor too
            g += LOSSES[loss].grad(states[:, None, t.c], dstates[:, None, t.c], t.s, t.pos, margins)
        t.without_itself(g)
        if x.device.type == "cpu" and all(extreme == 0 for extreme in g.aminmax()):
            continue
        both_sides = t.mirrored or (y is not None and want_y)
        if metric == "manhattan":
            if want_x:
                dx[t.r] += manhattan_grad(g, xs.rows[t.r], ys.rows[t.c])
            if both_sides:
                dy[t.c] += manhattan_grad(g.T, ys.rows[t.c], xs.rows[t.r])
            continue
        w, u = pull(g, t.s, xs.norms[t.r], ys.norms[t.c], metric)
        if want_x:
            dx[t.r].addmm_(w, ys.rows[t.c])
            own_x[t.r] += u.sum(1)
        if both_sides:
            dy[t.c].addmm_(w.T, xs.rows[t.r])
            own_y[t.c] += u.sum(0)

    def finish(d: Tensor, own: Tensor, side: Side, like: Tensor) -> Tensor:
        if metric != "manhattan":
            d.addcmul_(side.rows, (own * own_factor(side.norms, metric))[:, None])
        return restore(d, side.order, 0).to(like.dtype)

    empty = x.new_empty(0)
    dy = finish(dy, own_y, ys, y) if y is not None and want_y else empty
    return (finish(dx, own_x, xs, x) if want_x else empty), dy


# ---------------------------------------------------------------------------------------------------------- mining


def mine(
    x: Tensor, y: Tensor | None, x_labels: Tensor, y_labels: Tensor, metric: str, positives: str, negatives: str
) -> Tensor:
    """Index of every anchor's positive and negative, -1 where there is none. [2, N] int64"""
    metric = "sqeuclidean" if metric == "euclidean" else metric  # the same order, no root
    xs, ys = sides(x, y, x_labels, y_labels, metric, sort=False)
    index = torch.full((2, len(x)), -1, dtype=torch.int64, device=x.device)
    pos_best = xs.norms.new_full((len(x),), FIRST[positives])
    neg_best = xs.norms.new_full((len(x),), FIRST["nearest" if negatives == "beyond" else negatives])
    for i in range(0, len(x), BLOCK):
        r = slice(i, i + BLOCK)
        for t in row_tiles(xs, ys, metric, i):
            if negatives != "beyond":
                keep_best(neg_best[r], index[1, r], t.s, ~t.pos, negatives, t.c.start)
            keep_best(pos_best[r], index[0, r], t.s, t.without_itself(t.pos), positives, t.c.start)
        if negatives == "beyond":
            for t in row_tiles(xs, ys, metric, i):
                beyond = ~t.pos & ~(t.s <= pos_best[r, None])
                keep_best(neg_best[r], index[1, r], t.s, beyond, "nearest", t.c.start)
    if negatives == "beyond":
        index[1].masked_fill_(index[0] < 0, -1)
    return index


FIRST = {"farthest": -torch.inf, "nearest": torch.inf}


def keep_best(best: Tensor, index: Tensor, s: Tensor, eligible: Tensor, wanted: str, first: int) -> None:
    """Update the running extreme of each row in place; ties go to the lowest index, NaN wins so that it shows."""
    finite = torch.finfo(s.dtype)
    t = s.clamp_(min=finite.min, max=finite.max).masked_fill(~eligible, FIRST[wanted])
    value, at = t.max(1) if wanted == "farthest" else t.min(1)
    better = value > best if wanted == "farthest" else value < best
    better |= value.isnan() & ~best.isnan()
    best.copy_(torch.where(better, value, best))
    index.copy_(torch.where(better, at + first, index))


# ------------------------------------------------------------------------------------------------------------ rows


def inverse_norm(x: Tensor) -> Tensor:
    """1 / max(|x|, 1e-8). [N, 1]"""
    return x.square().sum(1, keepdim=True).clamp_(min=1e-16).rsqrt_()


def pair_distance(a: Tensor, b: Tensor, metric: str, eps: float) -> Tensor:
    """d(a_i, b_i). [N]"""
    if metric == "cosine":
        return 1 - (a * b).sum(1) * (inverse_norm(a) * inverse_norm(b))[:, 0]
    diff = a - b + eps
    if metric == "manhattan":
        return diff.abs().sum(1)
    s = diff.square().sum(1)
    return s.sqrt() if metric == "euclidean" else s


def pair_grad(a: Tensor, b: Tensor, g: Tensor, metric: str, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of sum_i g_i d(a_i, b_i) by a and by b. [N, D]"""
    g = g[:, None]
    if metric == "cosine":
        ra, rb = inverse_norm(a), inverse_norm(b)
        cross = -g * (ra * rb)
        cos = (a * b).sum(1, keepdim=True) * (ra * rb)
        own_a, own_b = (g * cos * r.square().where(r < 9.9e7, r.new_zeros(())) for r in (ra, rb))
        return cross * b + own_a * a, cross * a + own_b * b
    diff = a - b + eps
    if metric == "manhattan":
        da = g * diff.sign()
    elif metric == "sqeuclidean":
        da = 2 * g * diff
    else:
        inverse = diff.square().sum(1, keepdim=True).rsqrt_().nan_to_num_(nan=float("nan"), posinf=0.0)
        da = g * inverse * diff
    return da, -da


PAIRS = [(0, 1), (0, 2), (1, 2)]  # the ends of each distance of (a, b, c)


def widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def row_distances(a: Tensor, b: Tensor, c: Tensor | None, metric: str, eps: float, pairs: int) -> Tensor:
    """d(a, b), d(a, c), d(b, c) of given rows, the first `pairs` of them. [pairs, N]"""
    ends = [widen(t) for t in (a, b, c) if t is not None]
    return torch.stack([pair_distance(ends[i], ends[j], metric, eps) for i, j in PAIRS[:pairs]])


def row_distances_grad(
    a: Tensor, b: Tensor, c: Tensor | None, dout: Tensor, metric: str, eps: float, pairs: int
) -> tuple[Tensor, ...]:
    """da, db, dc; dc is empty without c."""
    ends = [widen(t) for t in (a, b, c) if t is not None]
    grads = [torch.zeros_like(t) for t in ends]
    for g, (i, j) in zip(dout, PAIRS[:pairs], strict=True):
        di, dj = pair_grad(ends[i], ends[j], g, metric, eps)
        grads[i] += di
        grads[j] += dj
    return *(d.to(a.dtype) for d in grads), *([a.new_empty(0)] if c is None else [])


def mined_distances(x: Tensor, y: Tensor | None, index: Tensor, metric: str) -> Tensor:
    """Exact distances of x_i to its positive y[index[0, i]] and negative y[index[1, i]]; NaN for index -1. [2, N]"""
    x, refs = widen(x), widen(x if y is None else y)
    if len(refs) == 0:
        return x.new_full(index.shape, torch.nan)
    d = torch.stack([pair_distance(x, refs[i], metric, 0.0) for i in index.clamp(min=0)])
    return d.masked_fill_(index < 0, torch.nan)


def mined_distances_grad(
    x: Tensor, y: Tensor | None, index: Tensor, dout: Tensor, metric: str, want_y: bool
) -> tuple[Tensor, Tensor]:
    """dx, and dy if wanted."""
    wide, refs = widen(x), widen(x if y is None else y)
    dx = torch.zeros_like(wide)
    dy = dx if y is None else torch.zeros_like(refs)
    for i, g in zip(index, dout.masked_fill(index < 0, 0.0), strict=True):
        if len(refs) == 0:
            break
        di, dj = pair_grad(wide, refs[i.clamp(min=0)], g, metric, 0.0)
        dx += di
        dy.index_put_(
            (i.clamp(min=0),), dj.masked_fill_(i[:, None] < 0, 0.0), accumulate=True
        )  # deterministic, unlike index_add_
    return dx.to(x.dtype), dy.to(y.dtype) if y is not None and want_y else x.new_empty(0)
