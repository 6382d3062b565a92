"""Ranks of an anchor's positives among its other rows, without a triple in memory.

The positives of a block of anchors are few, so they are ranked among each other by their scores alone. Then each tile
of scores is read once for each positive, or more often for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..triplet_requests import Ranking, RankingGrad
from .losses import device_code
from .parallel import single_threaded, spread
from .triplets import Gradients, Positives, Sorted


def used(weights: Tensor) -> Iterable[int]:
    """The columns that are not all 0; all columns where reading would be a sync."""
    if weights.device.type != "cpu":
        return range(weights.shape[1])
    return (weights != 0).any(0).nonzero().flatten().tolist()


def logistics(
    s: Tensor, p: Positives, columns: Iterable[int], scale: float, absent: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """For some positives in turn, logistics of how far each score is above the positive's own score.

    They are 0 for absent pairs and, where the scores are those of the positives, for the positive itself. [B, BN] each
    """
    for k in columns:
        h = (s - p.s[:, k, None]).mul_(scale).sigmoid_()
        if absent is not None:
            h.masked_fill_(absent, 0.0)
        if s is p.s:
            h[:, k] = 0.0
        yield k, h


def slope(h: Tensor) -> Tensor:
    """The derivative of a logistic, from its value."""
    return torch.addcmul(h, h, h, value=-1)


def ranks(b: Sorted, i: int, p: Positives, scale: float, *, slopes: bool = False) -> tuple[Tensor, Tensor]:
    """For each positive of a block, how many positives (itself included) and how many negatives are above it; if
    `slopes`, also the sums of their slopes. [1 or 2, B, P] each"""
    others, negatives = torch.zeros(2, 1 + slopes, *p.s.shape, dtype=p.s.dtype, device=p.s.device)
    others[0] = 1.0
    present = used(p.present)

    def add(sums: Tensor, s: Tensor, absent: Tensor | None) -> None:
        for k, h in logistics(s, p, present, scale, absent):
            sums[0, :, k] += h.sum(1)
            if slopes:
                sums[1, :, k] += slope(h).sum(1)

    add(others, p.s, ~p.present)
    for t in b.tiles(i):
        add(negatives, t.s, None if t.neg is None else ~t.neg)
    return others, negatives


@single_threaded(lambda q: q.batch)
def rank(q: Ranking) -> Tensor:
    b, out, piece = Sorted.of(q.batch, q.metric), q.new_states(), device_code()[q.piece]
    out[-1], _ = b.counts

    def of_rows(i: int) -> None:
        r = b.x.blocks[i]
        p = b.positives(r)
        (others,), (negatives,) = ranks(b, i, p, q.scale)
        for state, (term, *_) in zip(out, piece(others, negatives, tuple(q.numbers)), strict=False):
            state[r] = term.masked_fill(~p.present, 0.0).sum(1, dtype=out.dtype)

    spread(len(b.x.blocks), of_rows)
    return b.x.restore(out, 1)


@single_threaded(lambda g: g.forward.batch)
def rank_grad(g: RankingGrad) -> tuple[Tensor, Tensor]:
    q = g.forward
    b, piece = Sorted.of(q.batch, q.metric), device_code()[q.piece]
    grads, d = Gradients(b, g), b.x.ordered(g.dstates)[:, :, None].to(b.x.rows.dtype)

    def of_rows(i: int) -> None:
        r = b.x.blocks[i]
        p = b.positives(r)
        (others, others_slope), (negatives, negatives_slope) = ranks(b, i, p, q.scale, slopes=True)
        by_others, by_negatives = torch.zeros_like(others), torch.zeros_like(others)
        for dstate, (_, by_other, by_negative) in zip(d, piece(others, negatives, tuple(q.numbers)), strict=True):
            by_others += by_other * (q.scale * dstate[r])
            by_negatives += by_negative * (q.scale * dstate[r])
        absent = ~p.present
        by_others.masked_fill_(absent, 0.0)
        by_negatives.masked_fill_(absent, 0.0)

        pairs = used(by_negatives)
        for t in b.tiles(i):
            pushed = torch.zeros_like(t.s)
            for k, h in logistics(t.s, p, pairs, q.scale, None if t.neg is None else ~t.neg):
                pushed.addcmul_(slope(h), by_negatives[:, k, None])
            grads.add_negatives(i, t, pushed if pairs else None)
        pulled = (by_others * others_slope + by_negatives * negatives_slope).neg_()
        for k, h in logistics(p.s, p, used(by_others), q.scale, absent):
            pulled.addcmul_(slope(h), by_others[:, k, None])
        grads.add_positives(i, p, pulled.masked_fill_(absent, 0.0))

    return grads.run(of_rows)
