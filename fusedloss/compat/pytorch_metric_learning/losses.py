"""pytorch_metric_learning.losses with the losses of fusedloss under their names; the others are the library's own."""

from pytorch_metric_learning import losses as _library

from ..library import handed_through
from .class_losses import (
    ArcFaceLoss,
    CosFaceLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SubCenterArcFaceLoss,
)
from .memory import CrossBatchMemory
from .neighbour_losses import NCALoss, SmoothAPLoss
from .pair_losses import (
    CircleLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
)
from .triplet_losses import MarginLoss, TripletMarginLoss

__all__ = [
    "ArcFaceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "GeneralizedLiftedStructureLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SmoothAPLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
__getattr__, __dir__ = handed_through(_library, __all__)
