r"""Metric-learning losses fused into Triton tiles: the N x M score matrix never exists.

Layers, each importing only to its right:

    memory_bank  losses/  modules  ->  ops  ->  launch (Triton)  ->  kernels
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
from .losses.softmax import (
    clip_loss,
    info_nce_loss,
    n_pair_loss,
    nt_xent_loss,
    siglip_loss,
    supcon_loss,
)
from .losses.structured import (
    circle_loss,
    generalized_lifted_structure_loss,
    lifted_structure_loss,
    multi_similarity_loss,
)
from .losses.triplets import (
    HardestPairs,
    batch_all_triplet_loss,
    batch_hard_triplet_loss,
    batch_semihard_triplet_loss,
    hardest_pairs,
    triplet_margin_loss,
)
from .memory_bank import MemoryBank
from .modules import (
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BatchSemihardTripletLoss,
    CircleLoss,
    ClipLoss,
    ContrastiveLoss,
    CosineEmbeddingLoss,
    CosineSimilarityLoss,
    EuclideanDistanceLoss,
    GeneralizedLiftedStructureLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NPairLoss,
    NTXentLoss,
    PairwiseContrastiveLoss,
    SigLipLoss,
    SupConLoss,
    TripletMarginLoss,
)
from .ops import set_backend, use_backend

__version__ = "0.1.0"

__all__ = [
    "BatchAllTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemihardTripletLoss",
    "CircleLoss",
    "ClipLoss",
    "ContrastiveLoss",
    "CosineEmbeddingLoss",
    "CosineSimilarityLoss",
    "EuclideanDistanceLoss",
    "GeneralizedLiftedStructureLoss",
    "HardestPairs",
    "InfoNCELoss",
    "LiftedStructureLoss",
    "MemoryBank",
    "MultiSimilarityLoss",
    "NPairLoss",
    "NTXentLoss",
    "PairwiseContrastiveLoss",
    "SigLipLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "batch_all_triplet_loss",
    "batch_hard_triplet_loss",
    "batch_semihard_triplet_loss",
    "circle_loss",
    "clip_loss",
    "contrastive_loss",
    "cosine_embedding_loss",
    "cosine_similarity_loss",
    "euclidean_distance_loss",
    "generalized_lifted_structure_loss",
    "hardest_pairs",
    "info_nce_loss",
    "lifted_structure_loss",
    "multi_similarity_loss",
    "n_pair_loss",
    "nt_xent_loss",
    "pairwise_contrastive_loss",
    "reference",
    "set_backend",
    "siglip_loss",
    "supcon_loss",
    "triplet_margin_loss",
    "use_backend",
]
