"""Losses of given logits: exact as eager over covering grids, equal to torch and the published formulas."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from fusedloss.tools.measure import measure
from tests.compare import check, differentiate
from tests.grid import cases, in_full, running, unreadable

# Samples, classes, places: ragged for tiles of any size; one class, fewer and more than a tile has, one place or many.
SHAPES = ((23, 37), (5, 1), (3, 211), (7, 5, 3), (2, 37, 3, 5), (1, 3, 41))
REDUCTIONS = ("mean", "sum", "none")
PLANS = ("default", "small", "split")
CLASS_LOSSES = [fusedloss.cross_entropy_loss, fusedloss.focal_loss]
ON_CLASSES = dict(
    shape=SHAPES,
    reduction=REDUCTIONS,
    weight=(False, True),
    ignored=(False, True),
    last=(False, True),
    left_out=(False, True),
)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on_classes(case):
    """Logits in a memory format, the classes of their rows and the options of a case."""
    shape = case["shape"]
    z = 3 * normal(*shape)
    target = normal(*shape, seed=1).argmax(1)
    if case["left_out"]:  # a third of the classes, but not the row's own nor the one after it
        out = normal(*shape, seed=4) < -0.4
        for kept in (target, (target + 1) % shape[1]):
            out.scatter_(1, kept.unsqueeze(1), False)
        z = z.masked_fill(out, -torch.inf)
    if case["ignored"]:
        target.view(-1)[1::3] = -7
        for first, bad in ((1, torch.nan), (4, torch.inf)):
            rows = torch.zeros_like(target, dtype=torch.bool)
            rows.view(-1)[first::6] = True
            z = z.masked_fill(rows.unsqueeze(1), bad)
    if case["last"]:  # classes side by side in memory
        z = z.movedim(1, -1).contiguous().movedim(-1, 1)
    options = dict(reduction=case["reduction"], ignore_index=-7)
    if case["weight"]:
        options |= dict(weight=normal(shape[1], seed=2).abs() + 0.1)
    return dict(logits=z, target=target) | options


# One class leaves nothing to learn, and the loss is 0: there is nothing to compare unless smoothed probabilities do.
def compares(case):
    return case["shape"][1] > 1


@cases(
    ON_CLASSES | dict(smoothing=(0.0, 0.1, 1.0), probabilities=("no", "constant", "trained")),
    blocked=3,
    triton=2,
    plans=PLANS,
)
def test_cross_entropy_is_as_exact_as_eager(backend, case):
    smoothing, probabilities = case["smoothing"], case["probabilities"] != "no"
    case |= dict(left_out=case["left_out"] and not smoothing, ignored=case["ignored"] and not probabilities)
    arguments = on_classes(case) | dict(label_smoothing=smoothing)
    trained = case["probabilities"] == "trained" and smoothing < 1
    if probabilities:
        shares = (arguments["logits"] + 2 * normal(*case["shape"], seed=3)).softmax(1)  # 0 where the logit is -inf
        arguments |= dict(target=0.5 * shares if case["shape"][1] == 1 else shares)  # of one class: not all of it
    if not compares(case):
        return one_class(backend, case, fusedloss.cross_entropy_loss, arguments)
    with running(backend, case["plan"]) as device:
        fixed = ["weight"] if trained else ["target", "weight"]
        check(fusedloss.cross_entropy_loss, arguments, case["dtype"], device, constant=fixed)


def one_class(backend, case, loss, arguments):
    """The only class is certain."""
    z = arguments.pop("logits")
    with running(backend, case["plan"]) as device:
        z = z.to(device, case["dtype"]).requires_grad_()
        value = loss(z, **{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()})
        value.sum().backward()
    assert value.abs().max() < 1e-6 and z.grad.abs().max() < 1e-6


@cases(ON_CLASSES | dict(gamma=(0.0, 0.5, 2.0)), blocked=3, triton=2, plans=PLANS)
def test_focal_is_as_exact_as_eager(backend, case):
    # With few competitors p rounds to 1 in bfloat16, where eager's gradient is NaN for gamma below 1.
    case |= dict(left_out=case["left_out"] and case["gamma"] != 0.5)
    arguments = on_classes(case) | dict(gamma=case["gamma"])
    if not compares(case):
        return one_class(backend, case, fusedloss.focal_loss, arguments)
    with running(backend, case["plan"]) as device:
        check(fusedloss.focal_loss, arguments, case["dtype"], device, constant=["weight"])


def hard(*shape):
    return (normal(*shape, seed=1) > 0).long()


def soft(*shape):
    return normal(*shape, seed=1).sigmoid()


ELEMENTS = dict(shape=((7,), (11, 5), (3, 37, 5), (1, 1)), reduction=REDUCTIONS, target=(hard, soft))


def factor(kind, shape, seed):
    own = {"none": None, "scalar": (), "columns": shape[-1:], "rows": (*shape[:-1], 1), "all": shape}[kind]
    return None if own is None else normal(*own, seed=seed).abs() + 0.1


@cases(
    ELEMENTS | dict(weight=("none", "scalar", "columns", "rows", "all"), pos_weight=("none", "columns", "rows", "all")),
    blocked=3,
    triton=2,
    plans=PLANS,
)
def test_binary_cross_entropy_is_as_exact_as_eager(backend, case):
    shape = case["shape"]
    arguments = dict(logits=3 * normal(*shape), target=case["target"](*shape), reduction=case["reduction"])
    for seed, name in enumerate(("weight", "pos_weight")):
        arguments |= {name: factor(case[name], shape, seed)}
    if case["weight"] == "scalar":  # the comparison would take it for a number that is learned
        arguments |= dict(weight=arguments["weight"].view(1))
    fixed = ["target", "weight", "pos_weight"]
    with running(backend, case["plan"]) as device:
        check(fusedloss.binary_cross_entropy_loss, arguments, case["dtype"], device, constant=fixed)


@cases(ELEMENTS | dict(alpha=(-1, 0.25, 1.0), gamma=(0.0, 0.5, 1.0, 2.0, 3.5)), blocked=3, triton=2, plans=PLANS)
def test_sigmoid_focal_is_as_exact_as_eager(backend, case):
    shape = case["shape"]
    z = normal(*shape) if shape == (1, 1) else 3 * normal(*shape)  # its only gradient is no subnormal float16
    arguments = dict(logits=z, target=case["target"](*shape), reduction=case["reduction"])
    arguments |= dict(alpha=case["alpha"], gamma=case["gamma"])
    if shape == (1, 1):  # alpha = 1 has no negatives
        arguments["target"] = torch.ones_like(arguments["target"])
    with running(backend, case["plan"]) as device:
        check(fusedloss.sigmoid_focal_loss, arguments, case["dtype"], device, constant=["target"])


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize(
    ("backend", "shape"),
    [
        *(("blocked", shape) for shape in ((13, 7), (5, 7, 3), (2, 7, 3, 4))),
        ("triton", (5, 7, 3)),
        *in_full(("triton", (13, 7)), ("triton", (2, 7, 3, 4))),
    ],
    ids=str,
)
def test_cross_entropy_is_torchs_over_every_combination_of_options(backend, device, kind, shape):
    given = on_classes(dict(shape=shape, reduction="mean", weight=True, ignored=False, last=False, left_out=False))
    z, target, weight = given["logits"].float(), given["target"], given["weight"].float()
    target.view(-1)[1::3] = -7
    target = normal(*shape, seed=3).softmax(1).float() if kind == "probabilities" else target
    ignored = (-7, 2, -100) if kind == "indices" else (-100,)
    for ignore_index, w, smoothing, reduction in itertools.product(ignored, (None, weight), (0, 0.3, 1), REDUCTIONS):
        own = target.where(target != -7, 1) if ignore_index != -7 and kind == "indices" else target
        options = dict(ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction)
        ours = partial(fusedloss.cross_entropy_loss, target=own.to(device), **options)
        theirs = partial(F.cross_entropy, target=own, **options)
        on_device = None if w is None else w.to(device)
        found = differentiate(lambda z, f=ours, w=on_device: f(z, weight=w), dict(z=z), torch.float32, device, ())
        want = differentiate(lambda z, f=theirs, w=w: f(z, weight=w), dict(z=z.double()), torch.float32, "cpu", ())
        for name in ("value", "z"):
            torch.testing.assert_close(found[name].cpu(), want[name], rtol=3e-6, atol=1e-6)


def test_probabilities_receive_their_gradient_also_from_overwritten_logits(backend, device):
    x, q = normal(3, 5).float().to(device).requires_grad_(), normal(3, 5, seed=1).softmax(1).float().to(device)
    q.requires_grad_()
    want = torch.autograd.grad(F.cross_entropy(2 * x, q, label_smoothing=0.1), (x, q))
    loss = fusedloss.cross_entropy_loss(2 * x, q, label_smoothing=0.1, overwrite_logits=True)
    for found, exact in zip(torch.autograd.grad(loss, (x, q)), want, strict=True):
        torch.testing.assert_close(found, exact, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("z", "q", "value", "slopes"),
    [
        ([1e6 + 2, 1e6 - 1], [0.3, 0.7], 2.1485873, [0.0485873, 3.0485873]),
        ([-676.7, -3784.5, -691.1], [1, 0, 5.573903e-7], 8.583810e-6, [5.573901e-7, 3107.8, 14.4]),
        ([-torch.inf, 0.0, 1.0], [0.0, 1.0, 0.0], 1.3132617, [0.0, 1.3132617, 0.3132617]),
    ],
)
def test_probabilities_of_logits_that_are_large_or_left_out_are_exact(backend, device, z, q, value, slopes):
    given = dict(logits=torch.tensor([z]), target=torch.tensor([q]))
    found = differentiate(partial(fusedloss.cross_entropy_loss, reduction="sum"), given, torch.float32, device, ())
    exact = torch.tensor([z], dtype=torch.float64).softmax(1) * sum(q) - torch.tensor([q], dtype=torch.float64)
    assert found["value"].item() == pytest.approx(value, rel=5e-3 if value < 1e-5 else 1e-6)  # of the logits' own bits
    torch.testing.assert_close(found["target"].cpu() / 3, torch.tensor([slopes]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["logits"].cpu() / 3, exact.float(), rtol=1e-5, atol=1e-7)


# In steps and by constants that a dtype adds without rounding.
STEPS = {torch.float64: 2.0**-10, torch.float32: 0.125, torch.float16: 1.0, torch.bfloat16: 1.0}
CONSTANTS = {torch.float64: 2.0**20, torch.float32: -(2.0**20), torch.float16: 1024.0, torch.bfloat16: -192.0}
TARGETS = ("indices", "weighted indices", "probabilities", "weighted probabilities", "focal")


@cases(dict(target=TARGETS, smoothing=(0.0, 0.1, 1.0), shape=((9, 37), (2, 11, 5))), blocked=2, triton=2, plans=PLANS)
def test_a_constant_added_to_the_logits_changes_nothing(backend, case):
    dtype, shape, kind = case["dtype"], case["shape"], case["target"]
    z = (4 * normal(*shape) / STEPS[dtype]).round() * STEPS[dtype]
    weight = normal(shape[1], seed=2).abs().float() + 0.1 if "weighted" in kind else None
    if "probabilities" in kind:
        options, target = dict(label_smoothing=case["smoothing"]), normal(*shape, seed=3).softmax(1)
    else:
        options, target = dict(label_smoothing=case["smoothing"]), normal(*shape, seed=1).argmax(1)
        target.view(-1)[::4] = -100
    loss = fusedloss.focal_loss if kind == "focal" else fusedloss.cross_entropy_loss
    with running(backend, case["plan"]) as device:
        own = partial(loss, weight=weight if weight is None else weight.to(device), reduction="none")
        own = own if kind == "focal" else partial(own, **options)
        plain, moved = (
            differentiate(own, dict(logits=z + c, target=target), dtype, device, ()) for c in (0, CONSTANTS[dtype])
        )
    for name, want in plain.items():
        rounded = torch.finfo(dtype).eps if name != "value" else 0
        torch.testing.assert_close(moved[name], want, rtol=4e-6 + rounded, atol=1e-6)


@pytest.mark.parametrize("kind", ["indices", "smoothed", "probabilities", "focal"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_of_a_row_that_counts_is_never_hidden(backend, device, kind, bad):
    z, target, loss = normal(3, 5).float(), torch.tensor([0, 1, 2], device=device), fusedloss.cross_entropy_loss
    z[1, 3] = bad
    if kind == "probabilities":
        target = F.one_hot(target, 5).float()
    options = dict(label_smoothing=0.1) if kind == "smoothed" else {}
    loss = partial(fusedloss.focal_loss if kind == "focal" else loss, target=target, reduction="none", **options)
    found = differentiate(loss, dict(logits=z), torch.float32, device, ())
    assert (~found["value"].isfinite()).tolist() == [False, True, False]
    assert found["logits"].isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_own_class_that_is_left_out_costs_infinity(backend, device, smoothing):
    z, target = torch.tensor([[-torch.inf, 0.0, 1.0]], device=device), torch.tensor([0], device=device)
    for own in (target, F.one_hot(target, 3).float()):
        assert fusedloss.cross_entropy_loss(z, own, label_smoothing=smoothing) == torch.inf
    assert fusedloss.focal_loss(z, target) == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, dict(alpha=-1, gamma=0.0), dict(gamma=0.5), dict(gamma=2.0)], ids=str)
def test_an_infinite_logit_of_the_right_sign_costs_nothing(backend, device, options, dtype):
    loss = fusedloss.sigmoid_focal_loss if options else fusedloss.binary_cross_entropy_loss
    z = torch.tensor([-torch.inf, torch.inf, 0.5, -torch.inf, torch.nan], dtype=dtype)
    target = torch.tensor([0.0, 1.0, 0.3, 1.0, 0.0], device=device)
    own = partial(loss, target=target, reduction="none", **options)
    found = differentiate(lambda z: own(z)[:3], dict(z=z), dtype, device, ())
    assert not found["value"][:2].count_nonzero() and not found["z"][:2].count_nonzero()
    assert found["value"][2] > 0 and found["z"][2].isfinite()
    assert own(z.to(device))[3] == torch.inf and own(z.to(device))[4].isnan()
    assert loss(z[:3].to(device), target[:3], **options) > 0


def test_focal_with_gamma_0_is_cross_entropy_and_binary_cross_entropy_that_of_two_classes(backend, device):
    z, target, weight = (t.to(device) for t in (normal(9, 5).float(), torch.arange(9) % 5, torch.arange(1.0, 6.0)))
    for options in ({}, dict(weight=weight), dict(ignore_index=2), dict(reduction="none")):
        found = fusedloss.focal_loss(z, target, gamma=0.0, **options)
        torch.testing.assert_close(found, fusedloss.cross_entropy_loss(z, target, **options), rtol=0, atol=1e-6)
    binary, positive = z[:, 0], target % 2
    found = fusedloss.binary_cross_entropy_loss(binary, positive)
    two = torch.stack([torch.zeros_like(binary), binary], 1)
    torch.testing.assert_close(found, fusedloss.cross_entropy_loss(two, positive), rtol=0, atol=1e-6)
    plain = fusedloss.sigmoid_focal_loss(binary, positive, alpha=-1, gamma=0.0)
    torch.testing.assert_close(plain, found, rtol=0, atol=1e-6)


def published_sigmoid_focal(logits, target, alpha, gamma):
    """The formula of RetinaNet and torchvision, in the logarithms of p and 1 - p, so that nothing is 0."""
    target = target.to(logits.dtype)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    log_u = torch.logaddexp(log_p + (1 - target).log(), log_q + target.log())  # u = 1 - p_t
    alpha_t = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1
    return -alpha_t * (gamma * log_u).exp() * (target * log_p + (1 - target) * log_q)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [-1, 0.0, 0.25, 1.0])
def test_sigmoid_focal_is_exact_and_finite_at_saturated_logits(backend, device, alpha, gamma):
    z = torch.tensor([0.0, 1e-3, 1.0, 10.0, 17.0, 40.0, 80.0, 100.0, 300.0])
    z = torch.cat([-z, z]).repeat(3, 1)
    target = torch.tensor([[0.0], [1.0], [0.3]]).expand_as(z)
    want = differentiate(
        lambda z: published_sigmoid_focal(z, target.double(), alpha, gamma), dict(z=z), torch.float64, "cpu", ()
    )
    ours = partial(fusedloss.sigmoid_focal_loss, alpha=alpha, gamma=gamma, reduction="none")
    for hard_target in (target, target[:2].bool()):
        rows = len(hard_target)
        found = differentiate(
            lambda z, t=hard_target: ours(z, t.to(device)), dict(z=z[:rows]), torch.float32, device, ()
        )
        for name in ("value", "z"):
            exact = want[name][:rows]
            assert found[name].isfinite().all()
            error = (found[name].double().cpu() - exact).abs()
            bound = 2e-6 + 1.2e-7 * exact.abs().clamp(min=1e-38).log().abs()  # of an exponential, that of its exponent
            assert (error <= bound * exact.abs() + 1e-37).all(), name  # logits of 300 lie beyond the smallest float


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 2.0])
def test_focal_is_exact_and_finite_where_the_class_is_certain(backend, device, gamma):
    z = torch.zeros(10, 4)
    z[:, 1] = torch.tensor([-300.0, -40.0, -1.0, 0.0, 1.0, 17.0, 40.0, 80.0, 200.0, 2000.0])  # 1 - p = 0 in float64
    d = math.log(3) - z[:, 1].double()
    exact = (gamma * F.logsigmoid(d)).exp() * -F.logsigmoid(-d)
    ours = partial(fusedloss.focal_loss, target=torch.ones(10, dtype=torch.long, device=device), gamma=gamma)
    found = differentiate(lambda z: ours(z, reduction="none"), dict(z=z), torch.float32, device, ())
    torch.testing.assert_close(found["value"].double().cpu(), exact, rtol=2e-6, atol=1e-44)
    assert found["z"].isfinite().all()
    rates = -(gamma * F.logsigmoid(d)).exp() * (gamma * d.neg().sigmoid() * -F.logsigmoid(-d) + d.sigmoid())
    upstream = torch.arange(10) % 5 + 0.5  # as `differentiate` has it
    torch.testing.assert_close(found["z"][:, 1].double().cpu(), upstream * rates, rtol=3e-6, atol=1e-44)


def test_a_loss_below_the_last_bit_of_a_logit_is_exact(backend, device):
    z = torch.zeros(3, 4)
    z[:, 2] = torch.tensor([16.7, 40.0, 80.0])
    found = fusedloss.cross_entropy_loss(z.to(device), torch.full((3,), 2, device=device), reduction="none")
    torch.testing.assert_close(found.cpu(), 3 * (-z[:, 2].double()).exp().float(), rtol=2e-6, atol=0)
    assert not F.cross_entropy(z, torch.full((3,), 2), reduction="none")[1:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_16_bit_logits_are_computed_in_float32(backend, device, dtype):
    z, target = (3 * normal(11, 37)).to(dtype), torch.arange(11) % 37
    found = fusedloss.cross_entropy_loss(z.to(device), target.to(device))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), F.cross_entropy(z.double(), target).float(), rtol=1e-6, atol=0)


def test_classes_left_out_with_minus_infinity_have_no_share(backend, device):
    z, target = normal(3, 5).float(), torch.tensor([0, 1, 2])
    z[0, 1] = z[1, 3:] = -torch.inf
    z[2, [0, 1, 3, 4]] = -torch.inf  # nothing competes with the own class
    found = differentiate(
        lambda z: fusedloss.cross_entropy_loss(z, target.to(device), reduction="none"),
        dict(z=z), torch.float32, device, (),
    )  # fmt: skip
    want = differentiate(
        lambda z: F.cross_entropy(z, target, reduction="none"), dict(z=z), torch.float32, "cpu", ()
    )  # fmt: skip
    for name in ("value", "z"):
        torch.testing.assert_close(found[name].cpu(), want[name], rtol=1e-6, atol=1e-7)
    assert found["value"][2] == 0


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_large_logits_of_a_certain_class_have_a_finite_gradient(backend, device, loss):
    z = torch.tensor([[300.0, 500.0, 250.0], [300.0, 395.0, 250.0], [-400.0, -100.0, -500.0]], device=device)
    z.requires_grad_()
    value = loss(z, torch.ones(3, dtype=torch.long, device=device))
    value.backward()
    assert value < 1e-37 and z.grad.abs().max() < 1e-37


def rows_that_do_not_count(loss):
    """All rows ignored, or all of weight 0."""
    target = torch.full((4,), -100)
    return [dict(target=target), dict(target=target.abs() % 3, weight=torch.zeros(3))]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_if_no_row_counts_the_loss_is_zero_with_zero_gradient(backend, device, loss, reduction):
    for given in rows_that_do_not_count(loss):
        z = normal(4, 3).float().to(device).requires_grad_()
        value = loss(z, **{k: v.to(device) for k, v in given.items()}, reduction=reduction)
        value.sum().backward()
        assert not value.count_nonzero() and not z.grad.count_nonzero()
        assert z.grad.isfinite().all()


def test_a_row_that_is_ignored_may_have_any_logits(backend, device):
    z = normal(4, 3).float()
    z[1] = torch.tensor([-torch.inf, 0.0, 200.0])
    target = torch.tensor([0, -100, 2, 1], device=device)
    z = z.to(device).requires_grad_()
    for loss in (fusedloss.cross_entropy_loss, partial(fusedloss.focal_loss, gamma=0.5)):
        (grad,) = torch.autograd.grad(loss(z, target), z)
        assert grad.isfinite().all() and not grad[1].count_nonzero() and grad[0].count_nonzero()


@pytest.mark.parametrize("bad", [3, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_a_class_out_of_range_is_an_error_on_a_cpu(loss, bad):
    with pytest.raises(ValueError, match=rf"^target must be class indices from 0 to 2 or .*\(-100\), got {bad}$"):
        loss(torch.ones(3, 3), torch.tensor([0, bad, 1]))


@pytest.mark.parametrize("bad", [3, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_unseen_a_class_out_of_range_makes_its_own_row_nan_and_reads_nothing(backend, device, loss, bad, monkeypatch):
    unreadable(monkeypatch)
    z, target = normal(3, 3).float().to(device), torch.tensor([0, bad, 1], device=device)
    found = loss(z, target, reduction="none", label_smoothing=0.1) if loss is CLASS_LOSSES[0] else loss(
        z, target, reduction="none"
    )  # fmt: skip
    assert found.isnan().tolist() == [False, True, False]
    assert loss(z, target).isnan()


# ----------------------------------------------------------------------------------------------- overwritten logits


LOSSES = {
    fusedloss.cross_entropy_loss: torch.tensor([0, 4, 2]),
    fusedloss.focal_loss: torch.tensor([0, 4, 2]),
    fusedloss.binary_cross_entropy_loss: torch.eye(3, 5),
    fusedloss.sigmoid_focal_loss: torch.eye(3, 5),
}


@pytest.mark.parametrize("layout", ["rows", "transposed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_overwritten_logits_hold_their_gradient(backend, device, loss, layout):
    x, target = normal(3, 5).float().to(device).requires_grad_(), LOSSES[loss].to(device)
    (want,) = torch.autograd.grad(loss(2 * x, target), x)
    z = 2 * x if layout == "rows" else (2 * x.t()).contiguous().t()
    loss(z, target, overwrite_logits=True).backward()
    assert torch.equal(x.grad, want)
    assert torch.equal(z.detach(), want / 2 if layout == "rows" else 2 * x.detach())  # a copy was overwritten instead
    assert not x.grad.requires_grad


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_overwritten_logits_of_images_hold_their_gradient(backend, device, memory_format):
    x, target = normal(2, 3, 4, 5).float().to(device), normal(2, 3, 4, 5, seed=1).argmax(1).to(device)
    x = x.to(memory_format=memory_format).requires_grad_()
    (want,) = torch.autograd.grad(fusedloss.cross_entropy_loss(2 * x, target), x)
    z = 2 * x
    fusedloss.cross_entropy_loss(z, target, overwrite_logits=True).backward()
    assert torch.equal(x.grad, want) and torch.equal(z.detach(), want / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_overwriting_logits_that_are_needed_again_is_an_error(backend, device, loss):
    x, target = normal(3, 5).float().to(device).requires_grad_(), LOSSES[loss].to(device)
    z = x.exp()  # keeps its result for the backward
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss(z, target, overwrite_logits=True).backward()
    value = loss(2 * x, target, overwrite_logits=True)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_leaf_is_not_overwritten(loss):
    x = torch.ones(3, 5, requires_grad=True)
    for leaf in (x, x.view(3, 5)):
        with pytest.raises(ValueError, match=r"^overwrite_logits must be False for a leaf"):
            loss(leaf, LOSSES[loss], overwrite_logits=True)
    assert loss(x.detach(), LOSSES[loss], overwrite_logits=True) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_double_backward_does_not_overwrite(backend, device, loss):
    x, target = normal(3, 5).float().to(device).requires_grad_(), LOSSES[loss].to(device)
    z = 2 * x
    (grad,) = torch.autograd.grad(loss(z, target, overwrite_logits=True), x, create_graph=True)
    assert torch.equal(z.detach(), 2 * x.detach())
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        grad.sum().backward()


def test_overwriting_works_under_torch_compile(backend, device):
    torch._dynamo.reset()
    x, target = normal(3, 5).float().to(device).requires_grad_(), torch.tensor([0, 4, 2], device=device)

    def step(x):
        return fusedloss.cross_entropy_loss(2 * x, target, overwrite_logits=True)

    (want,) = torch.autograd.grad(step(x), x)
    (found,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)
    assert torch.equal(found, want)


def of_a_projection(n, overwrite):
    """Maker: forward and backward of the cross entropy of n rows of 20,000 logits, which are a result."""
    x, target = torch.randn(n, 1, requires_grad=True), torch.arange(n)
    loss = partial(fusedloss.cross_entropy_loss, overwrite_logits=bool(overwrite))
    return lambda: torch.autograd.grad(loss(x.expand(n, 20_000) + 0.0, target), x)


@pytest.mark.parametrize(("overwrite", "copies"), [(0, 2), (1, 1)])
def test_nothing_of_the_size_of_the_logits_is_kept_but_their_gradient(overwrite, copies):
    found = measure("tests.test_logits:of_a_projection", n=1024, overwrite=overwrite, repeats=1)
    size = 1024 * 20_000 * 4
    assert copies * size < found.peak_bytes + 2**20 and found.peak_bytes < (copies + 0.3) * size


@pytest.mark.parametrize(("backend", "C"), [("blocked", 300_000), ("triton", 80_000), *in_full(("triton", 300_000))])
def test_very_many_classes_equal_torch(backend, C):
    z, target = normal(3, C).float(), torch.tensor([0, C - 1, C // 2])
    with running(backend, "default") as device:
        ours = partial(fusedloss.cross_entropy_loss, target=target.to(device), label_smoothing=0.1)
        found = differentiate(ours, dict(logits=z), torch.float32, device, ())
    want = differentiate(
        lambda logits: F.cross_entropy(logits, target, label_smoothing=0.1), dict(logits=z), torch.float64, "cpu", ()
    )
    for name in ("value", "logits"):
        torch.testing.assert_close(found[name].double().cpu(), want[name], rtol=2e-6, atol=1e-11)


# ----------------------------------------------------------------------------------------------------------- errors


Z, INDEX = torch.ones(3, 4), torch.tensor([0, 1, 2])
BAD = [
    (dict(logits=Z.tolist()), TypeError, "logits must be a tensor, got list"),
    (dict(logits=Z.long()), TypeError, "logits must be float16, bfloat16, float32 or float64, got torch.int64"),
    (dict(logits=Z[0]), ValueError, r"logits must have shape \(N, C, \.\.\.\) with C >= 1, got \(4,\)"),
    (dict(logits=Z[:, :0]), ValueError, r"logits must have shape .*got \(3, 0\)"),
    (dict(target=INDEX.bool()), TypeError, "target must be class indices of an integer dtype, got torch.bool"),
    (dict(target=INDEX[:2]), ValueError, r"target must have shape \(3,\), one class a row, got \(2,\)"),
    (dict(target=[0, 1, 2]), TypeError, "target must be a tensor of class indices, got list"),
    (dict(weight=Z[0].tolist()), TypeError, "weight must be a tensor, got list"),
    (dict(weight=Z[0].long()), TypeError, "weight must be float16, .*got torch.int64"),
    (dict(weight=Z[0, :3]), ValueError, r"weight must have shape \(4,\), one value a class, got \(3,\)"),
    (dict(weight=Z[0].to("meta")), ValueError, "weight must be on the device of the rows, cpu, got meta"),
    (dict(weight=Z[0].clone().requires_grad_()), ValueError, "weight must not require a gradient"),
]
BAD_PROBABILITIES = [
    (dict(target=Z[:2]), ValueError, r"target must have the shape of logits, \(3, 4\), got \(2, 4\)"),
    (dict(target=Z.to("meta")), ValueError, "target must be on the device of logits, cpu, got meta"),
    (dict(target=Z, ignore_index=2), ValueError, "ignore_index must be negative where target has probab.*got 2"),
]
BAD_ELEMENTS = [
    *BAD_PROBABILITIES[:2],
    (dict(target=Z.clone().requires_grad_()), ValueError, "target must not require a gradient"),
    (dict(target=Z.tolist()), TypeError, "target must be a tensor, got list"),
    (dict(target=Z.to(torch.complex64)), TypeError, "target must be real, got torch.complex64"),
    (dict(target=255 * Z.byte()), ValueError, "target must be from 0 to 1 everywhere, got values from 255 to 255"),
    (dict(target=1 - 1.5 * torch.eye(3, 4)), ValueError, "target must be from 0 to 1 .*got values from -0.5 to 1$"),
    (dict(target=torch.full((3, 4), torch.nan)), ValueError, "target must be from 0 to 1 .*got values from nan to nan"),
]
BAD_FACTORS = [
    (
        dict(target=Z, weight=Z[0, :3]),
        ValueError,
        r"weight must broadcast to the shape of logits, \(3, 4\), got \(3,\)",
    ),
    (dict(target=Z, pos_weight=Z[None]), ValueError, r"pos_weight must broadcast .*got \(1, 3, 4\)"),
    (dict(target=Z, pos_weight=2.0), TypeError, "pos_weight must be a tensor, got float"),
    (dict(target=Z, weight=Z.clone().requires_grad_()), ValueError, "weight must not require a gradient"),
]


@pytest.mark.parametrize(
    ("loss", "bad", "error", "message"),
    [
        *((loss, *bad) for loss in CLASS_LOSSES for bad in BAD),
        *((fusedloss.cross_entropy_loss, *bad) for bad in BAD_PROBABILITIES),
        (fusedloss.focal_loss, dict(target=Z), TypeError, "target must be class indices of an integer dtype"),
        *((loss, *bad) for loss in list(LOSSES)[2:] for bad in BAD_ELEMENTS),
        *((fusedloss.binary_cross_entropy_loss, *bad) for bad in BAD_FACTORS),
        (fusedloss.sigmoid_focal_loss, dict(target=Z, alpha=-0.5), ValueError, "alpha must be .*at most 1, got -0.5"),
        (fusedloss.sigmoid_focal_loss, dict(target=Z, alpha=1.5), ValueError, "alpha must be .*at most 1, got 1.5"),
    ],
)
def test_a_bad_input_is_an_error_that_names_it(loss, bad, error, message):
    with pytest.raises(error, match=f"^{message}"):
        loss(**(dict(logits=Z, target=INDEX) | bad))
