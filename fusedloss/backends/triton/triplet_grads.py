"""The gradient of losses that compare every positive of an anchor with the anchor's other rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels import configs, tiles, triplet_tails
from ...kernels import triplet_grads as kernels
from ..triplet_requests import RankingGrad, Triplets, TripletsGrad
from .launch import Launch, cdiv, total
from .sorted import Sorted


class Gradients:
    """dx and dy, added up over the anchors' positives, some at a time."""

    def __init__(self, g: TripletsGrad | RankingGrad, s: Sorted, terms: str) -> None:
        x, y = g.forward.batch.x, g.forward.batch.y
        self.g, self.chosen = g, s.plan("triplets_grad", terms)
        self.runs = [(s.x, s.y, "self" if y is None else "x")] if g.want_x else []
        self.runs += [(s.y, s.x, "y")] if y is not None and g.want_y else []
        self.outs = [
            torch.empty(self.chosen.splits(rows.n, others.n), rows.n, rows.D, dtype=torch.float32, device=x.device)
            for rows, others, _ in self.runs
        ]
        if s.x.n == 0 or s.y.n == 0:
            self.outs, self.runs = [out.zero_() for out in self.outs], []
        self.longest = (s.ranges.stop - s.ranges.start).amax().reshape(1) if self.runs else None

    def add(
        self, anchors: Any, number: tiles.Numbers, options: dict[str, Any], first: int, width: int, parts: int = 1
    ) -> None:  # fmt: skip
        """Add the gradient through the anchors' positives number `first` to `first + width`."""
        tile, slab = self.chosen.tile, self.chosen.slab
        options = self.chosen.options | options
        options |= dict(K=configs.POSITIVES, ADD=first > 0, SLAB=slab)
        for (rows, others, role), out in zip(self.runs, self.outs, strict=False):
            of_sides = [anchors if role in of else () for of in (("x", "self"), ("y", "self"))]
            sizes = (rows.n, others.n, rows.D, first, width, parts)
            args = (rows.rows, others.rows, tuple(of_sides), (out, self.longest), number, *sizes)
            grid = (cdiv(rows.n, tile.BM), len(out), cdiv(rows.D, slab * tile.BD))
            Launch(kernels.triplets_grad, grid, args, options, self.chosen.key, role).run()

    def with_tail(self, t: Triplets, ranges: Any, du: Tensor, number: tiles.Numbers) -> tuple[Tensor, Tensor]:
        """dx and dy, with what comes through the positives of which nothing was kept."""
        tile, slab, dtype = self.chosen.tile, self.chosen.slab, t.batch.x.dtype
        given = {name: self.chosen.options[name] for name in ("SCORE", "PRECISION", "BM", "BD", "num_warps")}
        options = given | dict(KIND=t.triplets, SOFT=t.soft, BN=self.chosen.options["NEAR"], SLAB=slab, num_stages=1)
        grads = [torch.empty_like(out[0], dtype=dtype) for out in self.outs]
        for (rows, others, role), parts, out in zip(self.runs, self.outs, grads, strict=False):
            of_sides = [(ranges, du) if role in of else () for of in (("x", "self"), ("y", "self"))]
            sizes = (rows.n, others.n, rows.D, t.width, len(parts))
            args = (rows.rows, others.rows, *of_sides, parts, out, number, self.longest, *sizes)
            grid = (cdiv(rows.n, tile.BM), 1, cdiv(rows.D, slab * tile.BD))
            Launch(triplet_tails.triplets_tail, grid, args, options, None, role).run()
        return self.of_sides(grads if self.runs else [out[0].to(dtype) for out in self.outs])

    def of_sides(self, grads: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        g, x, y = self.g, self.g.forward.batch.x, self.g.forward.batch.y
        grads = grads or [total(out, x.dtype) for out in self.outs]
        return grads[0] if g.want_x else x.new_empty(0), grads[-1] if y is not None and g.want_y else x.new_empty(0)
