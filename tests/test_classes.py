"""Losses of embeddings and classes: as exact as eager over covering grids, and for degenerate angles and classes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedloss
from bench.regimes import forms
from fusedloss.backends.blocked.tiles import sides
from fusedloss.checks import Batch
from fusedloss.losses.catalog import CATALOG, Role
from tests.compare import check, differentiate, wanted_of_backends
from tests.grid import PLANS, WITH_CLASSES, batch, cases, example, ignoring, in_full, running, unreadable

# Rows, classes, dimensions: ragged for tiles of any size. D below, above and not a multiple of a chunk.
SHAPES = ((23, 37, 37), (11, 41, 3), (41, 5, 4), (17, 13, 101))
REDUCTIONS = ("mean", "sum", "none")
NUMBERS = ("number", "tensor")
TRAINED = ("both", "rows", "classes")
WEIGHTS = 2  # the weights of the gradient product are rounded as its result is
SCALED_WEIGHTS = 3  # and what comes with the row itself cancels most of a gradient across the sphere


def of_classes(loss, case):
    """Rows, classes (some without any row), targets, and which of these are constants."""
    N, C, D = case["shape"]
    (x, _), (w, _) = batch(N, D), batch(C, D, seed=1)
    [name] = CATALOG[loss.__name__].named(Role.CLASSES)
    arguments = {"embeddings": x, name: w, "target": (3 * torch.arange(N) + 1) % max(C - 2, 2)}
    fixed = dict(both=[], rows=[name], classes=["embeddings"])[case.get("trained", "both")]
    return arguments | dict(reduction=case["reduction"]), fixed


def leaving_out(label, arguments):
    """A third of the rows have the ignored label, if it is not None, and hold NaN."""
    if label is not None:
        arguments["target"][1::3] = label
    return ignoring(label, arguments)


def number(case, value):
    return torch.tensor(value) if case["numbers"] == "tensor" else value


@cases(
    dict(
        shape=SHAPES,
        reduction=REDUCTIONS,
        trained=TRAINED,
        bias=("none", "trained", "constant"),
        gamma=(0.0, 0.5, 2.0),
        smoothing=(0.0, 0.1, 1.0),
        ignored=(False, True),
    ),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_linear_cross_entropy_is_as_exact_as_eager(backend, case):
    arguments, fixed = of_classes(fusedloss.linear_cross_entropy_loss, case)
    if case["bias"] != "none":
        arguments |= dict(bias=batch(case["shape"][1], 1, seed=2)[0][:, 0])
        fixed += ["bias"] * (case["bias"] == "constant")
    if case["ignored"]:
        arguments["target"][1::3] = -7
        arguments["embeddings"][1::6], arguments["embeddings"][4::6] = torch.nan, torch.inf
    arguments |= dict(gamma=case["gamma"], label_smoothing=case["smoothing"], ignore_index=-7)
    with running(backend, case["plan"]) as device:
        loss = fusedloss.linear_cross_entropy_loss
        check(loss, arguments, case["dtype"], device, constant=fixed, roundings=WEIGHTS)


@cases(
    dict(
        shape=SHAPES,
        reduction=REDUCTIONS,
        trained=TRAINED,
        bias=(False, True),
        gamma=(0.0, 2.0),
        smoothing=(0.0, 0.1),
        weights=(False, True),
        z_loss=(0.0, 0.1),
        softcap=(None, 2.0),
        ignored=(False, True),
    ),
    blocked=2,
    triton=2,
    plans=("default", "small", "held", "split", "sorted"),
)
def test_linear_cross_entropy_of_weighted_and_capped_classes_is_as_exact_as_eager(backend, case):
    arguments, fixed = of_classes(fusedloss.linear_cross_entropy_loss, case)
    C = case["shape"][1]
    if case["bias"]:
        arguments |= dict(bias=3 + batch(C, 3, seed=2)[0][:, 0])  # all above 0: what they have in common is told apart
    if case["weights"]:
        arguments |= dict(class_weight=class_weights(C))
    arguments["target"][1::3] = -100 if case["ignored"] else 0
    options = {name: case[name] for name in ("gamma", "z_loss", "softcap")} | dict(label_smoothing=case["smoothing"])
    with running(backend, case["plan"]) as device:
        loss = fusedloss.linear_cross_entropy_loss
        check(loss, arguments | options, case["dtype"], device, constant=[*fixed, "class_weight"], roundings=WEIGHTS)


def class_weights(C):
    """Weights of classes, one of which is 0."""
    return (torch.arange(C) % 5).double() / 4


def sub_centers_of(C, K, D):
    """Sub-centers, two of which are equal in a class: the first of the nearest counts."""
    centers = torch.stack([batch(C, D, seed=k)[0] for k in range(1, K + 1)], 1)
    centers[0, -1] = centers[0, 0]
    return centers


@cases(
    dict(
        loss=(fusedloss.arcface_loss, fusedloss.cosface_loss, fusedloss.normalized_softmax_loss),
        shape=SHAPES,
        reduction=REDUCTIONS,
        trained=TRAINED,
        margins=("number", "of rows"),
        smoothing=(0.0, 0.1),
        weights=(False, True),
        sub_centers=(1, 2, 3, 8),
        ignored=(None, -100),
    ),
    blocked=3,
    triton=2,
    plans=("default", "small", "held", "split", "sorted"),
)
def test_margins_of_rows_weights_and_sub_centers_are_as_exact_as_eager(backend, case):
    loss, (N, C, D), K = case["loss"], case["shape"], case["sub_centers"]
    arguments, fixed = of_classes(loss, case)
    if K > 1:
        arguments |= dict(weight=sub_centers_of(C, K, D), sub_centers=K)
    if case["weights"]:
        arguments |= dict(class_weight=class_weights(C))
    if loss is fusedloss.normalized_softmax_loss:
        arguments |= dict(temperature=0.3)
    else:
        arguments |= dict(scale=4.0)
        if case["margins"] == "of rows":
            arguments |= dict(margin=torch.linspace(-0.4, 0.9, N).double())
    arguments |= dict(label_smoothing=case["smoothing"])
    arguments = leaving_out(case["ignored"], arguments)
    with running(backend, case["plan"]) as device:
        options = dict(constant=[*fixed, "class_weight"], roundings=SCALED_WEIGHTS)
        others = forms(getattr(fusedloss.reference, loss.__name__), ("embeddings", "weight"))
        check(loss, arguments, case["dtype"], device, forms=others if case["dtype"].itemsize > 2 else (), **options)


def test_a_margin_of_a_row_that_does_not_count_goes_nowhere(backend, device):
    arguments = {name: t.to(device) for name, t in example(fusedloss.arcface_loss).items()}
    arguments["target"] = arguments["target"].clone()
    arguments["target"][2] = -100
    margin = torch.full((9,), 0.3, device=device)
    margin[2] = 1.5
    leaf = arguments["embeddings"].clone().requires_grad_()
    margin.requires_grad_()
    fusedloss.arcface_loss(**arguments | dict(embeddings=leaf), margin=margin).backward()
    assert margin.grad.isfinite().all() and margin.grad[2] == 0 and leaf.grad.isfinite().all()


def test_a_negative_margin_of_a_row_opposite_its_class_is_an_angle(backend, device):
    """An angle plus a margin may be beyond pi, but an angle less a margin may not."""
    x, w = at_angles(3, -0.99, -0.99), torch.eye(2, 3, dtype=torch.float64)
    margin = torch.tensor([-0.5, 0.5])
    given = (x.float().to(device), w.float().to(device), torch.zeros(2, dtype=torch.int64, device=device))
    found = fusedloss.arcface_loss(*given, margin=margin.to(device), scale=1.0, reduction="none")
    own = torch.tensor([math.cos(math.acos(-0.99) - 0.5), -0.99 - 0.5 * math.sin(0.5)])
    other = (1 - 0.99**2) ** 0.5
    torch.testing.assert_close(found.cpu(), F.softplus(other - own), rtol=1e-5, atol=1e-6)


def test_no_tile_parts_the_sub_centers_of_a_class():
    x, y = torch.ones(960, 2), torch.ones(1280, 2)
    batch_of = Batch(x, y, torch.zeros(960, dtype=torch.int64), torch.arange(1280) // 8, None, y_sorted=True)
    (_, whole), (_, any_size) = (sides(batch_of, "similarity", sort=True, group=group) for group in (8, 1))
    assert len(whole.blocks) > 1 and all(block.start % 8 == 0 for block in whole.blocks)
    assert any(block.start % 8 for block in any_size.blocks)


def test_nan_in_a_sub_center_shows(backend, device):
    """A NaN in one sub-center shows in the loss of every row, since it counts as the nearest of its class."""
    x, centers, target = batch(6, 5)[0].float(), sub_centers_of(4, 3, 5).float(), torch.tensor([0, 1, 2, 3, 0, 1])
    centers[2, 1, 0] = torch.nan
    loss = fusedloss.cosface_loss(
        x.to(device), centers.to(device), target.to(device), sub_centers=3, reduction="none"
    )  # fmt: skip
    assert loss.isnan().all()


@pytest.mark.parametrize("sub_centers", [1, 3])
def test_a_module_of_sub_centers_owns_and_trains_them(backend, device, sub_centers):
    module = fusedloss.ArcFaceLoss(4, 5, sub_centers=sub_centers, scale=4.0).to(device)
    assert module.weight.shape == ((4, 3, 5) if sub_centers > 1 else (4, 5))
    x, target = batch(8, 5)[0].float().to(device), torch.arange(8, device=device) % 4
    module(x, target).backward()
    assert module.weight.grad.count_nonzero()
    per_row = module(x, target, margin=torch.full((8,), 0.5, device=device))
    torch.testing.assert_close(per_row, module(x, target))


OPTIONS = {
    fusedloss.arcface_loss: [dict(margin=0.3, scale=4.0), dict(margin=2.5, scale=2.0)],  # a third is beyond pi
    fusedloss.cosface_loss: [dict(margin=0.35, scale=4.0)],
    fusedloss.normalized_softmax_loss: [dict(temperature=0.3)],
    fusedloss.proxy_nca_loss: [dict(scale=1.5)],
    fusedloss.proxy_anchor_loss: [dict(margin=0.1, alpha=4.0)],
}


@cases(
    dict(
        loss=[(loss, *o.items()) for loss, options in OPTIONS.items() for o in options],
        shape=SHAPES,
        reduction=REDUCTIONS,
        numbers=NUMBERS,
        trained=TRAINED,
        ignored=(None, -100),
    ),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_losses_on_the_sphere_are_as_exact_as_eager(backend, case):
    loss, *options = case["loss"]
    arguments, fixed = of_classes(loss, case)
    arguments |= {name: number(case, value) for name, value in options}
    arguments = leaving_out(case["ignored"], arguments)
    with running(backend, case["plan"]) as device:
        check(loss, arguments, case["dtype"], device, constant=fixed, roundings=SCALED_WEIGHTS)


@cases(
    dict(shape=SHAPES, reduction=REDUCTIONS, trained=TRAINED, ignored=(None, -100)),
    blocked=3,
    triton=2,
    plans=("default", "small"),
)
@pytest.mark.parametrize("loss", [fusedloss.center_loss, fusedloss.island_loss])
def test_losses_of_centers_are_as_exact_as_eager(backend, case, loss):
    arguments, fixed = of_classes(loss, case)
    arguments |= dict(weight=0.01) if loss is fusedloss.island_loss else {}
    arguments = leaving_out(case["ignored"], arguments)
    with running(backend, case["plan"]) as device:
        # In 16 bit a center gets its gradient from the rows and from the other centers, each rounded.
        check(loss, arguments, case["dtype"], device, constant=fixed, roundings=2)


def at_angles(D, *cosines):
    """Rows at these cosines to the first axis, in float64."""
    x = torch.zeros(len(cosines), D, dtype=torch.float64)
    x[:, 0] = torch.tensor(cosines)
    x[:, 1] = (1 - x[:, 0] ** 2).sqrt()
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1.0, 3.0, 0.01])
@pytest.mark.parametrize("scale", [64.0, 1.0])
def test_arcface_is_exact_and_finite_where_the_cosine_is_one(backend, device, dtype, length, scale):
    x, w = length * at_angles(5, 1.0, -1.0, 0.0), torch.eye(4, 5, dtype=torch.float64)
    target = torch.zeros(3, dtype=torch.long)
    arguments = dict(embeddings=x.to(dtype), weight=w.to(dtype))
    ours = partial(fusedloss.arcface_loss, target=target.to(device), scale=scale, reduction="none")
    found = differentiate(ours, arguments, dtype, device, ())
    own = torch.tensor([math.cos(0.5), -1 - 0.5 * math.sin(0.5), math.cos(math.pi / 2 + 0.5)], dtype=torch.float64)
    others = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    exact = F.softplus((scale * others).logsumexp(1) - scale * own, threshold=1000)
    # A cosine of 1 - 2 eps, to which one of 1 may be rounded, has a sine of 2 sqrt(eps): that is float32's angle of 0.
    slack = torch.tensor([scale * math.sin(0.5) * 2 * torch.finfo(torch.float32).eps ** 0.5, 0, 0])
    assert ((found["value"].double().cpu() - exact).abs() <= (1e-5 + slack) * exact).all()
    assert all(grad.isfinite().all() for grad in found.values())
    assert found["embeddings"][2].count_nonzero()


@pytest.mark.parametrize("D", [16, *in_full(200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arcface_of_rows_at_their_class_is_finite_and_pulls_no_further(backend, device, dtype, D):
    """Cosines are 1 up to rounding, on either side of it: sin(theta) is noise, and must not be divided by."""
    w = batch(24, D)[0]
    x = torch.cat([w, 2 * w, -w, w * (1 + 1e-4 * batch(24, D, seed=1)[0])])
    arguments = dict(embeddings=x.to(dtype), weight=w.to(dtype))
    target = torch.arange(24).repeat(4).to(device)
    found = differentiate(partial(fusedloss.arcface_loss, target=target), arguments, dtype, device, ())
    assert all(grad.isfinite().all() for grad in found.values())
    assert found["embeddings"].abs().max() < 64 * 3 * 2 / 96 * D**0.5  # scale, upstream, of a mean; rows of length 1


def test_arcface_margins_are_radians_of_at_most_pi():
    arguments = example(fusedloss.arcface_loss)
    with pytest.raises(
        ValueError, match=r"^margin must be finite and at least 0.0 and at most 3.14159 radians, got 28.6"
    ):
        fusedloss.arcface_loss(**arguments, margin=28.6)
    assert fusedloss.arcface_loss(**arguments, margin=math.pi).isfinite()


def test_linear_cross_entropy_is_torchs_of_a_linear_layer(backend, device):
    layer = nn.Linear(7, 11, dtype=torch.float64)
    x, target = batch(13, 7)[0], torch.arange(13) % 11
    target[::4] = -100
    for smoothing in (0.0, 0.2):
        given = dict(embeddings=x, weight=layer.weight.detach(), bias=layer.bias.detach())
        ours = partial(fusedloss.linear_cross_entropy_loss, target=target.to(device), label_smoothing=smoothing)
        found = differentiate(ours, given, torch.float32, device, ())
        want = differentiate(
            lambda embeddings, weight, bias, eps=smoothing: F.cross_entropy(
                F.linear(embeddings, weight, bias), target, label_smoothing=eps
            ),
            given, torch.float64, "cpu", (),
        )  # fmt: skip
        for name, exact in want.items():
            torch.testing.assert_close(found[name].double().cpu(), exact, rtol=2e-6, atol=1e-7)


def test_a_bias_has_the_precision_of_float32_beside_16_bit_rows(backend, device):
    arguments = {k: v.to(device) for k, v in example(fusedloss.linear_cross_entropy_loss).items()}
    arguments |= {name: arguments[name].bfloat16() for name in ("embeddings", "weight")}
    bias = torch.zeros(7, device=device)
    bias[1] = 2.0**-10  # less than half the last bit of a bfloat16 logit of 1
    losses = [fusedloss.linear_cross_entropy_loss(**arguments, bias=1 + b) for b in (bias, 0 * bias)]
    assert (losses[0] - losses[1]).abs() > 1e-5


@pytest.mark.parametrize("options", [{}, dict(gamma=0.5), dict(label_smoothing=0.1)], ids=str)
def test_a_constant_added_to_the_bias_changes_nothing(backend, device, options):
    arguments, _ = of_classes(fusedloss.linear_cross_entropy_loss, dict(shape=SHAPES[0], reduction="none"))
    target, bias = arguments.pop("target").to(device), batch(37, 1, seed=2)[0][:, 0]
    loss = partial(fusedloss.linear_cross_entropy_loss, target=target, **options)
    for constant in (2.0**20, -(2.0**20)):
        plain, moved = (
            differentiate(loss, arguments | dict(bias=bias + c), torch.float32, device, ()) for c in (0.0, constant)
        )
        for name, want in plain.items():
            torch.testing.assert_close(moved[name], want, rtol=1e-5, atol=1e-6)


def test_a_class_left_out_by_its_bias_costs_nothing(backend, device):
    arguments, _ = of_classes(fusedloss.linear_cross_entropy_loss, dict(shape=SHAPES[0], reduction="mean"))
    left = torch.arange(37) < 35  # no row is of the last two
    target = arguments.pop("target").to(device)
    loss = partial(fusedloss.linear_cross_entropy_loss, target=target, gamma=0.5)
    bias = torch.where(left, 1.0, -torch.inf)
    found = differentiate(loss, arguments | dict(bias=bias), torch.float32, device, ())
    alone = {name: v[left] if name == "weight" else v for name, v in arguments.items()}
    want = differentiate(loss, alone, torch.float32, device, ())
    torch.testing.assert_close(found["weight"][:35], want["weight"], rtol=1e-5, atol=1e-6)
    assert not found["weight"][35:].count_nonzero()
    for name in ("value", "embeddings"):
        torch.testing.assert_close(found[name], want[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, dict(gamma=0.5), dict(label_smoothing=0.1)], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
def test_what_an_ignored_row_holds_reaches_no_gradient(backend, device, bad, options):
    arguments, _ = of_classes(fusedloss.linear_cross_entropy_loss, dict(shape=SHAPES[0], reduction="mean"))
    arguments |= dict(bias=batch(37, 1, seed=2)[0][:, 0])
    target, counted = arguments.pop("target").to(device), torch.arange(23) % 4 > 0
    loss = partial(fusedloss.linear_cross_entropy_loss, **options)
    alone = arguments | dict(embeddings=arguments["embeddings"][counted])
    want = differentiate(partial(loss, target=target[counted.to(device)]), alone, torch.float32, device, ())
    arguments["embeddings"][~counted] = bad
    ignoring = partial(loss, target=target.where(counted.to(device), -100))
    found = differentiate(ignoring, arguments, torch.float32, device, ())
    rows = found.pop("embeddings")
    assert not rows[~counted].count_nonzero()
    torch.testing.assert_close(rows[counted], want.pop("embeddings"), rtol=1e-5, atol=1e-7)
    for name, exact in want.items():
        torch.testing.assert_close(found[name], exact, rtol=1e-5, atol=1e-6)


def test_where_no_row_is_ignored_none_is_copied(monkeypatch):
    arguments, copies = example(fusedloss.linear_cross_entropy_loss), []
    original = torch.Tensor.masked_fill
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda *a: copies.append(a) or original(*a))
    fusedloss.linear_cross_entropy_loss(**arguments)
    assert not copies
    arguments["target"][0] = -100
    fusedloss.linear_cross_entropy_loss(**arguments)
    assert copies


def test_only_the_bias_may_be_trained(backend, device):
    arguments, _ = of_classes(fusedloss.linear_cross_entropy_loss, dict(shape=SHAPES[0], reduction="mean"))
    arguments |= dict(bias=batch(37, 1, seed=2)[0][:, 0])
    check(fusedloss.linear_cross_entropy_loss, arguments, device=device, constant=["embeddings", "weight"])


def test_what_is_not_trained_costs_no_gradient(backend, device):
    arguments = {k: v.to(device) for k, v in example(fusedloss.linear_cross_entropy_loss).items()}
    arguments |= dict(bias=torch.ones(7, device=device))
    for name in ("embeddings", "weight", "bias"):
        leaf = arguments[name].clone().requires_grad_()
        with wanted_of_backends() as asked:
            fusedloss.linear_cross_entropy_loss(**(arguments | {name: leaf})).backward()
        (of,) = asked
        assert (of.x, of.y, of.numbers, of.y_offsets) == (name == "embeddings", name == "weight", False, name == "bias")
        assert leaf.grad.count_nonzero()


# --------------------------------------------------------------------------------------------------- degenerate classes


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, dict(gamma=0.5), dict(label_smoothing=0.1)], ids=str)
def test_if_no_row_counts_the_loss_is_zero_with_zero_gradient(backend, device, options, reduction):
    arguments = {k: v.to(device) for k, v in example(fusedloss.linear_cross_entropy_loss).items()}
    arguments |= dict(target=torch.full_like(arguments["target"], 3), ignore_index=3)  # a class of its own
    rows = [arguments[name].requires_grad_() for name in ("embeddings", "weight")]
    value = fusedloss.linear_cross_entropy_loss(**arguments, **options, reduction=reduction)
    value.sum().backward()
    assert not value.count_nonzero()
    assert not any(row.grad.count_nonzero() for row in rows)


ONE_CLASS = [loss for loss in WITH_CLASSES if loss not in (fusedloss.center_loss, fusedloss.island_loss)]


@pytest.mark.parametrize("loss", ONE_CLASS)
def test_the_only_class_is_certain(backend, device, loss):
    arguments = {k: v.to(device) for k, v in example(loss, M=1).items()}
    arguments["target"].zero_()
    leaves = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
    value = loss(**arguments, reduction="none")
    grads = torch.autograd.grad(value.sum(), leaves)
    if loss is fusedloss.proxy_anchor_loss:  # which has no softmax
        assert value > 0
    else:
        assert not value.count_nonzero() and not any(grad.count_nonzero() for grad in grads)


@pytest.mark.parametrize("bad", [7, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("loss", WITH_CLASSES)
def test_a_class_out_of_range_is_an_error_on_a_cpu(loss, bad):
    arguments = example(loss)
    arguments["target"][2] = bad
    ignored = r" or ignore_index \(-100\)" if loss.__kwdefaults__["ignore_index"] is not None else ""
    with pytest.raises(ValueError, match=rf"^target must be class indices from 0 to 6{ignored}, got {bad}$"):
        loss(**arguments)


@pytest.mark.parametrize("bad", [7, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("loss", WITH_CLASSES)
def test_unseen_a_class_out_of_range_makes_the_loss_nan_and_reads_nothing(backend, device, loss, bad, monkeypatch):
    unreadable(monkeypatch)
    arguments = {k: v.to(device) for k, v in example(loss).items()}
    good = loss(**arguments, reduction="none")
    arguments["target"][2] = bad
    terms = loss(**arguments, reduction="none")
    if loss is fusedloss.proxy_anchor_loss:
        assert terms.isnan().all()
    else:
        assert terms.isnan().nonzero().tolist() == [[2]]
        others = torch.arange(9) != 2
        torch.testing.assert_close(terms[others], good[others], rtol=1e-6, atol=0)  # walked in another order
    assert loss(**arguments).isnan()


@pytest.mark.parametrize("loss", WITH_CLASSES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_targets_of_any_integer_dtype_are_the_same_classes(backend, device, loss, dtype):
    arguments = {k: v.to(device) for k, v in example(loss).items()}
    narrow = arguments | dict(target=arguments["target"].to(dtype))
    assert torch.equal(loss(**narrow), loss(**arguments))


@pytest.mark.parametrize("bias", [[0.0], torch.zeros(7).long(), torch.zeros(6), torch.zeros(7, 1), 1.0, True], ids=str)
def test_a_bias_that_does_not_fit_is_an_error(bias):
    with pytest.raises((TypeError, ValueError), match=r"^bias must .*got"):
        fusedloss.linear_cross_entropy_loss(**example(fusedloss.linear_cross_entropy_loss), bias=bias)


@pytest.mark.parametrize("weight", [-1.0, math.nan, "1", torch.tensor(1.0)], ids=str)
def test_a_weight_of_islands_that_is_no_number_is_an_error(weight):
    with pytest.raises((TypeError, ValueError), match=r"^weight must be .*got"):
        fusedloss.island_loss(**example(fusedloss.island_loss), weight=weight)


# -------------------------------------------------------------------------------------------------------------- modules


def modules(**options):
    for loss in WITH_CLASSES:
        module = next(m for m in vars(fusedloss).values() if getattr(m, "function", None) is loss)
        [name] = CATALOG[loss.__name__].named(Role.CLASSES)
        yield loss, name, module(7, 5, **options)


def test_modules_own_one_row_a_class():
    for _, name, module in modules():
        assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {name: (7, 5)}
        assert repr(module).startswith(f"{type(module).__name__}(7, 5, ")
        assert module.__class__(3, 2, dtype=torch.bfloat16, device="meta").state_dict()[name].dtype == torch.bfloat16
        lengths = module.__class__(500, 64).state_dict()[name].norm(dim=1)
        assert 0.9 < lengths.mean() < 1.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_parameters_keep_their_dtype_and_serve_rows_of_any(dtype, own):
    for loss, name, module in modules(dtype=own):
        arguments = example(loss)
        x, before = arguments["embeddings"].to(dtype).requires_grad_(), getattr(module, name).detach().clone()
        parameter = getattr(module, name)
        value = module(x, arguments["target"])
        value.backward()
        assert getattr(module, name) is parameter and parameter.dtype == own and torch.equal(parameter, before)
        assert parameter.grad.dtype == own and x.grad.dtype == dtype
        assert torch.equal(value, loss(x, before.to(dtype), arguments["target"]))


def test_parameters_keep_their_dtype_under_autocast():
    for loss, name, module in modules():
        arguments = example(loss)
        with torch.autocast("cpu", torch.bfloat16):
            module(arguments["embeddings"], arguments["target"]).backward()
        assert getattr(module, name).dtype == getattr(module, name).grad.dtype == torch.float32


def test_a_module_is_restored_from_its_state_dict(tmp_path):
    for loss, name, module in modules():
        torch.save(module.state_dict(), tmp_path / "state")
        fresh = type(module)(7, 5)
        arguments = example(loss)
        arguments.pop(name)
        assert not torch.equal(fresh(**arguments), module(**arguments))
        fresh.load_state_dict(torch.load(tmp_path / "state"))
        assert torch.equal(fresh(**arguments), module(**arguments))


def test_a_module_is_trained(backend, device):
    torch.manual_seed(0)
    for loss, name, module in modules():
        arguments = {k: v.to(device) for k, v in example(loss).items() if k != name}
        module.to(device)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.001)
        before = module(**arguments)
        before.backward()
        optimizer.step()
        assert module(**arguments) < before


def test_a_linear_module_may_have_a_bias():
    module = fusedloss.LinearCrossEntropyLoss(7, 5, bias=True, dtype=torch.float64)
    assert module.state_dict().keys() == {"weight", "bias"} and not module.bias.count_nonzero()
    x, target = batch(9, 5)[0], torch.arange(9) % 7
    want = F.cross_entropy(F.linear(x, module.weight), target)
    torch.testing.assert_close(module(x, target), want)
    module(x, target).backward()
    assert module.bias.grad.count_nonzero()
    given = nn.Parameter(torch.ones(7))
    assert fusedloss.LinearCrossEntropyLoss(7, 5, bias=given).bias is given and given.min() == 1
    assert fusedloss.LinearCrossEntropyLoss(7, 5, bias=False).bias is None


def test_weights_of_classes_are_saved_and_moved_with_a_module():
    weight = torch.arange(1.0, 6.0)
    module = fusedloss.CrossEntropyLoss(weight=weight)
    assert module.state_dict().keys() == {"weight"} and not list(module.parameters())
    assert module.double().weight.dtype == torch.float64
    z, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(module(z, target), F.cross_entropy(z, target, weight))
