"""pytorch_metric_learning.utils with `distributed` of fusedloss."""

from pytorch_metric_learning import utils as _library

from ...library import handed_through
from . import distributed

__all__ = ["distributed"]
__getattr__, __dir__ = handed_through(_library, __all__)
