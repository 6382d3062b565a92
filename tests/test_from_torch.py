"""Calls of torch's and torchvision's losses, written as they are for those, and what differs on purpose; the page."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedloss
from bench import files
from tests.libraries import library

PAGE = files.ROOT / "docs" / "from_torch.md"


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ROWS = [normal(7, 5, seed=seed) for seed in range(3)]
SIGNS = torch.arange(7) % 2 * 2 - 1
CLASSES, BITS = torch.arange(7) % 5, (normal(7, 5, seed=3) > 0).double()
WEIGHTS = torch.arange(1.0, 6.0, dtype=torch.float64)  # of classes
# Those by which there are gradients, and the others.
GIVEN = {"triplets": (ROWS, []), "pairs": (ROWS[:2], [SIGNS]), "classes": (ROWS[:1], [CLASSES]),
         "answers": (ROWS[:1], [BITS])}  # fmt: skip


def torchvision_focal(*given, **named):
    return library("torchvision", "open-clip").ops.sigmoid_focal_loss(*given, **named)


# Their function or module, ours, the tensors, and what follows them by place and by name.
FUNCTIONS = [
    (F.triplet_margin_loss, fusedloss.triplet_margin_loss, "triplets", (0.7,), {}),
    (F.triplet_margin_loss, fusedloss.triplet_margin_loss, "triplets", (0.7,), dict(swap=True, reduction="sum")),
    (F.cosine_embedding_loss, fusedloss.cosine_embedding_loss, "pairs", (0.3,), {}),
    (F.cross_entropy, fusedloss.cross_entropy_loss, "classes", (WEIGHTS,), {}),
    (F.cross_entropy, fusedloss.cross_entropy_loss, "classes", (WEIGHTS,), dict(ignore_index=1, reduction="none")),
    (F.cross_entropy, fusedloss.cross_entropy_loss, "answers", (WEIGHTS,), dict(label_smoothing=0.1)),
    (F.binary_cross_entropy_with_logits, fusedloss.binary_cross_entropy_loss, "answers", (WEIGHTS,), {}),
    (
        F.binary_cross_entropy_with_logits, fusedloss.binary_cross_entropy_loss, "answers", (WEIGHTS,),
        dict(pos_weight=WEIGHTS, reduction="sum"),
    ),
    (torchvision_focal, fusedloss.sigmoid_focal_loss, "answers", (0.4, 1.5, "mean"), {}),
    (torchvision_focal, fusedloss.sigmoid_focal_loss, "answers", (0.4, 1.5, "none"), {}),
]  # fmt: skip
MODULES = [
    (nn.TripletMarginLoss, fusedloss.TripletMarginLoss, "triplets", (0.7,), dict(eps=0.1)),
    (nn.CosineEmbeddingLoss, fusedloss.CosineEmbeddingLoss, "pairs", (0.3,), dict(reduction="sum")),
    (nn.CrossEntropyLoss, fusedloss.CrossEntropyLoss, "classes", (WEIGHTS,), dict(label_smoothing=0.1)),
    (nn.BCEWithLogitsLoss, fusedloss.BinaryCrossEntropyLoss, "answers", (WEIGHTS,), {}),
    (
        lambda *given: partial(torchvision_focal, alpha=given[0], gamma=given[1], reduction=given[2]),
        fusedloss.SigmoidFocalLoss, "answers", (0.4, 1.5, "mean"), {},
    ),
]  # fmt: skip


def value_and_gradients(loss, kind):
    leaves, constant = [t.clone().requires_grad_() for t in GIVEN[kind][0]], GIVEN[kind][1]
    value = loss(*leaves, *constant)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


@pytest.mark.parametrize(("theirs", "ours", "kind", "by_place", "named"), FUNCTIONS)
def test_a_call_by_place_is_that_of_torch(theirs, ours, kind, by_place, named):
    found, want = (value_and_gradients(lambda *t, f=f: f(*t, *by_place, **named), kind) for f in (ours, theirs))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(("theirs", "ours", "kind", "by_place", "named"), MODULES)
def test_a_module_built_by_place_is_that_of_torch(theirs, ours, kind, by_place, named):
    found, want = (value_and_gradients(make(*by_place, **named), kind) for make in (ours, theirs))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    ("call", "taken"),
    [
        (lambda: fusedloss.triplet_margin_loss(*ROWS, 1.0, 2), "anchor, positive, negative, margin"),
        (lambda: fusedloss.TripletMarginLoss(1.0, 2), "margin"),
        (lambda: fusedloss.TripletMarginLoss()(*ROWS, 1.0), "anchor, positive, negative"),
        (lambda: fusedloss.cosine_embedding_loss(*ROWS[:2], SIGNS, 0.0, None), "x1, x2, target, margin"),
        (lambda: fusedloss.cross_entropy_loss(ROWS[0], CLASSES, None, None), "logits, target, weight"),
        (lambda: fusedloss.BinaryCrossEntropyLoss(None, None), "weight"),
    ],
)
def test_what_else_torch_takes_by_place_is_an_error(call, taken):
    with pytest.raises(TypeError, match=rf": takes {taken} by place, got"):
        call()


# ------------------------------------------------------------------------------------------------- what differs


def gradient(loss, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


@pytest.mark.parametrize(
    ("theirs", "ours", "call"),
    [
        (F.triplet_margin_loss, fusedloss.triplet_margin_loss,
         lambda loss, p: loss(torch.zeros(1, 1), p, torch.tensor([[2.0]]), eps=0.0)),
        (F.cosine_embedding_loss, fusedloss.cosine_embedding_loss,
         lambda loss, x: loss(x, torch.tensor([[0.0, 1.0]]), torch.tensor([-1]))),
    ],
)  # fmt: skip
def test_at_the_kink_the_gradient_is_0_and_not_that_of_a_term_that_costs(theirs, ours, call):
    x = torch.tensor([[1.0]]) if ours is fusedloss.triplet_margin_loss else torch.tensor([[1.0, 0.0]])
    assert call(theirs, x) == call(ours, x) == 0
    assert gradient(partial(call, theirs), x).any() and not gradient(partial(call, ours), x).any()


def test_a_margin_of_0_is_one():
    with pytest.raises(ValueError, match="margin must be greater than 0"):
        F.triplet_margin_loss(*ROWS, 0.0)
    distances = [F.pairwise_distance(ROWS[0], other) for other in ROWS[1:]]
    want = F.relu(distances[0] - distances[1]).mean()
    torch.testing.assert_close(fusedloss.triplet_margin_loss(*ROWS, 0.0), want)
    with pytest.raises(ValueError, match=r"^margin must be finite and at least 0"):
        fusedloss.triplet_margin_loss(*ROWS, -0.5)


@pytest.mark.parametrize(("target", "cost"), [(0.0, 1.0), (0.5, 0.5), (2.0, None)])
def test_a_target_that_torch_counts_without_a_cost_has_one_or_is_an_error(target, cost):
    given = torch.ones(1, 2), torch.ones(1, 2), torch.tensor([target])
    assert F.cosine_embedding_loss(*given) == 0
    if cost is None:
        with pytest.raises(ValueError, match=r"^target must be from 0 to 1 .*, got 2.0 in row 0"):
            fusedloss.cosine_embedding_loss(*given)
    else:
        assert fusedloss.cosine_embedding_loss(*given).item() == pytest.approx(cost)


def test_the_cosine_of_very_short_rows_is_exact():
    x, similar = torch.full((1, 2), 3e-7), torch.ones(1)
    assert F.cosine_embedding_loss(x, x, similar) > 0.8
    assert fusedloss.cosine_embedding_loss(x, x, similar).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "given"),
    [
        (F.triplet_margin_loss, fusedloss.triplet_margin_loss, [torch.ones(0, 3)] * 3),
        (F.cosine_embedding_loss, fusedloss.cosine_embedding_loss, [torch.ones(0, 3)] * 2 + [torch.ones(0)]),
        (F.cross_entropy, fusedloss.cross_entropy_loss, [torch.ones(0, 3), torch.zeros(0, dtype=torch.int64)]),
        (F.cross_entropy, fusedloss.cross_entropy_loss, [torch.ones(2, 3), torch.tensor([-100, -100])]),
        (F.binary_cross_entropy_with_logits, fusedloss.binary_cross_entropy_loss, [torch.ones(0, 3)] * 2),
        (partial(torchvision_focal, reduction="mean"), fusedloss.sigmoid_focal_loss, [torch.ones(0, 3)] * 2),
    ],
)
def test_a_mean_over_nothing_is_0(theirs, ours, given):
    assert theirs(*given).isnan() and ours(*given) == 0


def test_an_ignored_row_has_no_gradient_whatever_it_holds():
    z, target = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), torch.tensor([0, -100])
    found, want = (gradient(lambda x, f=f: f(x, target), z) for f in (fusedloss.cross_entropy_loss, F.cross_entropy))
    torch.testing.assert_close(found[0], want[0])
    assert want[1].isnan().all() and not found[1].any()


def test_a_class_left_out_that_has_no_probability_costs_nothing():
    z, q = torch.tensor([[1.0, -torch.inf]]), torch.tensor([[1.0, 0.0]])
    assert F.cross_entropy(z, q).isnan() and fusedloss.cross_entropy_loss(z, q) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("theirs", "ours", "kind", "by_place", "named"), FUNCTIONS[::2])
def test_the_loss_of_16_bits_is_float32(theirs, ours, kind, by_place, named, dtype):
    trained, constant = ([t.to(dtype) if t.is_floating_point() else t for t in of] for of in GIVEN[kind])
    options = [v.to(dtype) if isinstance(v, torch.Tensor) else v for v in by_place]
    found, want = (f(*trained, *constant, *options, **named) for f in (ours, theirs))
    assert (found.dtype, want.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(found, want.float(), rtol=0.1, atol=0.1)


def test_a_focal_loss_with_gamma_below_1_has_a_gradient_where_the_answer_is_certain():
    z, yes = torch.tensor([20.0]), torch.ones(1)
    losses = torchvision_focal, fusedloss.sigmoid_focal_loss
    theirs, ours = (gradient(lambda x, f=f: f(x, yes, 0.25, 0.5, "mean"), z) for f in losses)
    share = torch.sigmoid(-z.double())  # 1 - p, near which the slope of alpha (1 - p)^gamma log p is this:
    assert theirs.isnan()
    torch.testing.assert_close(ours.double(), -0.25 * 1.5 * share**1.5, rtol=1e-5, atol=0)


def test_the_default_of_a_focal_loss_is_the_mean():
    given = GIVEN["answers"][0][0], BITS
    torch.testing.assert_close(fusedloss.sigmoid_focal_loss(*given), torchvision_focal(*given).mean())


@pytest.mark.parametrize("target", [torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 5])])
def test_classes_of_any_integer_dtype_and_one_out_of_range(target):
    z = torch.tensor([[1.0, 2.0]] * 2)
    with pytest.raises((RuntimeError, IndexError)):
        F.cross_entropy(z, target)
    if target.max() < 2:
        assert fusedloss.cross_entropy_loss(z, target) == fusedloss.cross_entropy_loss(z, target.long())
    else:
        with pytest.raises(ValueError, match=r"^target must be class indices from 0 to 1 .*, got 5"):
            fusedloss.cross_entropy_loss(z, target)


def test_answers_are_from_0_to_1_and_have_no_gradient():
    z = torch.ones(1)
    assert F.binary_cross_entropy_with_logits(z, torch.tensor([2.0])) < 0
    with pytest.raises(ValueError, match=r"^target must be from 0 to 1 everywhere"):
        fusedloss.binary_cross_entropy_loss(z, torch.tensor([2.0]))
    assert gradient(lambda t: F.binary_cross_entropy_with_logits(z, t), z)
    with pytest.raises(ValueError, match=r"^target must not require a gradient"):
        gradient(lambda t: fusedloss.binary_cross_entropy_loss(z, t), z)


# ----------------------------------------------------------------------------------------------- names and the page


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no such function")
def test_a_linear_cross_entropy_is_that_of_torch():
    x, weight, bias = ROWS[0], normal(5, 5, seed=4), normal(5, seed=5)
    want = F.linear_cross_entropy(x, weight, CLASSES, linear_bias=bias, weight=WEIGHTS, label_smoothing=0.1)
    found = fusedloss.linear_cross_entropy_loss(
        x, weight, CLASSES, bias=bias, class_weight=WEIGHTS, label_smoothing=0.1
    )
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    ("distance", "options"),
    [
        (nn.PairwiseDistance(), dict(metric="euclidean")),
        (nn.PairwiseDistance(p=1), dict(metric="manhattan")),
        (lambda x, y: 1 - F.cosine_similarity(x, y), dict(metric="cosine")),
        (lambda x, y: (x - y).square().sum(1), dict(metric="sqeuclidean", eps=0.0)),
    ],
)
def test_a_distance_function_is_a_metric(distance, options):
    want = F.triplet_margin_with_distance_loss(*ROWS, distance_function=distance, margin=0.7)
    torch.testing.assert_close(fusedloss.triplet_margin_loss(*ROWS, 0.7, **options), want)


def test_a_cosine_is_1_less_the_loss():
    found = 1 - fusedloss.cosine_similarity_loss(*ROWS[:2], reduction="none")
    torch.testing.assert_close(found, F.cosine_similarity(*ROWS[:2]))


def test_the_page_names_what_there_is():
    names = re.findall(r"`((?:F|nn|torchvision\.ops)\.\w+)`", PAGE.read_text())
    assert names
    for name in names:
        where, _, of = name.rpartition(".")
        if where == "torchvision.ops":
            assert hasattr(library("torchvision", "open-clip").ops, of)
        elif of != "linear_cross_entropy":
            assert hasattr(dict(F=F, nn=nn)[where], of)
