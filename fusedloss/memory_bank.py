"""Losses that compare a batch with the rows of past batches: cross-batch memory, and MoCo's queue."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, groups
from .groups import alone
from .losses import catalog
from .losses.catalog import Role

ROWS = ("embeddings", "labels", "ids", "position")  # what a bank keeps, by name
NONE = -(2**63)  # the id of a row that was put in without an id, and the label of a row that is left out


class MemoryBank(nn.Module):
    r"""An in-batch loss over the batch and a ring buffer of the rows of past batches, through which no gradient flows.

    A loss with labels compares every row with all other rows of the batch and with the last `size` rows before the
    batch; a row is not paired with itself. The compared rows are detached, those of the batch too, so that each row
    receives its gradient as an anchor only. A loss with `negatives` (InfoNCE) takes the last `size` keys as its queue.

    `forward` returns the loss and then, in training mode, puts rows into the buffer; in `eval()` mode the buffer stays
    as it is. Shapes, errors and results are those of the loss. The tensors to pass are:

    - `forward(embeddings, labels)`, for a loss with labels.
    - `forward(embeddings, labels, keys)`, for a loss with labels and a second (momentum) encoder, which makes the rows
      that are kept and compared with: MoCo with labels. A key is another view of its row, so that a row is also paired
      with its own key, as a positive. Keys that were gathered from several processes, [K, D], need their labels:
      `key_labels=`, [K].
    - `forward(query, key)`, for a loss with `negatives`; the keys are kept.

    `store=` says which rows (or keys) are kept, by a mask, [N] bool, or by their numbers, [K] integers; use it to leave
    out rows without a label, or with a doubtful one. The number of rows to keep must be known without reading from the
    device, so masks are for CPUs; elsewhere pass `mask.nonzero().flatten()`. `reset()` empties the buffer, for example
    before another phase of training.

    Nothing is read from the device: the rows are counted on the host. While the buffer fills, their number is a size
    that varies, so `torch.compile` makes two graphs, one of them for the empty buffer; with `dynamic=False` it makes
    one per step. Once the buffer is full no size changes, and a step can be captured in a CUDA graph.

    `state_dict` has the rows, their labels and how many were put in. They are not buffers in the sense of
    `named_buffers`: `DistributedDataParallel` would send those of rank 0 to all ranks, but every rank keeps rows of its
    own. A file that rank 0 saved gives its rows to all ranks, and they are replaced after `size` more rows; with
    `gather` all ranks have the same rows anyway.

    A sample may come again while its row of an earlier epoch is still kept; the two are then a positive pair of almost
    equal rows. `ids=`, [N], an integer for every row that may be kept (for every key, if there are keys), leaves such
    pairs out: a kept row whose id is in the batch is neither a positive nor a negative, as if its label were
    `ignore_index`.

    Args:
        loss: a loss of fusedloss (a function, a `functools.partial` of one, or a module), or any other callable, that
            takes `ref_embeddings` and `ref_labels`, or `negatives`. A module's parameters (a margin) are trained and
            saved with the bank.
        size: how many rows are kept, at least 1; in float32 they take size x dim x 4 bytes.
        dim: D of the embeddings.
        dtype: the dtype of the kept rows; they are compared in the dtype of the embeddings.
        device: the device of the kept rows; `.to(device)` moves them too.
        gather: whether every process of a `torch.distributed` group keeps the rows of all processes. All banks are then
            alike, and the value is the loss of the whole batch, the same in every process, as in
            `fusedloss.distributed.GroupLoss`. Otherwise every process keeps its own rows.
        group: the process group for `gather`; None: all processes.
        even: whether every process gives the same number of rows, for `gather`; it saves an exchange of sizes and a
            host sync.

    Equivalent to:

    ```python
    refs = torch.cat([embeddings.detach(), past])  # the last `size` rows
    loss(embeddings, labels, refs, torch.cat([labels, past_labels]), ref_offset=0)  # no ref_offset for keys
    ```

    `CrossBatchMemory` of pytorch-metric-learning counts the batch as part of its memory_size; its `enqueue_mask` says
    which rows of one tensor are keys.

    Source: Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020; He et al., "Momentum Contrast for
    Unsupervised Visual Representation Learning", CVPR 2020.

    Examples:
        >>> bank = MemoryBank(fusedloss.BatchHardTripletLoss(margin=0.5), size=4, dim=1)
        >>> bank(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))  # no positives yet
        tensor(0.)
        >>> bank(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]))
        tensor(1.)
        >>> bank.reset()
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> bank(x, y, keys=x + 0.75, store=torch.tensor([True, False]))  # a row and its own key are positives
        tensor(0.5000)
        >>> bank.filled
        1
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
        gather: bool = False,
        group: Any = None,
        even: bool = False,
    ) -> None:
        super().__init__()
        self.gather, self.group, self.even = checks.flag("gather", gather), group, checks.flag("even", even)
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
        self.ignores = labelled and "ignore_index" in inspect.signature(function).parameters
        self.embeddings = torch.zeros(size, dim, dtype=dtype, device=device)
        self.labels = torch.zeros(size, dtype=torch.int64, device=device)
        self.ids = torch.full((size,), NONE, dtype=torch.int64, device=device)  # the ids of samples
        self.position = torch.zeros((), dtype=torch.int64, device=device)  # rows put in so far
        # Empty, its length the rows in use: counted on the host, so that no shape depends on the device, and a size,
        # which torch.compile lets vary, while it compiles anew for every value of an int of a module.
        self.used = self.embeddings.new_empty(0, 0)
        self.register_load_state_dict_post_hook(MemoryBank._count)

    @property
    def filled(self) -> int:
        """How many rows of the buffer are in use."""
        return self.used.shape[0]

    def reset(self) -> None:
        """Empty the buffer."""
        for name in ROWS:
            getattr(self, name).fill_(NONE if name == "ids" else 0)
        self.used = self.used.new_empty(0, 0)

    def forward(
        self, embeddings: Tensor, labels: Tensor, keys: Tensor | None = None, *,
        key_labels: Tensor | None = None, store: Tensor | None = None, ids: Tensor | None = None,
    ) -> Any:  # fmt: skip
        if ids is not None and not self.ignores:
            raise ValueError("ids must be None where the loss takes no ignore_index, by which rows are left out")
        if key_labels is not None and keys is None:
            raise ValueError("key_labels must be given together with keys, got no keys")
        if not self.labelled and keys is not None:
            raise ValueError("keys must be the second tensor where the loss takes negatives, got a third")
        step = partial(self._step, embeddings, labels, keys, key_labels=key_labels, ids=ids, store=store)
        if not self.gather or alone(self.group):
            return step()
        from .distributed.agreement import over_group  # imports torch._dynamo, which takes a second

        given = dict(embeddings=embeddings, labels=labels, keys=keys, key_labels=key_labels, ids=ids)
        roles = {"embeddings": Role.ROWS, "labels": Role.LABELS if self.labelled else Role.KEYS, "ids": Role.IDS}
        if keys is not None:
            roles |= {"keys": Role.KEYS, "key_labels": Role.KEY_IDS, "ids": Role.KEY_IDS}
        alike = dict(size=self.size, filled=self.filled, training=self.training, store=store is not None)
        return over_group(step, self.group, "MemoryBank", roles, given, alike, even=self.even)

    def _step(
        self, embeddings: Tensor, labels: Tensor, keys: Tensor | None, key_labels: Tensor | None, ids: Tensor | None,
        store: Tensor | None,
    ) -> Any:  # fmt: skip
        row_labels = None
        if not self.labelled:
            rows = self._rows("key", labels)
        elif keys is None:
            rows = self._rows("embeddings", embeddings)
            labels = row_labels = checks.integers("labels", labels, rows).long()
        else:
            rows = self._rows("keys", keys)
            checks.same_kind("embeddings", self._rows("embeddings", embeddings), "keys", rows)
            name, of_keys = ("labels", labels) if key_labels is None else ("key_labels", key_labels)
            row_labels = checks.integers(name, of_keys, rows).long()
        if ids is not None:
            ids = checks.integers("ids", ids, rows).long()
        at = None if store is None else chosen(store, rows)
        own, every = (rows, row_labels, ids), None
        if row_labels is None:
            past = self.embeddings[: self.filled].to(rows.dtype, copy=True)  # the backward needs the present rows
            value = self.loss(embeddings, labels, negatives=past)
        else:
            every = [*map(of_all, own)]
            references, options = self._references(*every)
            if keys is None:
                options["ref_offset"] = groups.first_key()
            value = self.loss(embeddings, labels, *references, **options)
        if self.training:
            self._put(*(selected(own, at) if at is not None else every or map(of_all, own)))
        return value

    def _rows(self, name: str, given: Tensor) -> Tensor:
        """The rows that may be put in, checked and detached."""
        rows = checks.rows(name, given).detach()
        if rows.shape[1] != self.dim:
            raise ValueError(f"{name} must have the D of the bank, {self.dim}, got shape {tuple(rows.shape)}")
        if rows.device != self.embeddings.device:
            raise ValueError(f"{name} must be on the device of the bank, {self.embeddings.device}, got {rows.device}")
        return rows

    def _references(
        self, rows: Tensor, labels: Tensor, ids: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], dict[str, int]]:  # fmt: skip
        """The given rows and those of the buffer, their labels, and further arguments of the loss. They are copies,
        since the backward needs the present rows."""
        past, past_labels = self.embeddings[: self.filled].to(rows.dtype), self.labels[: self.filled]
        options = {}
        if ids is not None:
            options["ignore_index"] = none = self._ignored()
            past_labels = past_labels.masked_fill(torch.isin(self.ids[: self.filled], ids), none)
        return (torch.cat([rows, past]), torch.cat([labels, past_labels])), options

    def _ignored(self) -> int:
        """The label that the loss ignores, or that it is made to ignore."""
        own = catalog.option_of(self.loss, "ignore_index")
        return NONE if own is None else own

    @torch.no_grad()
    def _put(self, rows: Tensor, labels: Tensor | None, ids: Tensor | None) -> None:
        rows = rows[-self.size :]
        n = rows.shape[0]
        at = (self.position + torch.arange(n, device=rows.device)) % self.size
        self.embeddings.index_copy_(0, at, rows.to(self.embeddings.dtype))
        if labels is not None:
            self.labels.index_copy_(0, at, labels[-self.size :])
            self.ids.index_copy_(0, at, torch.full_like(at, NONE) if ids is None else ids[-self.size :])
        self.position += n
        self.used = self.used.new_empty(min(self.size, self.filled + n), 0)

    @contextmanager
    def _as_buffers(self) -> Iterator[None]:
        """Makes the rows buffers within this block, so that `nn.Module` moves, saves and loads them."""
        for name in ROWS:
            self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            for name in ROWS:
                self.__dict__[name] = self._buffers.pop(name)

    def _apply(self, *arguments: Any, **named: Any) -> MemoryBank:
        with self._as_buffers():
            return super()._apply(*arguments, **named)

    def _save_to_state_dict(self, *arguments: Any, **named: Any) -> None:
        with self._as_buffers():
            super()._save_to_state_dict(*arguments, **named)

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        state, prefix = arguments[:2]
        state.setdefault(f"{prefix}ids", torch.full_like(self.ids, NONE))  # older states have no ids
        with self._as_buffers():
            super()._load_from_state_dict(*arguments, **named)

    def _count(self, _: Any) -> None:
        """Counts the rows after loading a state, the only time that the position is read."""
        self.used = self.used.new_empty(min(self.size, int(self.position)), 0)

    def extra_repr(self) -> str:
        gathers = f", gather=True, even={self.even}" if self.gather else ""
        return f"size={self.size}, dim={self.dim}{gathers}"


def of_all(own: Any) -> Any:
    """A tensor of rows that may be kept (or None), gathered from all processes if the bank is one of a group."""
    group = groups.current()
    return own if own is None or group is None else group.gather(own, group.keys)


def selected(own: tuple[Tensor | None, ...], at: Tensor) -> list[Any]:
    """The selected ones of the own rows, and those that other processes select of theirs."""
    group, found = groups.current(), [None if t is None else t.index_select(0, at) for t in own]
    if group is None:
        return found
    counts = group.gather(at.new_tensor([at.shape[0]]), [1] * group.world).tolist()
    return [None if t is None else group.gather(t, counts) for t in found]


def chosen(store: Tensor, rows: Tensor) -> Tensor:
    """The numbers of the rows to keep, from a mask or from numbers. [K] int64"""
    N = rows.shape[0]
    if not isinstance(store, Tensor):
        raise TypeError(f"store must be a tensor, a mask or numbers of rows, got {type(store).__name__}")
    if store.device != rows.device:
        raise ValueError(f"store must be on the device of the rows, {rows.device}, got {store.device}")
    if store.dtype == torch.bool:
        if store.shape != (N,):
            raise ValueError(f"store must have shape ({N},) as a mask, one value a row, got {tuple(store.shape)}")
        if not checks.readable(store):
            raise ValueError(
                f"store must be numbers of rows where reading a mask would wait for a device, or in compiled code, got "
                f"a mask on {store.device}: its numbers are mask.nonzero().flatten()"
            )
        return store.nonzero().flatten()
    if store.is_floating_point() or store.is_complex():
        raise TypeError(f"store must be a mask (torch.bool) or numbers of rows (integers), got {store.dtype}")
    if store.dim() != 1:
        raise ValueError(f"store must have shape (K,), one number for every row to keep, got {tuple(store.shape)}")
    at = store.long()
    if checks.readable(at) and (wrong := checks.first_of((at < 0) | (at >= N))) is not None:
        raise ValueError(f"store must be numbers of rows from 0 to {N - 1}, got {at[wrong]}")
    return at
