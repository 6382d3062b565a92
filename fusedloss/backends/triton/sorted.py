"""Both sides sorted by label, as losses take them that compare every positive of an anchor with its other rows."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...kernels import triplets as kernels
from ..triplet_requests import Ranking, Triplets
from .launch import Plan, plan
from .sides import SCORES, Side, sides


class Sorted(NamedTuple):
    """A request with both sides sorted by label; they are one and the same if there is no y."""

    request: Triplets | Ranking
    x: Side
    y: Side
    ranges: kernels.Ranges

    @staticmethod
    def of(t: Triplets | Ranking) -> Sorted:
        xs, ys = sides(t.batch, t.metric, sort=True)
        (start, stop), offset = xs.rows.near, t.batch.ref_offset
        places = torch.arange(ys.n, dtype=torch.int32, device=start.device)
        if t.batch.y is None:
            ref_column = places
        elif offset is None or xs.order is None:
            ref_column = places.new_full((xs.n,), -1)
        else:
            ref_column = ys.restore(places, 0)[xs.order + offset]
        if xs.rows.counted:
            counts = torch.arange(xs.n, device=start.device) < xs.rows.counted[0]
            stop, ref_column = torch.where(counts, stop, start), torch.where(counts, ref_column, -1)
        return Sorted(t, xs, ys, kernels.Ranges(start, stop, ref_column))

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.x.n, self.y.n, self.x.D

    def plan(self, kernel: str, terms: str = "") -> Plan:
        found = plan(kernel, terms, self.request.use, self.x)
        return found._replace(options=found.options | dict(SCORE=SCORES[self.request.metric]))
