"""Parity with pytorch-metric-learning, the library most people come from, and with torch and open_clip's formulas."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from tests.compare import check
from tests.grid import FULL, batch

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


REDUCERS = {"mean": reducers.MeanReducer, "active": reducers.AvgNonZeroReducer}


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("soft_margin", [False, True])
@pytest.mark.parametrize("reduction", REDUCERS)
def test_batch_hard_is_its_triplet_loss_of_the_batch_hard_miner(backend, device, metric, soft_margin, reduction):
    distance = DISTANCES[metric]()
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(
        margin=0.3, smooth_loss=soft_margin, distance=distance, reducer=REDUCERS[reduction]()
    )

    def theirs(embeddings, labels):
        return loss(embeddings, labels, miner(embeddings, labels))

    options = dict(margin=0.3, soft_margin=soft_margin, metric=metric, reduction=reduction)
    check(with_options(fusedloss.batch_hard_triplet_loss, **options), arguments(False), device=device, oracle=theirs)


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("reduction", REDUCERS)
def test_given_triplets_are_its_triplet_loss_of_their_indices(backend, device, metric, reduction):
    loss = losses.TripletMarginLoss(margin=0.1, distance=DISTANCES[metric](), reducer=REDUCERS[reduction]())

    def theirs(anchor, positive, negative):
        indices = torch.arange(3 * len(anchor), device=anchor.device).chunk(3)
        return loss(torch.cat([anchor, positive, negative]), indices_tuple=indices)

    given = {name: batch(37, 23, seed=seed)[0] for seed, name in enumerate(("anchor", "positive", "negative"))}
    ours = with_keywords(fusedloss.triplet_margin_loss, margin=0.1, metric=metric, eps=0.0, reduction=reduction)
    check(ours, given, device=device, oracle=theirs)


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


TRIPLETS = [(metric, soft) for metric in DISTANCES for soft in (False, True)]


@pytest.mark.parametrize(
    ("backend", "metric", "soft_margin"),
    [*(("blocked", *of) for of in TRIPLETS), *(("triton", *of) for of in (TRIPLETS if FULL else TRIPLETS[:2]))],
)
def test_all_active_triplets_are_its_triplet_loss(backend, device, metric, soft_margin):
    distance = DISTANCES[metric]()
    theirs = losses.TripletMarginLoss(margin=0.3, smooth_loss=soft_margin, distance=distance, triplets_per_anchor="all")
    ours = with_options(
        fusedloss.batch_all_triplet_loss, margin=0.3, soft_margin=soft_margin, metric=metric, reduction="active"
    )
    check(ours, arguments(False), device=device, oracle=theirs)


KINDS = ("all", "hard", "semihard", "easy")


@pytest.mark.parametrize(
    ("backend", "kind"),
    [*(("blocked", kind) for kind in KINDS), *(("triton", kind) for kind in (KINDS if FULL else ("semihard",)))],
)
def test_triplets_of_a_kind_are_those_of_its_triplet_miner(backend, device, kind):
    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.TripletMarginMiner(margin=0.5, type_of_triplets=kind, distance=distance)
    loss = losses.TripletMarginLoss(margin=0.5, smooth_loss=True, distance=distance, reducer=reducers.MeanReducer())

    def theirs(embeddings, labels):
        return loss(embeddings, labels, miner(embeddings, labels))

    # its miner "all" finds the triplets that violate the margin
    kinds = dict(all=("hard", "semihard"), hard=("hard",), semihard=("semihard",), easy=("easy",))[kind]

    def ours(embeddings, labels):
        options = dict(margin=0.5, soft_margin=True)
        sums = [
            fusedloss.batch_all_triplet_loss(embeddings, labels, triplets=k, reduction="sum", **options) for k in kinds
        ]
        means = [fusedloss.batch_all_triplet_loss(embeddings, labels, triplets=k, **options) for k in kinds]
        return sum(sums) / sum((s / m).detach().round() for s, m in zip(sums, means, strict=True))

    check(ours, arguments(False), device=device, oracle=theirs)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_smooth_ap_among_references_that_are_the_batch_is_its_smooth_ap_loss(backend, device, temperature):
    """The library counts every anchor among its own positives, and needs classes of equal size, one after the other."""
    x, _ = batch(36, 23)
    labels = torch.arange(36) // 6

    def ours(embeddings, labels):
        return fusedloss.smooth_ap_loss(embeddings, labels, embeddings, labels, temperature=temperature)

    check(ours, dict(embeddings=x, labels=labels), device=device, oracle=losses.SmoothAPLoss(temperature))


def test_semihard_is_facenets_online_mining(backend, device):
    """The published TensorFlow form: for each (a, p) a masked minimum outside, or the maximum inside."""

    def theirs(embeddings, labels):
        d = (embeddings[:, None] - embeddings[None]).square().sum(2)
        other = labels[:, None] != labels[None]
        outside = other[:, None, :] & (d[:, None, :] > d[:, :, None])
        highest = d.max(1, keepdim=True).values
        negatives_outside = ((d - highest)[:, None, :] * outside).min(2).values + highest
        lowest = d.min(1, keepdim=True).values
        negatives_inside = ((d - lowest) * other).max(1, keepdim=True).values + lowest
        semi_hard = torch.where(outside.any(2), negatives_outside, negatives_inside)
        positives = (~other).to(d.dtype) - torch.eye(len(d), dtype=d.dtype, device=d.device)
        return F.relu((1.0 + d - semi_hard) * positives).sum() / positives.sum()

    given = arguments(True)
    given["labels"] = given["labels"] % 3  # every anchor has a negative
    check(with_options(fusedloss.batch_semihard_triplet_loss, margin=1.0), given, device=device, oracle=theirs)


BANKS = {
    "contrastive": (
        fusedloss.PairwiseContrastiveLoss(neg_margin=1.4, power=1, reduction="active"),
        lambda: losses.ContrastiveLoss(neg_margin=1.4, distance=DISTANCES["euclidean"]()),
    ),
    "all triplets": (
        fusedloss.BatchAllTripletLoss(margin=0.3, reduction="active"),
        lambda: losses.TripletMarginLoss(margin=0.3, distance=DISTANCES["euclidean"]()),
    ),
    "supcon": (fusedloss.SupConLoss(), lambda: losses.SupConLoss(temperature=0.1)),
    "multi-similarity": (fusedloss.MultiSimilarityLoss(), lambda: losses.MultiSimilarityLoss()),
}


@pytest.mark.parametrize("name", BANKS)
def test_a_memory_bank_is_its_cross_batch_memory(backend, device, name):
    N, D, steps = 12, 23, 4
    ours, theirs = BANKS[name]
    bank = fusedloss.MemoryBank(ours, 2 * N, D).to(device)
    memory = losses.CrossBatchMemory(theirs(), D, memory_size=3 * N)  # with the batch
    for step in range(steps):
        x, labels = batch(N, D, classes=3, seed=step)
        labels[-1] = 0
        leaf, exact = x.float().to(device).requires_grad_(), x.clone().requires_grad_()
        value, want = bank(leaf, labels.to(device)), memory(exact, labels)
        (value + want.to(value)).backward()
        torch.testing.assert_close(value.cpu().double(), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=1e-4, atol=1e-6)


ALL_PAIRS = {
    "supcon": (fusedloss.supcon_loss, lambda: losses.SupConLoss(temperature=0.1)),
    "multi-similarity": (fusedloss.multi_similarity_loss, lambda: losses.MultiSimilarityLoss()),
    "circle": (fusedloss.circle_loss, lambda: losses.CircleLoss()),
    "generalised lifted": (
        fusedloss.generalized_lifted_structure_loss,
        lambda: losses.GeneralizedLiftedStructureLoss(),
    ),
    "lifted": (fusedloss.lifted_structure_loss, lambda: losses.LiftedStructureLoss()),
    "pairwise nt-xent": (fusedloss.pairwise_nt_xent_loss, lambda: losses.NTXentLoss()),
    "pairwise nt-xent, 0.5": (
        partial(fusedloss.pairwise_nt_xent_loss, temperature=0.5),
        lambda: losses.NTXentLoss(temperature=0.5),
    ),
    "nca": (
        partial(fusedloss.nca_loss, temperature=0.25),
        lambda: losses.NCALoss(softmax_scale=4.0, distance=DISTANCES["sqeuclidean"]()),
    ),
    "nca, its default distance": (
        lambda x, labels, y=None, *refs: fusedloss.nca_loss(
            F.normalize(x), labels, None if y is None else F.normalize(y), *refs
        ),
        lambda: losses.NCALoss(),
    ),
}


@pytest.mark.parametrize("name", ALL_PAIRS)
def test_all_pairs_losses_are_its_own(backend, device, name):
    ours, theirs = ALL_PAIRS[name]
    check(with_options(ours), arguments(normalized=False), device=device, oracle=theirs(), roundings=1)


@pytest.mark.parametrize("name", [name for name in ALL_PAIRS if name != "lifted"])  # its ends of a reference differ
def test_all_pairs_losses_with_references_are_its_own(backend, device, name):
    ours, theirs = ALL_PAIRS[name]
    x, labels = batch(37, 23)
    y, ref_labels = batch(29, 23, seed=1)
    labels[-1] = 0  # its zero of an anchor without a positive is not counted, or is, by the reducer
    loss = theirs()

    def oracle(embeddings, refs):
        return loss(embeddings, labels, ref_emb=refs, ref_labels=ref_labels)

    def fused(embeddings, refs):
        return ours(embeddings, labels.to(device), refs, ref_labels.to(device))

    check(fused, dict(embeddings=x, refs=y), device=device, oracle=oracle)


@pytest.mark.parametrize("beta", [1.2, [1.3, 1.6]])
def test_margin_loss_with_as_many_positives_as_negatives_is_its_margin_loss(backend, device, beta):
    """The library counts a pair once per triplet: with m references of each of two classes, every pair m times."""
    m = 13
    x, y = batch(17, 23)[0], batch(2 * m, 23, seed=1)[0]
    labels, ref_labels = torch.arange(17) % 2, torch.arange(2 * m) % 2
    loss = losses.MarginLoss(learn_beta=True, num_classes=2, distance=DISTANCES["euclidean"]())
    del loss.beta  # a parameter of its own

    def theirs(embeddings, refs, beta):
        loss.beta = beta.reshape(-1)
        return loss(embeddings, labels, ref_emb=refs, ref_labels=ref_labels)

    def ours(embeddings, refs, beta):
        return fusedloss.margin_loss(embeddings, labels.to(device), refs, ref_labels.to(device), beta=beta)

    check(ours, dict(embeddings=x, refs=y, beta=torch.tensor(beta)), device=device, oracle=theirs)


def test_nt_xent_is_its_loss_of_two_views_a_class(backend, device):
    (z1, _), (z2, _) = batch(17, 23), batch(17, 23, seed=1)
    loss = losses.NTXentLoss(temperature=0.5)

    def theirs(z1, z2):
        return loss(torch.cat([z1, z2]), torch.arange(len(z1)).repeat(2))

    check(fusedloss.nt_xent_loss, dict(z1=z1, z2=z2), device=device, oracle=theirs)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_decoupled_contrastive_is_lightlys_formula(backend, device, sigma):
    """Parity with lightly's `DCLLoss`, and with `DCLWLoss` for sigma."""

    def one_way(x, y, temperature):
        own, across = x @ x.T, x @ y.T
        positive = across.diagonal()
        weight = 1 if sigma is None else 2 - len(x) * (positive / sigma).softmax(0).detach()
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        negatives = sum((s / temperature).masked_fill(itself, -torch.inf).logsumexp(1) for s in (own, across))
        return (negatives - weight * positive / temperature).mean()

    def theirs(z1, z2, temperature):
        x, y = F.normalize(z1), F.normalize(z2)
        return (one_way(x, y, temperature) + one_way(y, x, temperature)) / 2

    given = dict(z1=batch(17, 23)[0], z2=batch(17, 23, seed=1)[0], temperature=torch.tensor(0.1))
    check(with_keywords(fusedloss.decoupled_contrastive_loss, sigma=sigma), given, device=device, oracle=theirs)


def cross_entropy(logits, targets=None):
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) if targets is None else targets)


@pytest.mark.parametrize("offset", [0, 4])
def test_info_nce_is_cross_entropy_of_its_logits(backend, device, offset):
    (query, _), (key, _), (queue, _) = batch(17, 23), batch(17 + offset, 23, seed=1), batch(13, 23, seed=2)

    def theirs(query, key, negatives, temperature):
        keys = F.normalize(torch.cat([key, negatives]))
        rows = torch.arange(offset, offset + len(query), device=query.device)
        return cross_entropy(F.normalize(query) @ keys.T / temperature, rows)

    given = dict(query=query, key=key, negatives=queue, temperature=torch.tensor(0.2))
    check(with_keywords(fusedloss.info_nce_loss, offset=offset), given, device=device, oracle=theirs)


def test_moco_is_cross_entropy_of_one_positive_and_the_queue(backend, device):
    (query, _), (key, _), (queue, _) = batch(17, 23), batch(17, 23, seed=1), batch(29, 23, seed=2)

    def theirs(query, key, negatives):
        query, key, negatives = (F.normalize(t) for t in (query, key, negatives))
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], 1) / 0.07
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))

    ours = with_keywords(fusedloss.info_nce_loss, in_batch_negatives=False)
    given = dict(query=query, key=key, negatives=queue)
    check(ours, given, device=device, oracle=theirs, constant=["key", "negatives"])


def with_more(query, key):
    """What `info_nce_loss` takes besides, for rows of two towers."""
    share = torch.rand(len(key), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hard, _ = batch(3 * len(query), query.shape[1], seed=2)
    ids = torch.arange(len(query)) // 3
    return dict(key_bias=-share.log(), hard_negatives=hard.unflatten(0, (-1, 3)), ids=ids)


@pytest.mark.parametrize("extra", ["key_bias", "hard_negatives", "ids", "key_bias hard_negatives ids"])
def test_info_nce_with_more_is_cross_entropy_of_the_assembled_logits(backend, device, extra):
    (query, _), (key, _) = batch(17, 23), batch(17, 23, seed=1)

    def theirs(query, key, temperature, key_bias=0.0, hard_negatives=None, ids=None):
        query, rows = F.normalize(query), torch.arange(len(query), device=query.device)
        logits = query @ F.normalize(key).T / temperature + key_bias
        if ids is not None:
            logits = logits.masked_fill((ids[:, None] == ids) & (rows[:, None] != rows), -torch.inf)
        if hard_negatives is not None:
            hard = (F.normalize(hard_negatives, dim=2) @ query[:, :, None]).squeeze(2)
            logits = torch.cat([logits, hard / temperature], 1)
        return cross_entropy(logits)

    given = {name: t for name, t in with_more(query, key).items() if name in extra.split()}
    given |= dict(query=query, key=key, temperature=torch.tensor(0.2))
    check(fusedloss.info_nce_loss, given, device=device, oracle=theirs)


def open_clips_siglip(image, text, logit_scale, logit_bias, negative_only=False):
    logits = logit_scale * image @ text.T + logit_bias
    labels = -torch.ones_like(logits)
    if not negative_only:
        labels = 2 * torch.eye(len(image), dtype=image.dtype, device=image.device) + labels
    return -F.logsigmoid(labels * logits).sum() / len(image)


def test_clip_and_siglip_are_open_clips_formulas(backend, device):
    (image, _), (text, _) = batch(17, 23), batch(17, 23, seed=1)

    def clip(image, text, logit_scale):
        logits_per_image = logit_scale * image @ text.T
        logits_per_text = logit_scale * text @ image.T
        return (cross_entropy(logits_per_image) + cross_entropy(logits_per_text)) / 2

    given = dict(image=image, text=text, logit_scale=torch.tensor(10.0))
    check(fusedloss.clip_loss, given, device=device, oracle=clip)
    check(fusedloss.siglip_loss, given | dict(logit_bias=torch.tensor(-5.0)), device=device, oracle=open_clips_siglip)


@pytest.mark.parametrize("rank", [0, 1])
def test_clip_of_gathered_rows_is_open_clips_local_loss(backend, device, rank):
    """The loss of one of two ranks, each of which has half of the rows, and the texts and images of both."""
    (image, _), (text, _) = batch(18, 23), batch(18, 23, seed=1)
    offset = 9 * rank

    def theirs(image, text, logit_scale):
        rows = torch.arange(offset, offset + 9, device=image.device)
        logits_per_image, logits_per_text = (logit_scale * a[rows] @ b.T for a, b in ((image, text), (text, image)))
        return (cross_entropy(logits_per_image, rows) + cross_entropy(logits_per_text, rows)) / 2

    def ours(image, text, logit_scale):
        pairs = ((image, text), (text, image))
        ways = [fusedloss.clip_loss(a[offset:][:9], b, logit_scale, offset=offset) for a, b in pairs]
        return sum(ways) / 2

    check(ours, dict(image=image, text=text, logit_scale=torch.tensor(10.0)), device=device, oracle=theirs)


def test_siglip_of_the_texts_of_others_is_open_clips_negative_only(backend, device):
    """Every rank adds its losses with the own texts and with those of other ranks; the mean is the whole batch's."""
    (image, _), (text, _) = batch(18, 23), batch(18, 23, seed=1)
    given = dict(image=image, text=text, logit_scale=torch.tensor(10.0), logit_bias=torch.tensor(-5.0))

    def of_two_ranks(image, text, logit_scale, logit_bias):
        found = [
            fusedloss.siglip_loss(own, texts, logit_scale, logit_bias, offset=0 if rank == of else None)
            for rank, own in enumerate(image.chunk(2))
            for of, texts in enumerate(text.chunk(2))
        ]
        return sum(found) / 2

    negatives = with_keywords(fusedloss.siglip_loss, offset=None)
    check(negatives, given, device=device, oracle=partial(open_clips_siglip, negative_only=True))
    check(of_two_ranks, given, device=device, oracle=open_clips_siglip)


def test_n_pair_is_cross_entropy_of_dot_products(backend, device):
    (anchor, _), (positive, _) = batch(17, 23), batch(17, 23, seed=1)
    given = dict(anchor=2 * anchor, positive=2 * positive)
    check(
        fusedloss.n_pair_loss, given, device=device, oracle=lambda anchor, positive: cross_entropy(anchor @ positive.T)
    )


def with_keywords(loss, **options):
    return lambda **given: loss(**given, **options)


def their_classes(name, weight, **options):
    """One of their losses of classes as a function of the rows and ours."""
    loss = getattr(losses, name)(num_classes=11, embedding_size=23, **options)
    loss.cast_types = lambda *_: None  # it would copy the parameter
    delattr(loss, weight)

    def theirs(embeddings, rows, target):
        loss.__dict__[weight] = rows.flatten(0, -2).t() if weight == "W" else rows
        return loss(embeddings, target)

    return theirs


CLASSES = {
    "arcface": (fusedloss.arcface_loss, "ArcFaceLoss", "W", dict(margin=0.5), dict(margin=math.degrees(0.5))),
    "arcface, beyond pi": (fusedloss.arcface_loss, "ArcFaceLoss", "W", *2 * [dict(scale=3.0)]),
    "arcface, sub-centers": (
        fusedloss.arcface_loss,
        "SubCenterArcFaceLoss",
        "W",
        dict(sub_centers=3),
        dict(sub_centers=3, margin=math.degrees(0.5)),
    ),
    "cosface": (fusedloss.cosface_loss, "CosFaceLoss", "W", {}, {}),
    "normalized softmax": (
        fusedloss.normalized_softmax_loss,
        "NormalizedSoftmaxLoss",
        "W",
        *2 * [dict(temperature=0.2)],
    ),
    "proxy nca": (fusedloss.proxy_nca_loss, "ProxyNCALoss", "proxies", dict(scale=3.0), dict(softmax_scale=3.0)),
    "proxy anchor": (fusedloss.proxy_anchor_loss, "ProxyAnchorLoss", "proxies", {}, {}),
}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_losses_of_classes_are_its_losses(backend, device, name, few):
    """The library has margins in degrees and weights [D, C]; `few`: most classes have no row."""
    loss, their_name, weight, options, their_options = CLASSES[name]
    x, _ = batch(37, 23)
    if "beyond" in name:  # 0.5 radians beyond any angle to the own class
        options, their_options = options | dict(margin=2.5), their_options | dict(margin=math.degrees(2.5))
    theirs = their_classes(their_name, weight, **their_options)
    target = torch.arange(37) % (3 if few else 11)
    centers = options.get("sub_centers", 1)
    rows = batch(11 * centers, 23, seed=1)[0].unflatten(0, (11, centers))
    given = dict(embeddings=x, rows=rows if centers > 1 else rows.squeeze(1), target=target)

    def ours(embeddings, rows, target):
        return loss(embeddings, rows, target.to(embeddings.device), **options)

    check(ours, given, device=device, oracle=lambda embeddings, rows, target: theirs(embeddings, rows, target.cpu()))


def of_classes(**more):
    """Rows, those of classes, and each row's class."""
    return dict(embeddings=batch(37, 23)[0], weight=batch(11, 23, seed=1)[0], target=torch.arange(37) % 7, **more)


WEIGHTS = torch.linspace(0.5, 2.0, 11, dtype=torch.float64)
MARGIN_LOGITS = {
    "arcface": (fusedloss.arcface_loss, lambda cos, own: 64.0 * torch.cos(cos.acos() + 0.5 * own)),
    "cosface": (fusedloss.cosface_loss, lambda cos, own: 64.0 * (cos - 0.35 * own)),
    "normalized softmax": (fusedloss.normalized_softmax_loss, lambda cos, own: cos / 0.05),
}


def dense(logits, embeddings, weight, target, class_weight=None, label_smoothing=0.0):
    """torch's cross entropy of logits that are a function of the cosines and of which class is the own one."""
    cos = F.normalize(embeddings) @ F.normalize(weight).T
    own = F.one_hot(target, len(weight)).to(cos.dtype)
    return F.cross_entropy(logits(cos, own), target, weight=class_weight, label_smoothing=label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MARGIN_LOGITS)
def test_margin_softmax_is_torchs_cross_entropy_of_its_logits(backend, device, name, weighted, label_smoothing):
    loss, logits = MARGIN_LOGITS[name]
    given = of_classes(**dict(class_weight=WEIGHTS) if weighted else {})
    ours, theirs = (partial(f, label_smoothing=label_smoothing) for f in (loss, partial(dense, logits)))
    check(ours, given, device=device, oracle=theirs, constant=["class_weight"])


def test_arcface_with_a_margin_of_every_row_is_the_cosine_of_the_sums(backend, device):
    margin = torch.linspace(-0.4, 0.6, 37, dtype=torch.float64)

    def theirs(margin, **given):
        return dense(lambda cos, own: 64.0 * torch.cos(cos.acos() + margin[:, None] * own), **given)

    check(fusedloss.arcface_loss, of_classes(margin=margin), device=device, oracle=theirs)


def test_the_recipe_of_adaface_is_its_own_formula(backend, device):
    """AdaFace as in the docstring of `cosface_loss`; theirs: https://github.com/mk-minchul/AdaFace, head.py."""
    given = of_classes()
    given["embeddings"] = given["embeddings"] * torch.linspace(0.2, 3.0, 37, dtype=torch.float64)[:, None]

    def of_lengths(x):
        length = x.norm(dim=1).detach()
        return length, length.mean(), length.std()

    def theirs(embeddings, weight, target, m=0.4, h=0.333, s=64.0, eps=1e-3):
        norms, mean, std = of_lengths(embeddings)
        z = ((norms - mean) / (std + eps) * h).clip(-1, 1)[:, None]
        g_angle, g_add = -m * z, m + m * z

        def logits(cos, own):
            theta = cos.clamp(-1 + eps, 1 - eps).acos()
            return s * ((theta + g_angle * own).clip(eps, math.pi - eps).cos() - g_add * own)

        return dense(logits, embeddings, weight, target)

    def ours(embeddings, weight, target):
        x, (length, mean, std) = embeddings, of_lengths(embeddings)
        quality = ((length - mean) / (std + 1e-3) * 0.333).clamp(-1, 1)
        cos = F.cosine_similarity(x, weight[target])
        theta = cos.clamp(-1 + 1e-3, 1 - 1e-3).acos()
        own = (theta - 0.4 * quality).clamp(1e-3, torch.pi - 1e-3).cos() - (0.4 + 0.4 * quality)
        return fusedloss.cosface_loss(x, weight, target, margin=cos - own, scale=64.0)

    check(ours, given, device=device, oracle=theirs)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_linear_cross_entropy_is_torchs_of_its_logits(backend, device, softcap, z_loss, label_smoothing):
    given = of_classes(bias=batch(1, 11)[0][0], class_weight=WEIGHTS)
    given["embeddings"] = 10 * given["embeddings"]  # logits beyond the cap

    def theirs(embeddings, weight, target, bias, class_weight):
        logits = F.linear(embeddings, weight, bias)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        loss = F.cross_entropy(logits, target, weight=class_weight, label_smoothing=label_smoothing)
        return loss + z_loss * logits.logsumexp(1).square().mean()

    options = dict(softcap=softcap, z_loss=z_loss, label_smoothing=label_smoothing)
    ours = with_keywords(fusedloss.linear_cross_entropy_loss, **options)
    check(ours, given, device=device, oracle=theirs, constant=["class_weight"])
