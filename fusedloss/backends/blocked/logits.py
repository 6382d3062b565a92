"""Losses of given logits, block by block: softmax over the classes of a row, or every element for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dtypes import loss_dtype, state_dtype
from ..request import Elements, ElementsGrad, Logits, LogitsGrad
from .folds import exponential, highest, log_sum
from .parallel import single_threaded, spread
from .tiles import slices, widen

BLOCK = 1 << 18  # logits of a block: 1 MiB in float32 stays in a core's L2 cache
ELEMENTS = 1 << 17  # of a block, with some ten temporaries; half as long as with a quarter (2 cores, 2026-11-27)


class Rows(NamedTuple):
    """A block of the rows of logits [N, C, P]: whole samples, or a part of one that is too large."""

    n: slice
    p: slice
    logits: Tensor  # [n, C, p], in float32 or wider
    classes: Tensor | None  # the own classes, -1 for none [n, 1, p]
    shares: Any  # of every class in the sum of the logits, if wanted: its weight, for probabilities times its own


class Blocks:
    """The blocks of the rows of logits."""

    def __init__(self, r: Logits) -> None:
        self.r, (N, C, P) = r, r.z.shape
        self.weight = None
        if r.sums or r.target.is_floating_point():
            dtype = loss_dtype(r.z)
            self.weight = r.z.new_ones(C, dtype=dtype) if r.weight is None else r.weight.to(dtype)
        samples, part = max(1, BLOCK // max(C * P, 1)), max(1, BLOCK // max(C, 1))
        self.at = [(n, p) for n in slices(N, samples) for p in slices(P, part)]

    def __getitem__(self, i: int) -> Rows:
        (n, p), w, target = self.at[i], self.weight, self.r.target
        z = widen(self.r.z[n, :, p])
        if w is not None and target.is_floating_point():
            q = target[n, :, p].to(w.dtype) * (1 - self.r.smoothing) + self.r.smoothing / z.shape[1]
            return Rows(n, p, z, None, q.mul_(w[:, None]))
        classes = target.view(len(self.r.z), 1, -1)[n, :, p]
        return Rows(n, p, z, classes, None if w is None else w[None, :, None])


@single_threaded(lambda r: r.z)
def fold_logits(r: Logits) -> Tensor:
    N, _, P = r.z.shape
    states, blocks = r.z.new_empty(2 + r.sums, N, P, dtype=state_dtype(r.z)), Blocks(r)

    def of_rows(i: int) -> None:
        rows = blocks[i]
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

    spread(len(blocks.at), of_rows)
    return states.flatten(1)


@single_threaded(lambda g: g.forward.z)
def logits_grad(g: LogitsGrad, out: Tensor) -> None:
    states, dstates = g.states, g.dstates
    N, _, P = g.forward.z.shape
    lse = states[1].masked_fill(states[1] == -torch.inf, torch.inf).view(N, 1, P)  # then no class has a share
    d_first, d_lse, *d_total = dstates.view(len(dstates), N, 1, P)
    blocks = Blocks(g.forward)

    def of_rows(i: int) -> None:
        rows = blocks[i]
        at = (rows.n, slice(None), rows.p)
        direct = out[at] if out.dtype == rows.logits.dtype else None
        dz = exponential(rows.logits, lse[at], d_lse[at], out=direct)
        if rows.classes is not None:
            dz.scatter_(1, rows.classes.clamp(min=0), d_first[at].to(dz.dtype))
        if d_total:
            dz.addcmul_(d_total[0][at].to(dz.dtype), rows.shares)
        if direct is None:
            out[at] = dz

    spread(len(blocks.at), of_rows)


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


class ElementBlocks:
    """Blocks of the flat elements: logits, targets, weights and weights of the positives."""

    def __init__(self, e: Elements) -> None:
        self.e, self.dtype = e, loss_dtype(e.z)
        self.z, self.target = e.z.flatten(), e.target.flatten()
        self.at = slices(self.z.numel(), ELEMENTS)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | float]:
        part = self.at[i]
        weight, pos_weight = (self.factors(f, part) for f in (self.e.weight, self.e.pos_weight))
        z, t = widen(self.z[part]), self.target[part].to(self.dtype)
        return z, t, weight, 1.0 if pos_weight is None else pos_weight

    def factors(self, f: Tensor | None, part: slice) -> Tensor | None:
        if f is None:
            return None
        return f.flatten()[torch.arange(part.start, part.stop, device=f.device) % f.numel()].to(self.dtype)


@single_threaded(lambda e: e.z)
def fold_elements(e: Elements) -> Tensor:
    z, total, blocks = e.z, e.total, ElementBlocks(e)
    value, _slope = ELEMENT_LOSSES[e.loss]
    out = z.new_zeros(len(blocks.at) if total else z.numel(), dtype=state_dtype(z) if total else loss_dtype(z))

    def of_block(i: int) -> None:
        v, t, w, pw = blocks[i]
        terms = value(v, t, pw, e.numbers)
        terms = terms if w is None else terms.mul_(w)
        out[i if total else blocks.at[i]] = terms.sum() if total else terms

    spread(len(blocks.at), of_block)
    return out.sum() if total else out.view(z.shape)


@single_threaded(lambda g: g.forward.z)
def elements_grad(g: ElementsGrad, out: Tensor) -> None:
    (_value, slope), flat, blocks = ELEMENT_LOSSES[g.forward.loss], out.view(-1), ElementBlocks(g.forward)

    def of_block(i: int) -> None:
        v, t, w, pw = blocks[i]
        d = g.dloss if g.dloss.dim() == 0 else g.dloss.flatten()[blocks.at[i]]
        d = d.to(v.dtype)
        flat[blocks.at[i]] = slope(v, t, pw, g.forward.numbers).mul_(d if w is None else d * w)

    spread(len(blocks.at), of_block)
