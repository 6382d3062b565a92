"""Every loss in a few lines of dense PyTorch: the specification, and the oracle of the tests.

Memory is O(N M). Arguments, defaults and formulas are those of the functions of the same name in `fusedloss`; only
`overwrite_logits` has no effect here. A file has the same losses as the file of that name in `fusedloss.losses`.
"""

from .centers import center_loss, island_loss
from .classes import (
    arcface_loss,
    cosface_loss,
    linear_cross_entropy_loss,
    normalized_softmax_loss,
)
from .common import pairwise_distance, row_distance
from .logits import binary_cross_entropy_loss, cross_entropy_loss, focal_loss, sigmoid_focal_loss
from .pairs import (
    contrastive_loss,
    cosent_loss,
    cosine_embedding_loss,
    cosine_similarity_loss,
    euclidean_distance_loss,
    margin_loss,
    pairwise_contrastive_loss,
)
from .proxies import proxy_anchor_loss, proxy_nca_loss
from .ranking import recall_at_k_loss, smooth_ap_loss
from .softmax import decoupled_contrastive_loss, nca_loss, nt_xent_loss, pairwise_nt_xent_loss, supcon_loss
from .structured import circle_loss, generalized_lifted_structure_loss, lifted_structure_loss, multi_similarity_loss
from .towers import clip_loss, info_nce_loss, n_pair_loss, siglip_loss
from .triplets import (
    HardestPairs,
    batch_all_triplet_loss,
    batch_hard_triplet_loss,
    batch_semihard_triplet_loss,
    hardest_pairs,
    triplet_margin_loss,
)

__all__ = [
    "HardestPairs",
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
    "pairwise_distance",
    "pairwise_nt_xent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "recall_at_k_loss",
    "row_distance",
    "siglip_loss",
    "sigmoid_focal_loss",
    "smooth_ap_loss",
    "supcon_loss",
    "triplet_margin_loss",
]
