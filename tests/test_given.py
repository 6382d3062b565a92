"""Losses of given pairs and triplets: exact as eager over a covering grid, equal to torch's, worked examples."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fusedloss
from bench.regimes import forms
from fusedloss import reference
from tests.compare import check, differentiate
from tests.grid import METRICS, batch, cases, middle, running, unreadable

# N below and above a block of rows; D below, above and not a multiple of a chunk, and one dimension.
SHAPES = ((23, 37), (7, 3), (41, 1), (19, 101))
GRID = dict(shape=SHAPES, reduction=("mean", "sum", "none", "active"))
KINDS = {
    "bool": lambda similar: similar > 0,
    "zero_one": lambda similar: similar,
    "signs": lambda similar: 2 * similar - 1,
    "float_signs": lambda similar: 2.0 * similar - 1,
    "similar_is_zero": lambda similar: 1 - similar,
    "graded": lambda similar: (similar + torch.arange(len(similar)) % 3) / 3,  # 0 and 1 are among them
    "graded_is_zero": lambda similar: (similar + torch.arange(len(similar)) % 3) / 3,
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
    options = dict(target=target, similar=int(not case["target"].endswith("is_zero")), reduction=case["reduction"])
    return arguments | options, margin


@cases(GRID | dict(metric=METRICS, target=tuple(KINDS), margin=MARGINS), blocked=3, triton=2)
def test_contrastive_is_as_exact_as_eager(backend, case):
    arguments, margin = pairs(case)
    arguments |= dict(metric=case["metric"], margin=margin)
    with running(backend, case["plan"]) as device:
        check(fusedloss.contrastive_loss, arguments, case["dtype"], device, constant=["target"])


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
        arguments["reduction"] = "sum" if case["reduction"] == "active" else case["reduction"]  # it is no hinge
        if case["margin"] == "tensor":
            del arguments["target"]
    else:
        arguments["margin"] = 1 - margin if case["loss"] is fusedloss.cosine_embedding_loss else margin
    with running(backend, case["plan"]) as device:
        check(case["loss"], arguments, case["dtype"], device, constant=["target"])


@cases(
    GRID
    | dict(
        metric=METRICS, swap=(False, True), margin=(*MARGINS, None), soft_margin=(False, True), eps=(1e-6, 0.0, 0.5)
    ),
    blocked=3,
    triton=2,
)
def test_triplet_margin_is_as_exact_as_eager(backend, case):
    arguments, margin = rows(case, ("anchor", "positive", "negative"))
    arguments |= {name: case[name] for name in ("metric", "swap", "eps", "reduction", "soft_margin")}
    if case["margin"] is not None:
        arguments["margin"] = margin / 4
    with running(backend, case["plan"]) as device:
        check(fusedloss.triplet_margin_loss, arguments, case["dtype"], device)


ORDERS = {
    "bool": lambda N: torch.arange(N) % 3 == 0,
    "integers": lambda N: torch.arange(N) * 7 % 5 - 2,
    "bytes": lambda N: (torch.arange(N) * 7 % 5).byte(),
    "graded": lambda N: torch.arange(N) * 7 % 5 / 4,
    "halves": lambda N: (torch.arange(N) * 7 % 5 / 4).half(),
    "distinct": lambda N: torch.arange(N) * 0.618 % 1,
    "infinite": lambda N: torch.tensor([-torch.inf, 0.0, torch.inf])[torch.arange(N) * 7 % 5 % 3],
    "one above": lambda N: torch.arange(N) == N // 2,
}


@cases(
    dict(shape=SHAPES, target=tuple(ORDERS), scale=("default", "number", "tensor")),
    blocked=3,
    triton=2,
)
def test_cosent_is_as_exact_as_eager(backend, case):
    N, D = case["shape"]
    arguments = {name: batch(N, max(D, 3), seed=seed)[0] for seed, name in enumerate(("x1", "x2"))}
    arguments["target"] = ORDERS[case["target"]](N)
    if case["scale"] != "default":
        arguments["scale"] = torch.tensor(5.0) if case["scale"] == "tensor" else 5.0
    # The last bits of a cosine, which are luck, are magnified `scale` times.
    others = forms(reference.cosent_loss, ("x1", "x2"))
    with running(backend, case["plan"]) as device:
        check(fusedloss.cosent_loss, arguments, case["dtype"], device, constant=["target"], forms=others)


@pytest.mark.parametrize("scale", [50.0, 1e3])
@pytest.mark.parametrize("target", ORDERS)
def test_cosent_of_a_large_scale_is_as_exact_as_eager_or_as_its_logits(backend, device, target, scale):
    x1, x2 = (batch(23, 37, seed=seed)[0] for seed in range(2))
    arguments = dict(x1=x1, x2=x2, target=ORDERS[target](23), scale=torch.tensor(scale))
    others = forms(reference.cosent_loss, ("x1", "x2"))
    check(fusedloss.cosent_loss, arguments, device=device, constant=["target"], forms=others)
    if backend == "blocked":  # in float64 eager is exact where one term is all, and the logarithm of a slope is not
        found, want = (
            differentiate(f, arguments, torch.float64, "cpu", ["target"])
            for f in (fusedloss.cosent_loss, reference.cosent_loss)
        )
        for name in want:
            size = want[name].abs().max().item()
            torch.testing.assert_close(found[name], want[name], rtol=0, atol=4 * scale * 2.0**-52 * size)


@pytest.mark.parametrize("grades", [2, 6, 1000])
def test_cosent_of_many_pairs_is_as_exact_as_eager(grades):
    N = 2000
    x1, x2 = (batch(N, 16, seed=seed)[0] for seed in range(2))
    target = torch.randint(grades, (N,), generator=torch.Generator().manual_seed(0))
    check(fusedloss.cosent_loss, dict(x1=x1, x2=x2, target=target, scale=torch.tensor(20.0)))


def test_cosent_is_the_formula_of_sentence_transformers(backend, device):
    def theirs(x1, x2, target):
        scores = F.cosine_similarity(x1, x2) * 20.0
        scores = scores[:, None] - scores[None, :]
        labels = (target[:, None] < target[None, :]).to(scores.dtype)
        scores = (scores - (1 - labels) * 1e12).view(-1)
        return torch.logsumexp(torch.cat((scores.new_zeros(1), scores)), dim=0)

    arguments = dict(x1=batch(23, 37)[0], x2=batch(23, 37, seed=1)[0], target=ORDERS["graded"](23))
    check(fusedloss.cosent_loss, arguments, device=device, oracle=theirs, constant=["target"])


@pytest.mark.parametrize("scale", [0.01, 1e3, 1e5])
@pytest.mark.parametrize("target", [[], [3.0], [0, 0], [0.5] * 5, [True] * 3], ids=len)
def test_cosent_of_targets_that_do_not_differ_is_zero_with_zero_gradient(backend, device, target, scale):
    rows = [batch(len(target), 5, seed=seed)[0].float().to(device).requires_grad_() for seed in range(2)]
    scale = torch.tensor(scale, device=device, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        value = fusedloss.cosent_loss(*rows, torch.tensor(target, device=device), scale=scale)
        grads = torch.autograd.grad(value, (*rows, scale))
    assert value == 0 and value.shape == () and value.dtype == torch.float32
    assert not any(g.count_nonzero() for g in grads)


@pytest.mark.parametrize("sign", [1, -1])
def test_cosent_is_exact_where_its_terms_are_tiny_or_huge(backend, device, sign):
    """With cosines 2 apart, a pair in the right order costs exp(-2 s), and one in the wrong order 2 s."""
    x1 = torch.tensor([[1.0, 0.0]] * 2, device=device)
    x2 = torch.tensor([[sign, 0.0], [-sign, 0.0]], device=device)
    for s in (20.0, 1e3):
        scale = torch.tensor(s, device=device, dtype=torch.float64, requires_grad=True)
        value = fusedloss.cosent_loss(x1, x2, torch.tensor([1.0, 0.5], device=device), scale=scale)
        (slope,) = torch.autograd.grad(value, scale)
        if sign > 0:
            want = torch.tensor(-2 * s, dtype=torch.float64).exp()
            want_slope = -2 * want
        else:
            want, want_slope = torch.tensor(2 * s), torch.tensor(2.0)
        assert value.item() == pytest.approx(want.float().item(), rel=1e-6, abs=1e-45)
        assert slope.item() == pytest.approx(want_slope.item(), rel=1e-5, abs=1e-45)


@pytest.mark.parametrize("row", range(5))
def test_a_row_of_nan_makes_cosent_nan(backend, device, row):
    x1, x2 = (batch(5, 5, seed=seed)[0].float().to(device) for seed in range(2))
    x1[row] = torch.nan
    assert fusedloss.cosent_loss(x1, x2, torch.tensor([2, 0, 1, 2, 0], device=device)).isnan()


def test_a_target_of_cosent_that_is_nan_is_an_error_on_a_cpu_and_else_a_loss_of_nan(backend, device, monkeypatch):
    rows = [batch(3, 5, seed=seed)[0].float() for seed in range(2)]
    target = torch.tensor([0.0, torch.nan, 1.0])
    with pytest.raises(ValueError, match=r"^target must not be NaN anywhere, got nan in row 1"):
        fusedloss.cosent_loss(*rows, target)
    unreadable(monkeypatch)
    assert fusedloss.cosent_loss(*(v.to(device) for v in (*rows, target))).isnan()


def test_cosent_holds_no_matrix_of_pairs():
    N = 3000
    x1, x2 = (torch.randn(N, 4, requires_grad=True) for _ in range(2))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        value = fusedloss.cosent_loss(x1, x2, torch.randint(5, (N,)))
    with Allocated() as made:
        value.backward()
        fusedloss.cosent_loss(x1.detach(), x2.detach(), torch.randint(5, (N,)))
    assert max(sizes) <= 4 * N and 4 * N <= made.largest <= 8 * N


class Allocated(TorchDispatchMode):
    """The elements of the largest tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return found


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


HINGES = {
    fusedloss.contrastive_loss: ([0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [1, 0, 0], dict(margin=2.0), 0.5),
    fusedloss.euclidean_distance_loss: ([0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [1, 0, 0], dict(margin=2.0), 1.0),
    fusedloss.cosine_embedding_loss: ([1.0, -1.0, 2.0], [2.0, 2.0, 1.0], [1, 0, 0], dict(margin=0.25), 0.75),
}


@pytest.mark.parametrize("loss", HINGES)
def test_the_mean_over_active_pairs_counts_those_that_cost_something(backend, device, loss):
    x1, x2, target, options, cost = HINGES[loss]  # of the last pair alone
    x1, x2 = (torch.tensor(x, device=device)[:, None].requires_grad_() for x in (x1, x2))
    target = torch.tensor(target, device=device)
    assert loss(x1, x2, target, **options, reduction="active").item() == pytest.approx(cost)
    assert loss(x1, x2, target, **options).item() == pytest.approx(cost / 3)
    nothing = loss(x1[:2], x2[:2], target[:2], **options, reduction="active")
    assert nothing == 0 and not any(g.count_nonzero() for g in torch.autograd.grad(nothing, (x1, x2)))


def test_the_mean_over_active_triplets_counts_those_that_cost_something(backend, device):
    a, p, n = (
        torch.tensor(x, device=device)[:, None].requires_grad_() for x in ([0.0] * 3, [1.0] * 3, [1.5, 2.0, 9.0])
    )
    options = dict(margin=0.75, eps=0.0)
    assert fusedloss.triplet_margin_loss(a, p, n, **options, reduction="active").item() == pytest.approx(0.25)
    nothing = fusedloss.triplet_margin_loss(a[1:], p[1:], n[1:], **options, reduction="active")
    assert nothing == 0 and not any(g.count_nonzero() for g in torch.autograd.grad(nothing, (a, p, n)))
    soft = [fusedloss.triplet_margin_loss(a, p, n, soft_margin=True, reduction=r) for r in ("active", "mean")]
    torch.testing.assert_close(*soft)


PAIRS = (
    fusedloss.contrastive_loss,
    fusedloss.euclidean_distance_loss,
    fusedloss.cosine_similarity_loss,
    fusedloss.cosine_embedding_loss,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("similar", "target"), [(1, 0.3), (0, 0.7)])
@pytest.mark.parametrize(
    ("loss", "x1", "x2", "options", "terms"),  # of a similar and of a dissimilar pair
    [
        (fusedloss.contrastive_loss, [0.0, 0.0], [0.0, 1.0], {}, (0.5, 0.0)),
        (fusedloss.contrastive_loss, [0.0, 0.0], [0.0, 1.0], dict(margin=3.0, metric="manhattan"), (0.5, 2.0)),
        (fusedloss.contrastive_loss, [1.0, 0.0], [0.0, 1.0], dict(margin=3.0, metric="cosine"), (0.5, 2.0)),
        (fusedloss.euclidean_distance_loss, [0.0, 0.0], [0.0, 1.0], dict(margin=2.0), (1.0, 1.0)),
        (fusedloss.cosine_similarity_loss, [3.0, 4.0], [3.0, 0.0], {}, (0.2, 0.8)),
        (fusedloss.cosine_embedding_loss, [3.0, 4.0], [3.0, 0.0], dict(margin=0.1), (0.4, 0.5)),
    ],
)
def test_a_graded_pair_costs_its_share_of_both_terms(
    backend, device, loss, x1, x2, options, terms, similar, target, dtype
):
    x1, x2 = torch.tensor([x1], device=device), torch.tensor([x2], device=device)
    share = torch.tensor([target], device=device, dtype=dtype)
    value = loss(x1, x2, share, similar=similar, **options)
    part = share.item() if similar == 1 else 1 - share.item()
    assert value.item() == pytest.approx(part * terms[0] + (1 - part) * terms[1], rel=2e-6)


@pytest.mark.parametrize("similar", [1, 0])
def test_a_share_of_0_or_1_selects_its_term_whatever_the_other_is(backend, device, similar):
    x1, x2 = (1e10 * batch(9, 5, seed=seed)[0].float().to(device) for seed in range(2))
    bits, found = torch.arange(9, device=device) % 2, []
    apart = bits != similar
    for target in (bits.bool(), bits, bits.float()):
        leaf = x1.clone().requires_grad_()
        terms = fusedloss.contrastive_loss(leaf, x2, target, metric="sqeuclidean", similar=similar, reduction="none")
        (grad,) = torch.autograd.grad(terms[apart].sum(), leaf)
        assert terms[~apart].isinf().all()
        found.append(torch.cat([terms[apart, None], grad[apart]], 1))
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


WRONG = [torch.nan, torch.inf, 2.0, 1.5, -0.5, -2.0]


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize(("similar", "wrong"), [*((s, w) for s in (1, 0) for w in WRONG), (0, -1.0)])
def test_another_target_is_an_error_on_a_cpu_and_else_a_loss_of_nan(backend, device, loss, similar, wrong, monkeypatch):
    rows = [batch(3, 5, seed=seed)[0].float() for seed in range(2)]
    for target in (torch.tensor([0.0, 1.0, wrong]), torch.tensor([0.0, 1.0, wrong]).bfloat16()):
        with pytest.raises(ValueError, match=f"^target must be from 0 to 1.*, got {wrong} in row 2"):
            loss(*rows, target, similar=similar)
    if wrong in (2.0, -2.0, -1.0):
        with pytest.raises(ValueError, match=f"^target must be from 0 to 1.*, got {int(wrong)} in row 2"):
            loss(*rows, torch.tensor([0, 1, int(wrong)]), similar=similar)
    unreadable(monkeypatch)
    on_device = [v.to(device) for v in (*rows, target)]
    assert loss(*on_device, similar=similar, reduction="none").isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("loss", [*PAIRS, fusedloss.cosent_loss])
def test_a_target_receives_no_gradient(loss):
    rows = [batch(3, 5, seed=seed)[0] for seed in range(2)]
    with pytest.raises(ValueError, match=r"^target must not require a gradient"):
        loss(*rows, torch.full((3,), 0.5, requires_grad=True))
    with pytest.raises(TypeError, match=r"^target must be real, got torch.complex64"):
        loss(*rows, torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint32])
def test_a_target_of_any_integer_dtype_is_a_bool(backend, device, dtype):
    rows = [batch(9, 5, seed=seed)[0].float().to(device) for seed in range(2)]
    bits = torch.arange(9) % 2
    for similar in (1, 0):
        found, want = (fusedloss.contrastive_loss(*rows, t.to(device), similar=similar) for t in (bits.to(dtype), bits))
        assert torch.equal(found, want)


SMALL = 3e-8  # a cosine that 1 - (1 - cos) does not hold


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("loss", "value", "slope"),  # of a dissimilar pair with a cosine of SMALL, or SMALL above -1
    [
        (fusedloss.cosine_embedding_loss, SMALL, 1.0),
        (partial(fusedloss.contrastive_loss, metric="cosine"), SMALL**2 / 2, SMALL),
    ],
)
@pytest.mark.parametrize("margin", ["default", "tensor"])
def test_a_hinge_of_a_small_cosine_is_exact(backend, device, loss, value, slope, sign, margin):
    if margin == "tensor":
        default = 0.0 if loss is fusedloss.cosine_embedding_loss else 1.0
        loss = partial(loss, margin=torch.tensor(default, device=device))
    x1 = torch.tensor([[sign * SMALL, 1.0]], device=device, requires_grad=True)
    x2 = torch.tensor([[1.0, 0.0]], device=device)
    found = loss(x1, x2, torch.zeros(1, dtype=torch.int64, device=device))
    found.backward()
    assert found.item() == pytest.approx(value if sign > 0 else 0.0, rel=1e-6)
    assert x1.grad[0, 0].item() == pytest.approx(slope if sign > 0 else 0.0, rel=1e-6)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("soft_margin", [False, True])
def test_a_triplet_of_small_cosines_is_exact(backend, device, soft_margin, swap):
    a = torch.tensor([[1.0, 0.0]], device=device)
    p, n = (torch.tensor([[cos, 1.0]], device=device, requires_grad=True) for cos in (SMALL, 2 * SMALL))
    for loss in (fusedloss.triplet_margin_loss, mined):
        options = dict(swap=swap) if loss is fusedloss.triplet_margin_loss else {}
        value = loss(a, p, n, margin=0.0, metric="cosine", soft_margin=soft_margin, **options)
        by_p, by_n = torch.autograd.grad(value, (p, n))
        swapped = bool(options.get("swap"))  # then the negative is nearer to the positive, with a cosine of 1
        gap = 1.0 - SMALL if swapped else SMALL
        want = F.softplus(torch.tensor(gap)).item() if soft_margin else gap
        assert value.item() == pytest.approx(want, rel=1e-6)
        if not swapped:
            slope = torch.tensor(gap).sigmoid().item() if soft_margin else 1.0
            assert (by_p[0, 0].item(), by_n[0, 0].item()) == pytest.approx((-slope, slope), rel=1e-6)


def mined(anchor, positive, negative, **options):
    """The loss of a batch in which batch-hard mining finds just this triplet."""
    labels = torch.tensor([0, 0, 1], device=anchor.device)
    refs = torch.cat([anchor, positive, negative])
    return fusedloss.batch_hard_triplet_loss(anchor, labels[:1], refs, labels, ref_offset=0, **options)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin", [0.7, None])
def test_a_soft_margin_has_its_margin(backend, device, metric, dtype, margin):
    a, p, n = (batch(1, 5, seed=seed)[0].float().to(device) for seed in range(3))
    gap = (reference.row_distance(a, p, metric) - reference.row_distance(a, n, metric)).item()
    given = {} if margin is None else dict(margin=margin)
    if margin is not None and dtype is not None:
        given = dict(margin=torch.tensor(margin, dtype=dtype, device=device, requires_grad=True))
    z = torch.tensor(gap + (given["margin"].item() if dtype and given else margin or 0.0))
    for loss in (partial(fusedloss.triplet_margin_loss, eps=0.0), mined, of_all):
        value = loss(a, p, n, metric=metric, soft_margin=True, **given)
        assert value.item() == pytest.approx(F.softplus(z).item(), rel=3e-6)
        if isinstance(given.get("margin"), torch.Tensor):
            (slope,) = torch.autograd.grad(value, given["margin"])
            assert slope.dtype == dtype
            assert slope.item() == pytest.approx(z.sigmoid().item(), rel=1e-5 if dtype == torch.float32 else 1e-2)


def of_all(anchor, positive, negative, **options):
    """The loss of a batch whose only triplet is this one."""
    labels = torch.tensor([0, 0, 1], device=anchor.device)
    refs = torch.cat([anchor, positive, negative])
    return fusedloss.batch_all_triplet_loss(anchor, labels[:1], refs, labels, ref_offset=0, **options)


def test_soft_semihard_triplets_need_a_margin():
    x, labels = torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([0, 0, 1])
    options = dict(soft_margin=True, triplets="semihard")
    with pytest.raises(ValueError, match=r"^margin must be given where soft_margin is True .* got None"):
        fusedloss.batch_all_triplet_loss(x, labels, **options)
    assert fusedloss.batch_all_triplet_loss(x, labels, margin=1.0, **options) == F.softplus(torch.tensor(0.5))
