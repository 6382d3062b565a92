"""The page about pytorch-metric-learning: its code runs, and our own functions with its arguments are its losses."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

import fusedloss as f
from bench import files
from tests.libraries import library

library("pytorch_metric_learning", "pytorch-metric-learning")

from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

PAGE = files.ROOT / "docs" / "from_pytorch_metric_learning.md"
N, D, C = 24, 9, 5


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, LABELS = normal(N, D), normal(N, D, seed=1), torch.arange(N) % C
U, ROWS = F.normalize(X), normal(C, D, seed=2)  # ROWS: of classes
FOURS = torch.arange(4).repeat_interleave(4)
COSINE = distances.CosineSimilarity()


def mined(loss, miner):
    return loss(X, LABELS, miner(X, LABELS))


def of_classes(loss, rows=ROWS):
    """A loss of theirs with these rows of classes."""
    own = loss.proxies if hasattr(loss, "proxies") else loss.W
    own.data = rows if hasattr(loss, "proxies") else rows.t()
    return loss(X, LABELS)


NATIVE = {
    "ContrastiveLoss": (
        lambda: losses.ContrastiveLoss(pos_margin=0.1, neg_margin=1.2)(X, LABELS),
        lambda: f.pairwise_contrastive_loss(
            U, LABELS, pos_margin=0.1, neg_margin=1.2, power=1, reduction="active"
        ),
    ),
    "ContrastiveLoss of cosines": (
        lambda: losses.ContrastiveLoss(pos_margin=0.9, neg_margin=0.1, distance=COSINE)(X, LABELS),
        lambda: f.pairwise_contrastive_loss(
            X, LABELS, pos_margin=1 - 0.9, neg_margin=1 - 0.1, metric="cosine", power=1, reduction="active"
        ),
    ),
    "TripletMarginLoss": (
        lambda: losses.TripletMarginLoss()(X, LABELS),
        lambda: f.batch_all_triplet_loss(U, LABELS, margin=0.05, reduction="active"),
    ),
    "TripletMarginLoss, smooth": (
        lambda: losses.TripletMarginLoss(smooth_loss=True, reducer=reducers.MeanReducer())(X, LABELS),
        lambda: f.batch_all_triplet_loss(U, LABELS, margin=0.05, soft_margin=True),
    ),
    "BatchHardMiner": (
        lambda: mined(losses.TripletMarginLoss(), miners.BatchHardMiner()),
        lambda: f.batch_hard_triplet_loss(U, LABELS, margin=0.05, reduction="active"),
    ),
    "BatchEasyHardMiner": (
        lambda: mined(losses.TripletMarginLoss(), miners.BatchEasyHardMiner("easy", "semihard")),
        lambda: f.batch_hard_triplet_loss(
            U, LABELS, margin=0.05, positives="easiest", negatives="semihard", reduction="active"
        ),
    ),
    "TripletMarginMiner": (
        lambda: mined(losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(0.2, "semihard")),
        lambda: f.batch_all_triplet_loss(U, LABELS, margin=0.2, triplets="semihard", reduction="active"),
    ),
    "NTXentLoss": (
        lambda: losses.NTXentLoss()(X, LABELS),
        lambda: f.pairwise_nt_xent_loss(X, LABELS, temperature=0.07),
    ),
    "SupConLoss": (
        lambda: losses.SupConLoss()(X, LABELS),
        lambda: f.supcon_loss(X, LABELS, temperature=0.1),
    ),
    "MultiSimilarityLoss": (
        lambda: losses.MultiSimilarityLoss()(X, LABELS),
        lambda: f.multi_similarity_loss(X, LABELS),
    ),
    "CircleLoss": (
        lambda: losses.CircleLoss()(X, LABELS),
        lambda: f.circle_loss(X, LABELS),
    ),
    "LiftedStructureLoss": (
        lambda: losses.LiftedStructureLoss()(X, LABELS),
        lambda: f.lifted_structure_loss(X, LABELS),
    ),
    "GeneralizedLiftedStructureLoss": (
        lambda: losses.GeneralizedLiftedStructureLoss()(X, LABELS),
        lambda: f.generalized_lifted_structure_loss(X, LABELS),
    ),
    "NCALoss": (
        lambda: losses.NCALoss(softmax_scale=4)(X, LABELS),
        lambda: f.nca_loss(U, LABELS, temperature=1 / 4),
    ),
    "ArcFaceLoss": (
        lambda: of_classes(losses.ArcFaceLoss(C, D)),
        lambda: f.arcface_loss(X, ROWS, LABELS, margin=math.radians(28.6), scale=64),
    ),
    "SubCenterArcFaceLoss": (
        lambda: of_classes(
            losses.SubCenterArcFaceLoss(num_classes=C, embedding_size=D, sub_centers=2), normal(2 * C, D, seed=3)
        ),
        lambda: f.arcface_loss(
            X, normal(2 * C, D, seed=3).unflatten(0, (-1, 2)), LABELS, margin=math.radians(28.6), scale=64,
            sub_centers=2,
        ),
    ),
    "CosFaceLoss": (
        lambda: of_classes(losses.CosFaceLoss(C, D)),
        lambda: f.cosface_loss(X, ROWS, LABELS, margin=0.35, scale=64),
    ),
    "NormalizedSoftmaxLoss": (
        lambda: of_classes(losses.NormalizedSoftmaxLoss(C, D)),
        lambda: f.normalized_softmax_loss(X, ROWS, LABELS, temperature=0.05),
    ),
    "ProxyAnchorLoss": (
        lambda: of_classes(losses.ProxyAnchorLoss(C, D)),
        lambda: f.proxy_anchor_loss(X, ROWS, LABELS, margin=0.1, alpha=32),
    ),
    "ProxyNCALoss": (
        lambda: of_classes(losses.ProxyNCALoss(C, D, softmax_scale=3)),
        lambda: f.proxy_nca_loss(X, ROWS, LABELS, scale=3),
    ),
    "SmoothAPLoss": (
        lambda: losses.SmoothAPLoss()(X[:16], FOURS),
        lambda: f.smooth_ap_loss(X[:16], FOURS, X[:16], FOURS, temperature=0.01),
    ),
    "SelfSupervisedLoss(NTXentLoss)": (
        lambda: losses.SelfSupervisedLoss(losses.NTXentLoss(0.5))(X, Y),
        lambda: f.nt_xent_loss(X, Y, temperature=0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_our_own_function_is_the_loss(name):
    want, found = (make().detach() for make in NATIVE[name])
    torch.testing.assert_close(found.to(want.dtype), want)  # which is float32 of the library's SmoothAPLoss


def test_a_memory_bank_is_a_cross_batch_memory():
    theirs = losses.CrossBatchMemory(losses.SupConLoss(), D, memory_size=3 * N)
    ours = f.MemoryBank(f.SupConLoss(temperature=0.1), size=2 * N, dim=D, dtype=torch.float64)
    for seed in range(5):
        x = normal(N, D, seed=seed)
        torch.testing.assert_close(ours(x, LABELS), theirs(x, LABELS))


def test_the_page_has_every_row():
    text = PAGE.read_text()
    missing = [name for name in NATIVE if f"`{re.split(r'[ ,(]', name)[0]}" not in text]
    assert not missing
