"""The losses of sentence-transformers; those named here are fused where that gives the same values.

Every class is a subclass of the library's class of the same name, takes the same constructor, and computes the same
from the model's embeddings. Other losses are the library's own, and wrappers such as `MatryoshkaLoss` take ours.

There are three differences. Distances, similarities and sums of 16-bit embeddings are float32; the library rounds some
of them to 16 bits. Rows shorter than 1e-8 have cosines as if they were that long; in the library the limit is mostly
1e-12. Euclidean distances in batches are exact; the library subtracts large squares, which loses small distances of
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
