"""The gradient by the rows of both sides, added up from the tiles' dL/ds."""

from __future__ import annotations

import torch
from torch import Tensor

from .scores import manhattan_grad, pull, unit_grad
from .tiles import Side


class Gradient:
    """What the tiles add up to on one side, if it is wanted."""

    def __init__(self, side: Side, wanted: bool) -> None:
        self.side, self.wanted = side, wanted
        self.rows = torch.zeros_like(side.rows) if wanted else side.rows
        self.own = torch.zeros_like(side.squares)  # how much of each row itself
        self.offsets = torch.zeros_like(side.squares)

    def add(self, part: slice, w: Tensor, others: Tensor, f: float) -> None:
        """The share of a tile: sum_j w_ij (y_j - f x_i)."""
        self.rows[part].addmm_(w, others)
        if f:
            self.own[part] -= w.sum(1)

    def finish(self, like: Tensor) -> Tensor:
        if not self.wanted:
            return like.new_empty(0)
        d = self.rows.addcmul_(self.own[:, None], self.side.rows)
        if self.side.scale is not None:
            d = unit_grad(d, self.side.rows, self.side.scale)
        return self.side.restore(d, 0).to(like.dtype)


def gradients(x: Side, y: Side, want_x: bool, want_y: bool) -> tuple[Gradient, Gradient]:
    """Of both sides, the same one in a self batch."""
    of_x = Gradient(x, want_x)
    return of_x, of_x if x is y else Gradient(y, want_y)


def add_tile(
    of_x: Gradient, of_y: Gradient, r: slice, c: slice, g: Tensor, s: Tensor, metric: str, columns: bool = True
) -> None:
    """Add a tile's share to its rows and, if `columns`, to its columns: from scores s and g = dL/ds, overwritten."""
    x, y = of_x.side.rows[r], of_y.side.rows[c]
    columns = columns and of_y.wanted
    if metric == "manhattan":
        if of_x.wanted:
            of_x.rows[r] += manhattan_grad(g, x, y)
        if columns:
            of_y.rows[c] += manhattan_grad(g.T, y, x)
        return
    pulls, f = pull(g, s, metric)
    if of_x.wanted:
        of_x.add(r, pulls, y, f)
    if columns:
        of_y.add(c, pulls.T, x, f)


def all_zero(g: Tensor) -> bool:
    """Whether there is nothing to add; False where reading it would be a sync."""
    return g.device.type == "cpu" and all(extreme == 0 for extreme in g.aminmax())
