"""lightly.loss with the losses of fusedloss under their names; the others are the library's own."""

from lightly import loss as _library

from ...library import handed_through
from .dcl_loss import DCLLoss, DCLWLoss
from .koleo_loss import KoLeoLoss
from .macl_loss import MACLLoss
from .negative_cosine_similarity import NegativeCosineSimilarity
from .ntx_ent_loss import NTXentLoss

__all__ = ["DCLLoss", "DCLWLoss", "KoLeoLoss", "MACLLoss", "NTXentLoss", "NegativeCosineSimilarity"]
__getattr__, __dir__ = handed_through(_library, __all__)
