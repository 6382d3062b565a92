r"""Metric-learning losses fused into Triton tiles: the N x M score matrix never exists.

Layers, each of which imports only layers to its right:

    tools/  ->  memory_bank    ->  losses/  ->  ops/  ->  backends/  triton/   ->  kernels/ (device code)
                distributed/                                         blocked/  (PyTorch, any device, float64)
                modules
    Beside the layers, and without importing any:
    checks: arguments are checked where a call enters; options: rules for the options of a loss, and help with their
    names; groups: the processes that share a batch, and what they exchange; reference: every loss in dense PyTorch,
    which is the specification

A call of a loss checks its arguments (`checks`), puts what it needs into a record (`backends/request.py`), whose leaves
are the arguments of a `torch.autograd.Function` (`ops/registration.py`), and applies a closing formula to what the
backend returns (`losses/reduce.py`). Over a group of processes the record passes through `ops/shared.py`, which gives
the backend the columns of all processes, and the closing formula takes its sums over all processes.
"""

import os
from pathlib import Path

if (Path(__file__).parent / "kernels").is_file():
    raise ImportError(
        "fusedloss/kernels must be a link to ../kernels, but is a plain file: run `git config core.symlinks true` (on "
        "Windows with Developer Mode on) and check it out again with `git checkout -- fusedloss/kernels`"
    )

from . import reference
from .backends import set_backend, use_backend
from .losses.centers import center_loss, island_loss
from .losses.classes import (
    arcface_loss,
    cosface_loss,
    linear_cross_entropy_loss,
    normalized_softmax_loss,
)
from .losses.logits import (
    binary_cross_entropy_loss,
    cross_entropy_loss,
    focal_loss,
    sigmoid_focal_loss,
)
from .losses.margins import margin_loss, pairwise_contrastive_loss
from .losses.pairs import (
    contrastive_loss,
    cosent_loss,
    cosine_embedding_loss,
    cosine_similarity_loss,
    euclidean_distance_loss,
)
from .losses.proxies import proxy_anchor_loss, proxy_nca_loss
from .losses.ranking import recall_at_k_loss, smooth_ap_loss
from .losses.softmax import (
    decoupled_contrastive_loss,
    nca_loss,
    nt_xent_loss,
    pairwise_nt_xent_loss,
    supcon_loss,
)
from .losses.structured import (
    circle_loss,
    generalized_lifted_structure_loss,
    lifted_structure_loss,
    multi_similarity_loss,
)
from .losses.towers import (
    clip_loss,
    info_nce_loss,
    n_pair_loss,
    siglip_loss,
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
    ArcFaceLoss,
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BatchSemihardTripletLoss,
    BinaryCrossEntropyLoss,
    CenterLoss,
    CircleLoss,
    ClipLoss,
    ContrastiveLoss,
    CoSENTLoss,
    CosFaceLoss,
    CosineEmbeddingLoss,
    CosineSimilarityLoss,
    CrossEntropyLoss,
    DecoupledContrastiveLoss,
    EuclideanDistanceLoss,
    FocalLoss,
    GeneralizedLiftedStructureLoss,
    InfoNCELoss,
    IslandLoss,
    LiftedStructureLoss,
    LinearCrossEntropyLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NCALoss,
    NormalizedSoftmaxLoss,
    NPairLoss,
    NTXentLoss,
    PairwiseContrastiveLoss,
    PairwiseNTXentLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RecallAtKLoss,
    SigLipLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SupConLoss,
    TripletMarginLoss,
)

__version__ = "0.1.0"

__all__ = [
    "ArcFaceLoss",
    "BatchAllTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemihardTripletLoss",
    "BinaryCrossEntropyLoss",
    "CenterLoss",
    "CircleLoss",
    "ClipLoss",
    "CoSENTLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CosineEmbeddingLoss",
    "CosineSimilarityLoss",
    "CrossEntropyLoss",
    "DecoupledContrastiveLoss",
    "EuclideanDistanceLoss",
    "FocalLoss",
    "GeneralizedLiftedStructureLoss",
    "HardestPairs",
    "InfoNCELoss",
    "IslandLoss",
    "LiftedStructureLoss",
    "LinearCrossEntropyLoss",
    "MarginLoss",
    "MemoryBank",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "PairwiseContrastiveLoss",
    "PairwiseNTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RecallAtKLoss",
    "SigLipLoss",
    "SigmoidFocalLoss",
    "SmoothAPLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "arcface_loss",
    "batch_all_triplet_loss",
    "batch_hard_triplet_loss",
    "batch_semihard_triplet_loss",
    "binary_cross_entropy_loss",
    "center_loss",
    "circle_loss",
    "clip_loss",
    "contrastive_loss",
    "cosent_loss",
    "cosface_loss",
    "cosine_embedding_loss",
    "cosine_similarity_loss",
    "cross_entropy_loss",
    "decoupled_contrastive_loss",
    "euclidean_distance_loss",
    "focal_loss",
    "generalized_lifted_structure_loss",
    "hardest_pairs",
    "info_nce_loss",
    "island_loss",
    "lifted_structure_loss",
    "linear_cross_entropy_loss",
    "margin_loss",
    "multi_similarity_loss",
    "n_pair_loss",
    "nca_loss",
    "normalized_softmax_loss",
    "nt_xent_loss",
    "pairwise_contrastive_loss",
    "pairwise_nt_xent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "recall_at_k_loss",
    "reference",
    "set_backend",
    "siglip_loss",
    "sigmoid_focal_loss",
    "smooth_ap_loss",
    "supcon_loss",
    "triplet_margin_loss",
    "use_backend",
]

if os.environ.get("FUSEDLOSS_AUTOTUNE") == "1":  # fills a hook in the backends, which do not import tools
    from .tools import autotune

    autotune()
