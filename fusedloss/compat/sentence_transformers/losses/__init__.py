"""The losses of sentence-transformers; those named here are fused where that gives the same values.

Every class takes the constructor of the library's class of its name, is a subclass of it, and computes from the model's
embeddings what that one does. The others are the library's, and wrappers such as `MatryoshkaLoss` take these.

In all of them distances, similarities and sums of 16-bit embeddings are float32, where the library rounds some to 16
bits; rows shorter than 1e-8 have cosines as if they were that long, where the library has most down to 1e-12; and
euclidean distances of batches are exact, where the library subtracts large squares, which loses small distances of
float32 rows.
"""

from sentence_transformers.sentence_transformer import losses as _library

from ...library import handed_through
from .pairs import AnglELoss, ContrastiveLoss, CoSENTLoss, CosineSimilarityLoss, OnlineContrastiveLoss
from .ranking import (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    CachedMultipleNegativesSymmetricRankingLoss,
    GISTEmbedLoss,
    MegaBatchMarginLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from .triplets import (
    BatchAllTripletLoss,
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
    TripletLoss,
)

__all__ = [
    "AnglELoss",
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "CoSENTLoss",
    "ContrastiveLoss",
    "CosineSimilarityLoss",
    "GISTEmbedLoss",
    "MegaBatchMarginLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "OnlineContrastiveLoss",
    "TripletLoss",
]

__getattr__, __dir__ = handed_through(_library, __all__)
