"""Losses of given logits, block by block: softmax over the classes of a row, or every element for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dtypes import loss_dtype, state_dtype
from ..request import Elements, ElementsGrad, Logits, LogitsGrad
from .folds import exponential, highest, log_sum
from .tiles import widen

BLOCK = 1 << 18  # logits of a block: 1 MiB in float32 stays in a core's L2 cache


class Rows(NamedTuple):
    """A block of the rows of logits [N, C, P]: whole samples, or a part of one that is too large."""

    n: slice
    p: slice
    logits: Tensor  # [n, C, p], in float32 or wider
    classes: Tensor | None  # the own classes, -1 for none [n, 1, p]
    shares: Tensor  # of every class in the sum of the logits: its weight, for probabilities times its own


def row_blocks(r: Logits) -> Iterator[Rows]:
    z, target, weight, smoothing = r.z, r.target, r.weight, r.smoothing
    N, C, P = z.shape
    w = z.new_ones(C, dtype=loss_dtype(z)) if weight is None else weight.to(loss_dtype(z))
    samples, part = max(1, BLOCK // max(C * P, 1)), max(1, BLOCK // max(C, 1))
    for i in range(0, N, samples):
        for j in range(0, P, part):
            n, p = slice(i, i + samples), slice(j, j + part)
            if target.is_floating_point():
                q = target[n, :, p].to(w.dtype) * (1 - smoothing) + smoothing / C
                yield Rows(n, p, widen(z[n, :, p]), None, q.mul_(w[:, None]))
            else:
                yield Rows(n, p, widen(z[n, :, p]), target.view(N, 1, P)[n, :, p], w[None, :, None])


def fold_logits(r: Logits) -> Tensor:
    N, _, P = r.z.shape
    states = r.z.new_empty(2 + r.sums, N, P, dtype=state_dtype(r.z))
    for rows in row_blocks(r):
        first, lse, *total = states[:, rows.n, rows.p]
        high = highest(rows.logits, 1)
        p = (rows.logits - high).exp_()
        if rows.classes is None:
            first.copy_(rows.shares.sum(1))
        else:
            own = rows.classes.clamp(min=0)
            first.copy_(rows.logits.gather(1, own).masked_fill_(rows.classes < 0, 0.0)[:, 0])
            p.scatter_(1, own, 0.0)
        lse.copy_(log_sum(p, high[:, 0], 1))
        if total:
            total[0].copy_((rows.shares * rows.logits).sum(1))
    return states.flatten(1)


def logits_grad(g: LogitsGrad, out: Tensor) -> None:
    states, dstates = g.states, g.dstates
    N, _, P = g.forward.z.shape
    lse = states[1].masked_fill(states[1] == -torch.inf, torch.inf).view(N, 1, P)  # then no class has a share
    d_first, d_lse, *d_total = dstates.view(len(dstates), N, 1, P)
    for rows in row_blocks(g.forward):
        at = (rows.n, slice(None), rows.p)
        direct = out[at] if out.dtype == rows.logits.dtype else None
        dz = exponential(rows.logits, lse[at], d_lse[at], out=direct)
        if rows.classes is not None:
            dz.scatter_(1, rows.classes.clamp(min=0), d_first[at].to(dz.dtype))
        if d_total:
            dz.addcmul_(d_total[0][at].to(dz.dtype), rows.shares)
        if direct is None:
            out[at] = dz


# Losses of an element, as in `kernels/logits.py`: the value, and the derivative by z.


def binary_cross_entropy(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    return F.logsigmoid(z).mul_(-pos_weight * t).sub_(F.logsigmoid(-z).mul_(1 - t))


def binary_cross_entropy_slope(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    return z.sigmoid().mul_(1 - t).sub_(z.neg().sigmoid_().mul_(pos_weight * t))


def focal_terms(z: Tensor, t: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """alpha_t u^gamma of u = 1 - p_t, to the last bits where it is small, and the cross entropy."""
    log_p, log_q, f = F.logsigmoid(z), F.logsigmoid(-z), 1 - t
    if is_whole(t):
        log_u = t * log_q + f * log_p
    else:
        u = (log_p.exp() * f).add_(log_q.exp() * t)
        log_u = torch.where(t == 1, log_q, torch.where(f == 1, log_p, u.log_()))
    factor = log_u.mul_(gamma).exp_()
    if alpha >= 0:
        factor.mul_(alpha * t + (1 - alpha) * f)
    return factor, log_p.mul_(t).add_(log_q.mul_(f)).neg_()


def is_whole(t: Tensor) -> bool:
    """Whether every target is 0 or 1, where looking is no sync."""
    return t.device.type == "cpu" and bool((t * (1 - t) == 0).all())


def sigmoid_focal(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    factor, entropy = focal_terms(z, t, *numbers)
    return factor.mul_(entropy)


def sigmoid_focal_slope(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    factor, entropy = focal_terms(z, t, *numbers)
    p, q, f = z.sigmoid(), z.neg().sigmoid_(), 1 - t
    slope = p * f - q * t  # of the entropy
    if is_whole(t):
        log_slope = q.mul_(f).sub_(p.mul_(t))
    else:  # of log u: du/dz / u
        soft = (f - t) * p * q / (p * f + q * t)
        log_slope = torch.where(t == 1, -p, torch.where(f == 1, q, soft))
    return factor.mul_(log_slope.mul_(numbers[1]).mul_(entropy).add_(slope))


ElementLoss = Callable[[Tensor, Tensor, Tensor | float, Sequence[float]], Tensor]
ELEMENT_LOSSES: dict[str, tuple[ElementLoss, ElementLoss]] = {
    "binary_cross_entropy": (binary_cross_entropy, binary_cross_entropy_slope),
    "sigmoid_focal": (sigmoid_focal, sigmoid_focal_slope),
}


def element_blocks(e: Elements) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | float, Tensor | float]]:
    """Blocks of the flat elements: where, logits, targets, weights and weights of the positives."""
    z, target, n = e.z.flatten(), e.target.flatten(), e.z.numel()

    def factors(f: Tensor | None, part: slice) -> Tensor | float:
        if f is None:
            return 1.0
        at = torch.arange(part.start, min(part.stop, n), device=f.device) % f.numel()
        return f.flatten()[at].to(loss_dtype(z))

    for first in range(0, n, BLOCK):
        part = slice(first, first + BLOCK)
        t = target[part].to(loss_dtype(z))
        yield part, widen(z[part]), t, factors(e.weight, part), factors(e.pos_weight, part)


def fold_elements(e: Elements) -> Tensor:
    z, total = e.z, e.total
    value, _slope = ELEMENT_LOSSES[e.loss]
    out = z.new_zeros(() if total else z.numel(), dtype=state_dtype(z) if total else loss_dtype(z))
    for part, v, t, w, pw in element_blocks(e):
        terms = w * value(v, t, pw, e.numbers)
        if total:
            out += terms.sum()
        else:
            out[part] = terms
    return out if total else out.view(z.shape)


def elements_grad(g: ElementsGrad, out: Tensor) -> None:
    (_value, slope), flat = ELEMENT_LOSSES[g.forward.loss], out.view(-1)
    for part, v, t, w, pw in element_blocks(g.forward):
        d = g.dloss if g.dloss.dim() == 0 else g.dloss.flatten()[part]
        flat[part] = d.to(v.dtype) * w * slope(v, t, pw, g.forward.numbers)
