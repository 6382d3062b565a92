"""Parity with pytorch-metric-learning, the library most people come from."""

import pytest
import torch.nn.functional as F

import fusedloss
from tests.compare import check
from tests.grid import batch

pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances, losses, miners, reducers

DISTANCES = {
    "euclidean": lambda: distances.LpDistance(normalize_embeddings=False),
    "sqeuclidean": lambda: distances.LpDistance(normalize_embeddings=False, power=2),
    "manhattan": lambda: distances.LpDistance(normalize_embeddings=False, p=1),
}


def arguments(normalized):
    x, labels = batch(37, 23)
    return dict(embeddings=F.normalize(x) if normalized else x, labels=labels)


def with_options(loss, **options):
    return lambda embeddings, labels: loss(embeddings, labels, **options)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_active_linear_contrastive_is_its_contrastive_loss(backend, device, metric, normalized):
    theirs = losses.ContrastiveLoss(pos_margin=0.6, neg_margin=1.4, distance=DISTANCES[metric]())
    ours = with_options(
        fusedloss.pairwise_contrastive_loss, pos_margin=0.6, neg_margin=1.4, metric=metric, power=1, reduction="active"
    )
    check(ours, arguments(normalized), device=device, oracle=theirs)


def test_its_default_distance_is_ours_of_normalized_embeddings(backend, device):
    theirs = losses.ContrastiveLoss(neg_margin=1.4)

    def ours(embeddings, labels):
        options = dict(neg_margin=1.4, power=1, reduction="active")
        return fusedloss.pairwise_contrastive_loss(F.normalize(embeddings), labels, **options)

    check(ours, arguments(False), device=device, oracle=theirs)


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("soft_margin", [False, True])
def test_batch_hard_is_its_triplet_loss_of_the_batch_hard_miner(backend, device, metric, soft_margin):
    distance = DISTANCES[metric]()
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(
        margin=0 if soft_margin else 0.3, smooth_loss=soft_margin, distance=distance, reducer=reducers.MeanReducer()
    )

    def theirs(embeddings, labels):
        return loss(embeddings, labels, miner(embeddings, labels))

    ours = with_options(fusedloss.batch_hard_triplet_loss, margin=0.3, soft_margin=soft_margin, metric=metric)
    check(ours, arguments(False), device=device, oracle=theirs)


@pytest.mark.parametrize("positives", ["hardest", "easiest"])
@pytest.mark.parametrize("negatives", ["hardest", "easiest", "semihard"])
def test_easy_and_semihard_selection_is_its_batch_easy_hard_miner(backend, device, positives, negatives):
    names = dict(hardest="hard", easiest="easy", semihard="semihard")
    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchEasyHardMiner(pos_strategy=names[positives], neg_strategy=names[negatives], distance=distance)
    loss = losses.TripletMarginLoss(margin=4.0, distance=distance, reducer=reducers.MeanReducer())

    def theirs(embeddings, labels):
        return loss(embeddings, labels, miner(embeddings, labels))

    ours = with_options(fusedloss.batch_hard_triplet_loss, margin=4.0, positives=positives, negatives=negatives)
    check(ours, arguments(False), device=device, oracle=theirs)
