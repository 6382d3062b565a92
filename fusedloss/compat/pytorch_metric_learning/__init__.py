"""pytorch_metric_learning with the losses and miners of fusedloss.

    from fusedloss.compat.pytorch_metric_learning import distances, losses, miners, reducers

All else is the library's own, which takes our classes where it takes its own: they are subclasses. In bfloat16 and
float16 a loss is float32; a weight or proxies keep their dtype whatever that of the embeddings is.
"""

from ..calls import Call, fused_calls
from ..library import handed_through, require

_library = require("pytorch_metric_learning", "pytorch-metric-learning", "2.9", "pytorch-metric-learning")

from . import losses, miners, utils  # noqa: E402 they import the library

__all__ = ["Call", "fused_calls", "losses", "miners", "utils"]
__getattr__, __dir__ = handed_through(_library, __all__)
