"""Losses of a batch by its labels: exact as eager over a covering grid, and mining equal to brute force."""

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from fusedloss import reference
from tests.compare import check
from tests.grid import (
    IGNORED,
    METRICS,
    PLANS,
    REFS,
    batch,
    cases,
    ignoring,
    in_full,
    middle,
    references,
    running,
    shapes,
)

# Primes: ragged in rows, columns and dimensions for tiles of any size. D below, above and not a multiple of a chunk.
SHAPES = shapes((23, 37, 37), (11, 41, 3), (41, 5, 1), (17, 13, 101))
ENGINE = dict(metric=METRICS, shape=SHAPES, refs=REFS, ignored=IGNORED)

WEIGHTS = 2  # the weights of the gradient product are rounded as its result is; 1.6 roundings measured


def in_batch(case):
    """Inputs of a case, a distance that half of the pairs exceed, and which inputs are constants."""
    N, M, D = case["shape"]
    D = 3 if case["metric"] == "cosine" and D == 1 else D  # in one dimension the gradient of a cosine is 0
    (x, labels), (y, ref_labels) = batch(N, D), batch(M, D, seed=1)
    arguments = dict(embeddings=x, labels=labels, metric=case["metric"])
    arguments = ignoring(case["ignored"], arguments | references(case["refs"], x, labels, y, ref_labels))
    margin = middle(reference.pairwise_distance(x, y, case["metric"]))
    return arguments, margin, ["ref_embeddings"] if case["refs"] == "constant" else []


@cases(
    ENGINE
    | dict(reduction=("mean", "sum", "none", "active"), power=(2, 1), margins=("zero", "both", "tensors", "mixed")),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_pairwise_contrastive_is_as_exact_as_eager(backend, case):
    arguments, margin, constant = in_batch(case)
    low, high = torch.tensor(margin / 2), torch.tensor(margin)
    margins = {"zero": (0.0, margin), "both": (margin / 2, margin), "tensors": (low, high), "mixed": (0.0, high)}
    pos_margin, neg_margin = margins[case["margins"]]
    arguments |= dict(pos_margin=pos_margin, neg_margin=neg_margin, power=case["power"], reduction=case["reduction"])
    with running(backend, case["plan"]) as device:
        check(
            fusedloss.pairwise_contrastive_loss, arguments, case["dtype"], device, constant=constant, roundings=WEIGHTS
        )


@cases(
    ENGINE
    | dict(
        reduction=("mean", "sum", "none", "active"),
        positives=("hardest", "easiest"),
        negatives=("hardest", "easiest", "semihard"),
        margin=("number", "tensor", None),
        soft_margin=(False, True),
    ),
    blocked=3,
    triton=2,
    plans=("default", "small", "held", "split", "sorted", "sorted split"),
)
def test_batch_hard_is_as_exact_as_eager(backend, case):
    arguments, margin, constant = in_batch(case)
    margin *= 4 if case["negatives"] == "easiest" else 1  # some terms are active in every case
    arguments |= {name: case[name] for name in ("reduction", "positives", "negatives", "soft_margin")}
    if case["margin"] is not None or not case["soft_margin"]:
        arguments |= dict(margin=torch.tensor(margin) if case["margin"] == "tensor" else margin)
    with running(backend, case["plan"]) as device:
        check(fusedloss.batch_hard_triplet_loss, arguments, case["dtype"], device, constant=constant)


ONE_PAIR_EACH = [
    (fusedloss.batch_hard_triplet_loss, {}),
    (fusedloss.batch_semihard_triplet_loss, {}),
    (fusedloss.generalized_lifted_structure_loss, dict(normalize=False)),
    (fusedloss.lifted_structure_loss, dict(normalize=False)),
]


@pytest.mark.parametrize(("loss", "options"), ONE_PAIR_EACH)
def test_the_mean_over_active_terms_counts_those_above_zero(backend, device, loss, options):
    """Two rows per class, so that an anchor has one term: some terms cost something, and those of far rows nothing."""
    x = torch.tensor([[0.0], [2.0], [1.5], [1.9], [40.0], [40.1], [80.0], [80.1]], device=device)
    labels = torch.arange(8, device=device) // 2
    terms = loss(x, labels, **options, reduction="none")
    assert (terms[:4] > 0).any() and not terms[4:].any()
    found = loss(x, labels, **options, reduction="active")
    torch.testing.assert_close(found, terms.sum() / (terms > 0).sum())
    leaf = x[4:].clone().requires_grad_()
    nothing = loss(leaf, labels[4:], **options, reduction="active")
    nothing.backward()
    assert nothing == 0 and not leaf.grad.any()


def test_of_soft_margins_all_terms_are_active(backend, device):
    x, labels = (t.to(device) for t in batch(23, 5))
    for loss in (fusedloss.batch_hard_triplet_loss, fusedloss.batch_all_triplet_loss):
        found = [loss(x.float(), labels, soft_margin=True, reduction=reduction) for reduction in ("active", "mean")]
        torch.testing.assert_close(*found)


@cases(
    ENGINE
    | dict(
        reduction=("mean", "sum", "none", "active"), beta=("number", "tensor", "of labels"), margin=(0.0, 0.2, "tensor")
    ),
    blocked=3,
    triton=2,
    plans=("default", "small", "held", "split", "sorted", "sorted split"),
)
def test_margin_is_as_exact_as_eager(backend, case):
    arguments, boundary, constant = in_batch(case)
    classes = torch.linspace(0.9, 1.1, 6)
    betas = {"number": boundary, "tensor": torch.tensor(boundary), "of labels": boundary * classes}
    margin = torch.tensor(0.1) if case["margin"] == "tensor" else case["margin"]
    arguments |= dict(beta=betas[case["beta"]].double() if case["beta"] == "of labels" else betas[case["beta"]])
    arguments |= dict(margin=margin, reduction=case["reduction"])
    # With boundaries of labels the gradient of a batch alone is the sum of two, each rounded.
    roundings = 2 * WEIGHTS if case["beta"] == "of labels" else WEIGHTS
    with running(backend, case["plan"]) as device:
        check(fusedloss.margin_loss, arguments, case["dtype"], device, constant=constant, roundings=roundings)


# The tiles as they ship, for rows wider than the D they hold on chip.
@pytest.mark.parametrize(
    ("D", "dtype"),
    [
        (384, torch.float32),
        (768, torch.float16),
        (1024, torch.bfloat16),
        *in_full((512, torch.bfloat16), (2048, torch.float16)),
    ],
)
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (fusedloss.pairwise_contrastive_loss, dict(neg_margin=1.5)),
        (fusedloss.batch_hard_triplet_loss, dict(margin=1.0)),
    ],
)
@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_wide_rows_are_as_exact_as_eager(backend, loss, options, D, dtype):
    (x, labels), (y, ref_labels) = batch(5, D, classes=2), batch(3, D, classes=2, seed=1)
    arguments = dict(embeddings=x, labels=labels, ref_embeddings=y, ref_labels=ref_labels, **options)
    with running(backend, "default") as device:
        check(loss, arguments, dtype, device, roundings=WEIGHTS)


@pytest.mark.parametrize(
    ("loss", "options", "M"),
    [
        (fusedloss.pairwise_contrastive_loss, dict(neg_margin=2.0), 1000),
        (fusedloss.supcon_loss, dict(temperature=1.0), 1000),
        (fusedloss.batch_all_triplet_loss, dict(margin=0.5), 60),
    ],
)
@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_gradients_of_float16_rows_are_as_exact_where_a_pairs_share_is_below_float16(backend, loss, options, M):
    """Small gradients, as of a mean over many rows: as exact as if the loss were scaled, except for their storage."""
    (x, labels), (y, ref_labels) = batch(4, 16, classes=2), batch(M, 16, classes=2, seed=1)
    small, least = 2.0**-12, 2.0**-24  # the least number of float16
    found = []
    with running(backend, "default") as device:
        others = [t.to(device) for t in (labels, y.half(), ref_labels)]
        for factor in (1.0, small):
            leaf = x.half().to(device).requires_grad_()
            loss(leaf, *others, **options).backward(torch.tensor(factor, device=device))
            found.append(leaf.grad.float())
    assert found[0].abs().max() * small < 2**-10
    assert ((found[1] / small - found[0]).abs() <= least / small / 2 + found[0].abs() * 2**-10).all()


# sum_j w_ij y_j and x_i sum_j w_ij cancel where y_j is near x_i, while w grows as 1 / d.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("apart", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_gradients_of_near_duplicates_are_as_exact_as_eager(backend, device, metric, apart, dtype):
    x, _ = batch(12, 32)
    x = torch.cat([x, x + apart * batch(12, 32, seed=1)[0]])
    arguments = dict(embeddings=x, labels=torch.arange(24), metric=metric, neg_margin=2.0)
    # A distance of 0 comes out as the root of its rounding error. On tensor cores three tf32 products make one of fp32
    # rows, with an error of 2^-20; on an H200 that was 2.2 times the error of eager PyTorch.
    factor = 3.0 if device == "cuda" and dtype == torch.float32 and apart == 0 else 1.5
    check(fusedloss.pairwise_contrastive_loss, arguments, dtype, device, closer=False, factor=factor)


def brute_force(x, labels, y, ref_labels, metric, positives, negatives, offset):
    """(positive, negative) of every anchor by brute force, the lowest index on ties; None where there is none."""
    p = 1.0 if metric == "manhattan" else 2.0
    d = torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")
    d = (1 - F.cosine_similarity(x[:, None], y[None], dim=-1) if metric == "cosine" else d).round(decimals=9).tolist()
    found = []
    for i, row in enumerate(d):
        same = [j for j in range(len(row)) if ref_labels[j] == labels[i] and (offset is None or j != i + offset)]
        other = [j for j in range(len(row)) if ref_labels[j] != labels[i]]
        positive = (max if positives == "hardest" else min)(same, key=row.__getitem__, default=-1)
        if negatives == "semihard":
            other = [j for j in other if positive >= 0 and row[j] > row[positive]]
        found.append((positive, (max if negatives == "easiest" else min)(other, key=row.__getitem__, default=-1)))
    return torch.tensor(found).T


def distinct_points(N, metric, seed):
    return batch(N, 7, seed=seed)


def tied_points(N, metric, seed):
    """Few different distances, all exact in float32: whole numbers, or cosines of unit vectors along the axes."""
    x, labels = batch(N, 3, classes=3, seed=seed)
    return (F.one_hot(x.abs().argmax(1), 3) * x.sign() if metric == "cosine" else (2 * x).round()), labels


@cases(
    dict(
        metric=METRICS,
        refs=("self", "refs", "first", "among"),
        positives=("hardest", "easiest"),
        negatives=("hardest", "easiest", "semihard"),
        points=(distinct_points, tied_points),
    ),
    blocked=3,
    triton=2,
    plans=("small", "held", "split"),
)
def test_mined_indices_equal_brute_force_and_ties_go_to_the_lowest(backend, case):
    options = {name: case[name] for name in ("metric", "positives", "negatives")}
    x, labels = case["points"](37 if case["refs"] == "self" else 19, case["metric"], 0)
    y, ref_labels = (x, labels) if case["refs"] == "self" else case["points"](67, case["metric"], 1)
    x, y = (t.to(case["dtype"]) for t in (x, y))
    refs = references(case["refs"], x, labels, y, ref_labels)
    with running(backend, case["plan"]) as device:
        tensors = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in refs.items()}
        found = fusedloss.hardest_pairs(x.to(device), labels.to(device), **options, **tensors)
    x, y = x.double(), refs.get("ref_embeddings", x).double()
    offset = 0 if case["refs"] == "self" else refs.get("ref_offset")
    want = brute_force(x, labels, y, refs.get("ref_labels", labels), **options, offset=offset)
    assert torch.equal(torch.stack([found.positive_index, found.negative_index]).cpu(), want)
    for index, distance in zip(want, (found.positive_distance, found.negative_distance), strict=True):
        exact = reference.row_distance(x, y[index.clamp(min=0)], case["metric"]).where(index >= 0, torch.nan)
        torch.testing.assert_close(distance.cpu().double(), exact, equal_nan=True, rtol=1e-6, atol=1e-6)
