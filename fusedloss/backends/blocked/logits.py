"""Losses of given logits, block by block: a softmax over the classes of a row, or every element by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dtypes import loss_dtype, state_dtype
from ..request import Elements, ElementsGrad, Logits, LogitsGrad
from .folds import exponential, highest, log_sum
from .parallel import single_threaded, spread
from .tiles import slices, widen

BLOCK = 1 << 18  # logits of a block: 1 MiB in float32 stays in a core's L2 cache
ELEMENTS = 1 << 17  # elements of a block, which has about ten temporaries; a quarter takes twice as long (2026-11-27)


class Rows(NamedTuple):
    """A block of the rows of logits [N, C, P]: whole samples, or a part of a sample that is too large."""

    n: slice
    p: slice
    logits: Tensor  # [n, C, p], in float32 or wider; 0 in rows without a class that are not finite
    own: Tensor  # the own classes, 0 for none [n, 1, p]; unused for probabilities
    shares: Tensor | None  # the share of every class in the loss of its row, if wanted [n, C, p]


class Blocks:
    """The blocks of the rows of logits."""

    def __init__(self, r: Logits) -> None:
        self.r, (N, C, P) = r, r.z.shape
        self.weight = None if r.weight is None else r.weight.to(loss_dtype(r.z))
        self.classes = None if r.target.is_floating_point() else r.target.view(N, 1, P)
        self.ignores = self.classes is not None and (r.target.device.type != "cpu" or bool((r.target < 0).any()))
        samples, part = max(1, BLOCK // max(C * P, 1)), max(1, BLOCK // max(C, 1))
        self.at = [(n, p) for n in slices(N, samples) for p in slices(P, part)]

    def __getitem__(self, i: int) -> Rows:
        n, p = self.at[i]
        z, kept, spread = widen(self.r.z[n, :, p]), 1 - self.r.smoothing, self.r.smoothing / self.r.z.shape[1]
        if self.classes is None:
            q = self.r.target[n, :, p]
            return Rows(n, p, z, q, self.weighted((q.to(z.dtype) * kept).add_(spread)))
        own = self.classes[n, :, p]
        if self.ignores:
            z, own = read_as_zero(z, own < 0), own.clamp(min=0)
        if not self.r.shares:
            return Rows(n, p, z, own, None)
        return Rows(n, p, z, own, self.weighted(torch.full_like(z, spread).scatter_(1, own, kept + spread)))

    def weighted(self, q: Tensor) -> Tensor:
        return q if self.weight is None else q.mul_(self.weight[:, None])


def read_as_zero(z: Tensor, ignored: Tensor) -> Tensor:
    """Logits [n, C, p] with zeros in ignored rows; if all of those are finite they do no harm and stay."""
    if z.device.type == "cpu" and not bool((ignored & ~z.sum(1, keepdim=True).isfinite()).any()):
        return z
    return z.masked_fill(ignored, 0.0)


def asked(shares: Tensor, logs: Tensor) -> Tensor:
    """shares * logs, 0 where a share is 0, even if the logarithm is -inf. Where looking needs no sync, -inf is looked
    for first, since the selection takes longer than everything else."""
    found = shares * logs
    there = logs.device.type != "cpu" or (logs.numel() > 0 and not bool(logs.amin() > -torch.inf))
    return found.masked_fill_(shares == 0, 0.0) if there else found


@single_threaded(lambda r: r.z)
def fold_logits(r: Logits) -> Tensor:
    N, _, P = r.z.shape
    states, blocks = r.z.new_empty(2 + r.shares, N, P, dtype=state_dtype(r.z)), Blocks(r)

    def of_rows(i: int) -> None:
        rows = blocks[i]
        first, lse, *cost = states[:, rows.n, rows.p]
        high = highest(rows.logits, 1)
        apart = rows.logits - high
        if rows.shares is None:
            first.copy_(rows.logits.gather(1, rows.own)[:, 0])
            lse.copy_(log_sum(apart.exp_().scatter_(1, rows.own, 0.0), high[:, 0], 1))
        else:  # a sum of terms that are at least 0, taken from the highest logit, so that large logits lose no digits
            below = asked(rows.shares, apart).sum(1)
            above = apart.exp_().sum(1).to(lse.dtype).log_()
            first.copy_(rows.shares.sum(1))
            lse.copy_(above + high[:, 0])
            cost[0].copy_(above.mul_(first).sub_(below))

    spread(len(blocks.at), of_rows)
    return states.flatten(1)


@single_threaded(lambda g: g.forward.z)
def logits_grad(g: LogitsGrad, out: Tensor) -> None:
    states, dstates = g.states, g.dstates
    N, _, P = g.forward.z.shape
    lse, (d_first, d_lse, *d_cost) = states[1].view(N, 1, P), dstates.view(len(dstates), N, 1, P)
    if not d_cost:
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # no other class has a share
    blocks = Blocks(g.forward)

    def of_rows(i: int) -> None:
        rows = blocks[i]
        at = (rows.n, slice(None), rows.p)
        direct = out[at] if out.dtype == rows.logits.dtype else None
        dz = exponential(rows.logits, lse[at], d_lse[at], out=direct)
        if rows.shares is None:
            dz.scatter_(1, rows.own, d_first[at].to(dz.dtype))
        else:
            dz.addcmul_(d_cost[0][at].to(dz.dtype), rows.shares, value=-1)
        if direct is None:
            out[at] = dz

    spread(len(blocks.at), of_rows)


# The losses of an element, as in `kernels/logits.py`: each has its value, and its derivative by z.


def binary_cross_entropy(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    return asked(t, F.logsigmoid(z)).mul_(-pos_weight).sub_(asked(1 - t, F.logsigmoid(-z)))


def binary_cross_entropy_slope(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    return z.sigmoid().mul_(1 - t).sub_(z.neg().sigmoid_().mul_(pos_weight * t))


def focal_terms(z: Tensor, t: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """alpha_t u^gamma with u = 1 - p_t, exact to the last bits where u is small, and the cross entropy."""
    log_p, log_q, f = F.logsigmoid(z), F.logsigmoid(-z), 1 - t
    if gamma == 0:
        factor = torch.ones_like(z)
    elif is_whole(t):
        factor = asked(t, log_q).add_(asked(f, log_p)).mul_(gamma).exp_()
    else:
        u = (log_p.exp() * f).add_(log_q.exp() * t)
        factor = torch.where(t == 1, log_q, torch.where(f == 1, log_p, u.log_())).mul_(gamma).exp_()
    if alpha >= 0:
        factor.mul_(alpha * t + (1 - alpha) * f)
    return factor, asked(t, log_p).add_(asked(f, log_q)).neg_()


def is_whole(t: Tensor) -> bool:
    """Whether every target is known to be 0 or 1; False where looking would be a sync."""
    return t.device.type == "cpu" and bool((t * (1 - t) == 0).all())


def sigmoid_focal(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    factor, entropy = focal_terms(z, t, *numbers)
    return factor.mul_(entropy)


def sigmoid_focal_slope(z: Tensor, t: Tensor, pos_weight: Tensor | float, numbers: Sequence[float]) -> Tensor:
    factor, entropy = focal_terms(z, t, *numbers)
    p, q, f = z.sigmoid(), z.neg().sigmoid_(), 1 - t
    slope = p * f - q * t  # the derivative of the entropy
    if is_whole(t):
        log_slope = q.mul_(f).sub_(p.mul_(t))
    else:  # the derivative of log u: du/dz / u
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
