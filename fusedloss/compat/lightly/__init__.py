"""lightly with the losses of fusedloss.

    from fusedloss.compat.lightly.loss import NTXentLoss

Everything else is the library's own. The loss of bfloat16 and float16 tensors is float32.
"""

from ..library import handed_through, require

# Before 1.5.21, `DCLLoss` had another formula.
_library = require("lightly", "lightly", "1.5.21", "lightly")

from . import loss  # noqa: E402 which imports the library

__all__ = ["loss"]
__getattr__, __dir__ = handed_through(_library, __all__)
