"""Losses of given pairs and triplets: exact as eager over a covering grid, equal to torch's, worked examples."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from fusedloss import reference
from tests.compare import check
from tests.grid import METRICS, batch, cases, middle, running

# N below and above a block of rows; D below, above and not a multiple of a chunk, and one dimension.
SHAPES = ((23, 37), (7, 3), (41, 1), (19, 101))
GRID = dict(shape=SHAPES, reduction=("mean", "sum", "none"))
KINDS = {
    "bool": lambda similar: similar > 0,
    "zero_one": lambda similar: similar,
    "signs": lambda similar: 2 * similar - 1,
    "float_signs": lambda similar: 2.0 * similar - 1,
    "similar_is_zero": lambda similar: 1 - similar,
}
MARGINS = ("number", "tensor")


def rows(case, names):
    """Rows of a case by the given names, and as its margin a distance that half of them exceed."""
    N, D = case["shape"]
    metric = case["metric"] if "metric" in case else "cosine" if "cosine" in case["loss"].__name__ else "euclidean"
    D = 3 if D == 1 and metric == "cosine" else D  # in one dimension the gradient of a cosine is 0
    arguments = {name: batch(N, D, seed=seed)[0] for seed, name in enumerate(names)}
    margin = middle(reference.row_distance(*list(arguments.values())[:2], metric))
    return arguments, torch.tensor(margin) if case["margin"] == "tensor" else margin


def pairs(case):
    arguments, margin = rows(case, ("x1", "x2"))
    N = len(arguments["x1"])
    target = KINDS[case["target"]](torch.arange(N) % 3 % 2)
    options = dict(target=target, similar=int(case["target"] != "similar_is_zero"), reduction=case["reduction"])
    return arguments | options, margin


@cases(GRID | dict(metric=METRICS, target=tuple(KINDS), margin=MARGINS), blocked=3, triton=2)
def test_contrastive_is_as_exact_as_eager(backend, case):
    arguments, margin = pairs(case)
    arguments |= dict(metric=case["metric"], margin=margin)
    with running(backend, case["plan"]) as device:
        check(fusedloss.contrastive_loss, arguments, case["dtype"], device)


@cases(
    GRID
    | dict(
        loss=(fusedloss.euclidean_distance_loss, fusedloss.cosine_similarity_loss, fusedloss.cosine_embedding_loss),
        target=tuple(KINDS),
        margin=MARGINS,
    ),
    blocked=2,
    triton=2,
)
def test_other_pair_losses_are_as_exact_as_eager(backend, case):
    arguments, margin = pairs(case)
    if case["loss"] is fusedloss.cosine_similarity_loss:
        if case["margin"] == "tensor":
            del arguments["target"]
    else:
        arguments["margin"] = 1 - margin if case["loss"] is fusedloss.cosine_embedding_loss else margin
    with running(backend, case["plan"]) as device:
        check(case["loss"], arguments, case["dtype"], device)


@cases(
    GRID | dict(metric=METRICS, swap=(False, True), margin=(*MARGINS, "soft"), eps=(1e-6, 0.0, 0.5)),
    blocked=3,
    triton=2,
)
def test_triplet_margin_is_as_exact_as_eager(backend, case):
    arguments, margin = rows(case, ("anchor", "positive", "negative"))
    arguments |= {name: case[name] for name in ("metric", "swap", "eps", "reduction")}
    arguments |= dict(margin=margin / 4, soft_margin=case["margin"] == "soft")
    with running(backend, case["plan"]) as device:
        check(fusedloss.triplet_margin_loss, arguments, case["dtype"], device)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize(("metric", "p"), [("euclidean", 2.0), ("manhattan", 1.0)])
def test_triplet_margin_equals_torch(backend, device, metric, p, eps, swap, reduction):
    arguments = {name: batch(23, 37, seed=seed)[0] for seed, name in enumerate(("anchor", "positive", "negative"))}
    options = dict(margin=0.7, swap=swap, eps=eps, reduction=reduction)
    loss = partial(fusedloss.triplet_margin_loss, metric=metric, **options)
    oracle = partial(F.triplet_margin_loss, p=p, **options)
    check(loss, arguments, device=device, oracle=oracle)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("margin", [0.0, 0.5, -0.5])
def test_cosine_embedding_equals_torch(backend, device, margin, reduction):
    arguments = dict(x1=batch(23, 37)[0], x2=batch(23, 37, seed=1)[0], target=torch.arange(23) % 2 * 2 - 1)
    options = dict(margin=margin, reduction=reduction)
    oracle = partial(F.cosine_embedding_loss, **options)

    def torch_loss(x1, x2, target):
        return oracle(x1, x2, target)

    check(partial(fusedloss.cosine_embedding_loss, **options), arguments, device=device, oracle=torch_loss)


def test_contrastive_equals_torch_pairwise_distance(backend, device):
    def torch_loss(x1, x2, target):
        d = torch.nn.PairwiseDistance(eps=0.0)(x1, x2)
        return torch.where(target == 1, d.square(), F.relu(1.3 - d).square()).mean() / 2

    arguments = dict(x1=batch(23, 37)[0], x2=batch(23, 37, seed=1)[0], target=torch.arange(23) % 2)
    check(partial(fusedloss.contrastive_loss, margin=1.3), arguments, device=device, oracle=torch_loss)


@pytest.mark.parametrize(
    ("loss", "x1", "x2", "target", "options", "value"),
    [
        (fusedloss.contrastive_loss, [0.0, 0.0], [1.0, 0.0], 0, dict(margin=2.0), 0.5),
        (fusedloss.contrastive_loss, [0.0, 0.0], [0.0, 3.0], 0, dict(margin=2.0), 0.0),
        (fusedloss.contrastive_loss, [0.0, 0.0], [2.0, 0.0], 1, dict(margin=2.0), 2.0),
        (fusedloss.cosine_embedding_loss, [1.0, 1.0], [2.0, 2.0], 1, {}, 0.0),
        (fusedloss.cosine_embedding_loss, [1.0, 1.0], [2.0, 2.0], -1, dict(margin=0.5), 0.5),
    ],
)
def test_worked_examples_hold(backend, device, loss, x1, x2, target, options, value):
    x1, x2, target = (torch.tensor([v], device=device) for v in (x1, x2, target))
    assert loss(x1, x2, target, **options).item() == pytest.approx(value, abs=1e-6)


def test_a_target_may_mix_both_kinds(backend, device):
    x1, x2 = torch.tensor([[1.0, 1.0]] * 2, device=device), torch.tensor([[2.0, 2.0]] * 2, device=device)
    target = torch.tensor([1, -1], device=device)
    terms = fusedloss.cosine_embedding_loss(x1, x2, target, margin=0.5, reduction="none")
    torch.testing.assert_close(terms.cpu(), torch.tensor([0.0, 0.5]), rtol=0, atol=1e-6)
