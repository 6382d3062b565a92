r"""Metric-learning losses fused into Triton tiles: the N x M score matrix never exists.

Layers, each importing only to its right:

    losses/  modules  ->  ops  ->  launch (Triton)  ->  kernels
                              \->  blocked (PyTorch, any device, float64)
    reference: every loss in dense PyTorch, the specification
"""

from . import reference
from .losses.pairs import (
    contrastive_loss,
    cosine_embedding_loss,
    cosine_similarity_loss,
    euclidean_distance_loss,
    pairwise_contrastive_loss,
)
from .losses.triplets import HardestPairs, batch_hard_triplet_loss, hardest_pairs, triplet_margin_loss
from .modules import (
    BatchHardTripletLoss,
    ContrastiveLoss,
    CosineEmbeddingLoss,
    CosineSimilarityLoss,
    EuclideanDistanceLoss,
    PairwiseContrastiveLoss,
    TripletMarginLoss,
)
from .ops import set_backend, use_backend

__version__ = "0.1.0"

__all__ = [
    "BatchHardTripletLoss",
    "ContrastiveLoss",
    "CosineEmbeddingLoss",
    "CosineSimilarityLoss",
    "EuclideanDistanceLoss",
    "HardestPairs",
    "PairwiseContrastiveLoss",
    "TripletMarginLoss",
    "batch_hard_triplet_loss",
    "contrastive_loss",
    "cosine_embedding_loss",
    "cosine_similarity_loss",
    "euclidean_distance_loss",
    "hardest_pairs",
    "pairwise_contrastive_loss",
    "reference",
    "set_backend",
    "triplet_margin_loss",
    "use_backend",
]
