"""open_clip with the losses of fusedloss.

    from fusedloss.compat.open_clip import ClipLoss, create_loss, create_model_and_transforms

Everything else is the library's own. The loss of bfloat16 and float16 tensors is float32.
"""

from ..library import handed_through, require

_library = require("open_clip", "open-clip-torch", "3.0", "open-clip")

from . import factory, loss  # noqa: E402 they import the library
from .factory import create_loss  # noqa: E402
from .loss import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss  # noqa: E402

__all__ = ["ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss", "create_loss", "factory", "loss"]
__getattr__, __dir__ = handed_through(_library, __all__)
