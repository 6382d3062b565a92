"""Every public loss once more, as its contract says it: dense, in float64, one anchor, pair or triplet after the other.

These formulas share no code with fusedloss, not even with its dense reference, so that a misreading of the contract in
one shows as a difference from the other. They have the names, arguments and defaults of the public functions, check
nothing, and are differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import classes, logits, pairs, proxies, ranking, softmax, structured, towers, triplets

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    pairs.contrastive_loss,
    pairs.euclidean_distance_loss,
    pairs.cosine_similarity_loss,
    pairs.cosine_embedding_loss,
    pairs.cosent_loss,
    pairs.pairwise_contrastive_loss,
    pairs.margin_loss,
    triplets.triplet_margin_loss,
    triplets.batch_hard_triplet_loss,
    triplets.batch_semihard_triplet_loss,
    triplets.batch_all_triplet_loss,
    triplets.hardest_pairs,
    softmax.nt_xent_loss,
    softmax.decoupled_contrastive_loss,
    softmax.supcon_loss,
    softmax.pairwise_nt_xent_loss,
    softmax.nca_loss,
    towers.info_nce_loss,
    towers.clip_loss,
    towers.siglip_loss,
    towers.n_pair_loss,
    structured.multi_similarity_loss,
    structured.circle_loss,
    structured.generalized_lifted_structure_loss,
    structured.lifted_structure_loss,
    ranking.smooth_ap_loss,
    ranking.recall_at_k_loss,
    classes.linear_cross_entropy_loss,
    classes.arcface_loss,
    classes.cosface_loss,
    classes.normalized_softmax_loss,
    proxies.proxy_nca_loss,
    proxies.proxy_anchor_loss,
    proxies.center_loss,
    proxies.island_loss,
    logits.cross_entropy_loss,
    logits.focal_loss,
    logits.binary_cross_entropy_loss,
    logits.sigmoid_focal_loss,
)
FORMULAS: dict[str, Callable[..., Any]] = {function.__name__: function for function in _FUNCTIONS}
