"""Losses against the rows of past batches: cross-batch memory, and MoCo's queue."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .losses import catalog


class MemoryBank(nn.Module):
    r"""An in-batch loss over the batch and a ring buffer of the rows of past batches, through which no gradient flows.

    A loss with labels compares every row with all other rows of the batch and with the last `size` rows before it; a
    row is not paired with itself. What the rows are compared with is detached, the batch too, so the gradient is that
    of each row as an anchor. A loss with `negatives` (InfoNCE) takes the last `size` keys as its queue.

    Args:
        loss: a loss of fusedloss, as a function, a `functools.partial` of one, or a module, or any other callable, that
            takes `ref_embeddings` and `ref_labels`, or `negatives`. A module's parameters (a margin) are trained and
            saved with the bank.
        size: rows kept, at least 1; in float32 they take size x dim x 4 bytes.
        dim: D of the embeddings.
        dtype: of the rows kept; they are compared in the dtype of the embeddings.
        device: of the buffers; `.to(device)` moves them too.

    `forward(embeddings, labels)`, or `forward(query, key)`, returns the loss, and in training mode then puts the rows
    (the keys) into the buffer; `eval()` leaves it as it is. Shapes, errors and results are those of the loss. Nothing
    is read from the device: how many rows there are is counted on the host, and from when the buffer is full a step can
    be captured in a CUDA graph. `state_dict` holds the rows, their labels and the write position.

    Equivalent to::

        refs = torch.cat([embeddings.detach(), past])  # the last `size` rows
        loss(embeddings, labels, refs, torch.cat([labels, past_labels]), ref_offset=0)

    `CrossBatchMemory` of pytorch-metric-learning counts the batch into its memory_size.

    Source: Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020; He et al., "Momentum Contrast for
    Unsupervised Visual Representation Learning", CVPR 2020.

    >>> bank = MemoryBank(fusedloss.BatchHardTripletLoss(margin=0.5), size=4, dim=1)
    >>> bank(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))  # no positives yet
    tensor(0.)
    >>> bank(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]))
    tensor(1.)
    """

    embeddings: Tensor
    labels: Tensor
    position: Tensor
    used: Tensor

    def __init__(
        self,
        loss: Callable[..., Tensor],
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        size, dim = checks.index("size", size, low=1), checks.index("dim", dim, low=1)
        known = catalog.find(loss)
        function = known.function if known else getattr(loss, "function", getattr(loss, "forward", loss))
        takes = known.tensors if known else inspect.signature(function).parameters
        labelled = {"ref_embeddings", "ref_labels"} <= takes.keys()
        if not labelled and "negatives" not in takes:
            name = getattr(function, "__name__", type(loss).__name__)
            raise TypeError(
                f"loss must take ref_embeddings and ref_labels, or negatives, got {name}({', '.join(takes)})"
            )
        self.loss, self.size, self.dim, self.labelled = loss, size, dim, labelled
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=dtype, device=device))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64, device=device))  # rows put in so far
        # Empty, its length the rows in use: counted on the host, so that no shape depends on the device, and a size,
        # which torch.compile lets vary, while it compiles anew for every value of an int of a module.
        self.used = self.embeddings.new_empty(0, 0)
        self.register_load_state_dict_post_hook(MemoryBank._count)

    @property
    def filled(self) -> int:
        """Rows of the buffer in use."""
        return self.used.shape[0]

    def forward(self, embeddings: Tensor, labels: Tensor) -> Any:
        name, rows = ("embeddings", embeddings) if self.labelled else ("key", labels)
        rows = checks.rows(name, rows).detach()
        if rows.shape[1] != self.dim:
            raise ValueError(f"{name} must have the D of the bank, {self.dim}, got shape {tuple(rows.shape)}")
        # A copy, here or by `cat`: the backward needs the rows as they are now.
        past = self.embeddings[: self.filled].to(rows.dtype, copy=not self.labelled)
        if self.labelled:
            labels = checks.integers("labels", labels, rows).long()
            refs = (torch.cat([rows, past]), torch.cat([labels, self.labels[: self.filled]]))
            value = self.loss(embeddings, labels, *refs, ref_offset=0)
        else:
            value = self.loss(embeddings, labels, negatives=past)
        if self.training:
            self._put(rows, labels if self.labelled else None)
        return value

    @torch.no_grad()
    def _put(self, rows: Tensor, labels: Tensor | None) -> None:
        rows = rows[-self.size :]
        n = rows.shape[0]
        at = (self.position + torch.arange(n, device=rows.device)) % self.size
        self.embeddings.index_copy_(0, at, rows.to(self.embeddings.dtype))
        if labels is not None:
            self.labels.index_copy_(0, at, labels[-self.size :])
        self.position += n
        self.used = self.used.new_empty(min(self.size, self.filled + n), 0)

    def _count(self, _: Any) -> None:
        """After loading a state, the one time that the position is read."""
        self.used = self.used.new_empty(min(self.size, int(self.position)), 0)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}"
