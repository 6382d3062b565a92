"""How many launches a step takes and how much memory at its peak, on a GPU that is not there.

A step on the device "meta" goes as far as its launches. What is seen of it are PyTorch's operators and the tensors that
they return; what an operator takes within itself, and how often it launches more than once, is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..backends import use_backend
from ..backends.triton import tuning
from ..backends.triton.launch import recording
from ..ops.registration import OPERATIONS
from .workloads import Workload, arguments, step

NO_LAUNCH = (
    "empty",
    "empty_like",
    "new_empty",
    "detach",
    "alias",
    "_unsafe_view",
    "_reshape_alias",
)  # beside the views


class Footprint(NamedTuple):
    """Of a forward and backward."""

    kernels: int  # launches of fusedloss's kernels
    operators: int  # of PyTorch's that compute something on the device, each at least one launch
    peak_bytes: int  # memory beside the inputs, at the peak


class Watch(TorchDispatchMode):
    """Counts operators and the bytes of the tensors beside the inputs that are alive, inside the custom ops too."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.operators = self.live = self.peak = 0
        self.known = {t.untyped_storage()._cdata for t in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = OPERATIONS.get(func.name())
        if operation is None:
            found = func(*args, **(kwargs or {}))
        else:
            with self:
                found = operation.run(*args)
        tensors = [t for t in tree_leaves(found) if isinstance(t, Tensor) and t.is_meta]
        for tensor in tensors:
            self.hold(tensor)
        name = func.name().removeprefix("aten::").split(".")[0]
        self.operators += bool(tensors) and operation is None and not func.is_view and name not in NO_LAUNCH
        return found

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor once, until the last tensor that shares it is gone."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self.known:
            self.known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.release, address, size)

    def release(self, address: int, size: int) -> None:
        self.known.remove(address)
        self.live -= size


def footprint(work: Workload, arch: str) -> Footprint:
    """Of a workload with default tiles."""
    with use_backend("triton"), tuning.defaults(), recording(arch, kept=False) as launches:
        inputs = arguments(work, "meta")
        run = step(work, "meta", inputs)
        with Watch(inputs.values()) as watch:
            run()
    return Footprint(len(launches), watch.operators, watch.peak)
