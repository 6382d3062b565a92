"""pytorch_metric_learning with the losses and miners of fusedloss.

    from fusedloss.compat.pytorch_metric_learning import distances, losses, miners, reducers

Everything else is the library's own, and takes our classes where it takes its own, since they are subclasses. The loss
of bfloat16 and float16 embeddings is float32. A weight, or proxies, keep their dtype, whatever that of the embeddings.
"""

from ..calls import Call, fused_calls
from ..library import handed_through, require

_library = require("pytorch_metric_learning", "pytorch-metric-learning", "2.9", "pytorch-metric-learning")

from . import losses, miners, utils  # noqa: E402 they import the library

__all__ = ["Call", "fused_calls", "losses", "miners", "utils"]
__getattr__, __dir__ = handed_through(_library, __all__)
