"""Closing formulas: the kernels against autograd of their PyTorch forms in float64, from the same states."""

import inspect
import math
from typing import NamedTuple

import pytest
import torch

import fusedloss
from fusedloss import ops
from fusedloss.backends.request import CLOSINGS
from fusedloss.checks import IGNORED, WRONG
from fusedloss.losses import closings as formulas
from fusedloss.losses.reduce import reduce, reduce_rows
from tests.grid import example, running

pytest.importorskip("triton")

from fusedloss.backends.triton.closings import in_two
from fusedloss.backends.triton.launch import padded
from fusedloss.kernels import closings, configs, folds


class Formula(NamedTuple):
    folds: tuple  # of its states
    constants: tuple = ()


ANGLE = 0.5
FORMULAS = {
    "gap": Formula(("sum", "lse")),
    "supcon": Formula(("sum", "lse", "count", "lse")),
    "nca": Formula(("lse", "sum", "count", "lse")),
    "multi_similarity": Formula(("lse", "lse"), (2.0, 50.0)),
    "circle": Formula(("lse", "lse")),
    "lifted": Formula(("lse", "lse")),
    "active": Formula(("sum", "count", "sum", "count")),
    "active_by_kind": Formula(("sum", "count", "sum", "count")),
    "cosface": Formula(("cosine", "lse"), (16.0, 0.35)),
    "arcface": Formula(("cosine", "lse"), (16.0, math.cos(ANGLE), math.sin(ANGLE), ANGLE * math.sin(ANGLE))),
    "proxy_anchor": Formula(("lse", "lse")),
}
BELOW = Formula(("cosine", "lse"), (16.0, math.cos(ANGLE), -math.sin(ANGLE), math.inf))  # an angle below 0
EVERY = [*FORMULAS.items(), ("arcface", BELOW)]


@pytest.fixture
def kernel_device():
    """Where the kernels run: on the CPU in the interpreter."""
    with running("triton", "small") as device:
        yield device


def test_every_closing_formula_is_tested_and_written_twice():
    assert FORMULAS.keys() | {"sums"} == CLOSINGS.keys()
    for name, means in CLOSINGS.items():
        form = getattr(formulas, name)
        states = [torch.ones(2)] * max(2, len(FORMULAS[name].folds) if name in FORMULAS else 0)
        constants = FORMULAS[name].constants if name in FORMULAS else ()
        assert len(form(states, *constants)) == max(means, 1)
        assert means == 0 or inspect.isfunction(getattr(closings, name).fn), "a kernel of the same name"


# What states may be: some are over no pairs, some far from the others, and some differ in their last digits only.
EXTREMES = {
    "sum": (0.0, 1e-30, 3.0, -800.0, 9000.0),
    "lse": (-math.inf, 0.5, -700.0, 9000.0, 9000.0001),
    "count": (0.0, 1.0, 2.0, 1.0, 5000.0),
    "cosine": (0.0, 1.0, -1.0, -0.95, 1.0 - 1e-12),
}


def states_of(formula, n, P, seed=0):
    """Parts of states [P, folds, n] in float64: every pair of extremes of two states, then random ones."""
    g = torch.Generator().manual_seed(seed)
    combined = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    chosen = [combined[:, k % 2] for k in range(len(formula.folds))]
    parts = torch.zeros(P, len(formula.folds), n, dtype=torch.float64)
    share = torch.rand(P, n, generator=g, dtype=torch.float64) + 0.1
    share = share / share.sum(0)
    none = torch.rand(n, generator=g) < 0.25  # rows over no pairs of a kind, in all states of the kind
    for k, (of, extremes) in enumerate(zip(formula.folds, chosen, strict=True)):
        value = 3 * torch.randn(n, generator=g, dtype=torch.float64)
        value = value.tanh() if of == "cosine" else value.abs().round() if of == "count" else value
        if of != "lse":
            value[: len(combined)] = torch.tensor(EXTREMES[of], dtype=torch.float64)[extremes][:n]
            parts[:, k] = value * share
            parts[:, k, : len(combined)] = 0.0
            parts[-1, k, : len(combined)] = value[: len(combined)]
            continue
        value[none] = -math.inf
        value[: len(combined)] = torch.tensor(EXTREMES[of], dtype=torch.float64)[extremes][:n]
        parts[:, k] = value + share.log()
        if P > 1:  # a part over no pairs
            parts[0, k, ::3] = -math.inf
    if "count" in formula.folds and "lse" in formula.folds:  # without positives their log sum exp is -inf, and back
        at = formula.folds.index("count")
        empty = parts[:, at].sum(0) == 0
        parts[:, formula.folds.index("lse"), :] = torch.where(
            empty, -math.inf, parts[:, formula.folds.index("lse")].nan_to_num(neginf=-1.0)
        )
    return parts


def merged(parts, kinds):
    whole = [parts[:, k].logsumexp(0) if kind else parts[:, k].sum(0) for k, kind in enumerate(kinds)]
    return torch.stack(whole)


def finished(name, formula, sides, mean, programs, device, BLOCK=16):
    """The loss and dL/dstates of every side, by `finish`.

    sides: (parts, order, counted, classes, weights) of either; None for what it does not have.
    """
    kinds = tuple(folds.KINDS["lse" if of == "lse" else "sum"] for of in formula.folds)
    means, made, ends = CLOSINGS[name], [], []
    for parts, order, counted, classes, weights in sides:
        n = parts.shape[2]
        anchors = folds.Anchors(*torch.full((2, len(kinds), padded(n)), torch.nan, device=device))
        given = [None if t is None else t.to(device) for t in (order, counted, classes, weights)]
        order, counted, classes, weights = (() if t is None else (t.contiguous(),) for t in given)
        made.append(closings.Closed(parts.to(device).contiguous(), anchors, order, counted, classes, weights))
        ends.append(n)
    loss, by_state = torch.full((), torch.nan, device=device), torch.full((len(kinds),), torch.nan, device=device)
    sums = torch.full((programs, 2 * means), torch.nan, dtype=torch.float64, device=device)
    y = made[1] if len(made) > 1 else ()
    options = dict(MEANS=means, MEAN=mean, BLOCK=BLOCK)
    sizes = (len(sides[0][0]), len(sides[-1][0]), ends[0], ends[-1])
    numbers = in_two(formula.constants)
    closings.finish[(programs,)](
        made[0], y, numbers, kinds, loss, by_state, sums, *sizes, CLOSING=getattr(closings, name), **options
    )  # fmt: skip
    if programs > 1:
        closings.finish_parts[(1,)](sums, kinds, loss, by_state, programs, **options)
    found = []
    for side, (parts, order, *_), n in zip(made, sides, ends, strict=True):
        by = side.anchors.dstates[:, :n].cpu().double()
        rows = torch.arange(n) if order is None else order
        states = merged(parts, kinds)[:, rows]
        rest = (states - states.float().double()).nan_to_num(0.0)  # its digits beyond fp32 are a factor of these
        kept = torch.stack([r if kind else r * 0 for r, kind in zip(rest, kinds, strict=True)])
        by = by * kept.exp() * by_state.cpu().double()[:, None]
        found.append(torch.empty_like(by).index_copy_(1, rows.long(), by))
    return loss.cpu(), found


def wanted(name, formula, sides, mean):
    """The same by autograd of the PyTorch form in float64, as `losses.closings.closed` reduces it."""
    kinds = [of == "lse" for of in formula.folds]
    states = [merged(parts, kinds).requires_grad_() for parts, *_ in sides]
    live = []
    for parts, order, counted, *_ in sides:
        n = parts.shape[2]
        ranks = (
            torch.arange(n) if order is None else torch.empty(n).long().index_copy_(0, order.long(), torch.arange(n))
        )
        live.append(ranks < (n if counted is None else int(counted)))
    both = torch.cat([s[:, of] for s, of in zip(states, live, strict=True)], 1)
    reduction, x = "mean" if mean else "sum", both[0].detach()
    means = getattr(formulas, name)(both.unbind(), *formula.constants)
    *_, classes, weights = sides[0]
    if classes is not None:
        ((terms, _),) = means
        classes = classes[live[0]]
        weights = None if weights is None else weights[live[0]].double()
        loss = reduce_rows(terms if weights is None else weights * terms, reduction, classes, x, weights)
    else:
        loss = sum(reduce(terms, reduction, len(x) if of is None else of.sum(), x, of) for terms, of in means)
    grads = torch.autograd.grad(loss, states)
    return loss.detach(), [g.nan_to_num(0.0, torch.inf, -torch.inf) for g in grads]


def compare(name, formula, sides, mean, programs, device):
    loss, found = finished(name, formula, sides, mean, programs, device)
    want, grads = wanted(name, formula, sides, mean)
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-9, equal_nan=True)
    for by, like in zip(found, grads, strict=True):
        for k, of in enumerate(formula.folds):
            if of != "count":  # a constant
                torch.testing.assert_close(by[k], like[k], rtol=3e-6, atol=1e-9 * float(like.abs().max()))


def plain(parts):
    return parts, None, None, None, None


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(("P", "programs"), [(1, 1), (3, 1), (3, 4)])
@pytest.mark.parametrize(("name", "formula"), EVERY, ids=[*FORMULAS, "arcface below 0"])
def test_value_and_slopes_of_random_and_extreme_states(kernel_device, name, formula, P, programs, mean):
    compare(name, formula, [plain(states_of(formula, 61, P))], mean, programs, kernel_device)


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("name", FORMULAS)
def test_rows_in_another_order_of_which_the_last_do_not_count(kernel_device, name, programs):
    formula, n = FORMULAS[name], 45
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1)).int()
    parts = states_of(formula, n, 2)
    parts[:, :, order[33:].long()] = torch.nan  # whatever an ignored row holds
    side = parts, order, torch.tensor(33, dtype=torch.int32), None, None
    loss, (by,) = finished(name, formula, [side], True, programs, kernel_device)
    assert by[:, order[33:].long()].nan_to_num(0.0).count_nonzero() == 0
    kept = states_of(formula, n, 2)[:, :, order[:33].long()]
    want, (grads,) = wanted(name, formula, [plain(kept)], True)
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-9)
    for k, of in enumerate(formula.folds):
        if of != "count":
            torch.testing.assert_close(by[k, order[:33].long()], grads[k], rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("programs", [1, 2])
@pytest.mark.parametrize("name", ["gap", "cosface", "proxy_anchor"])
def test_the_rows_of_both_sides_are_anchors(kernel_device, name, programs):
    sides = [plain(states_of(FORMULAS[name], n, P, seed=P)) for n, P in ((37, 1), (53, 4))]
    compare(name, FORMULAS[name], sides, True, programs, kernel_device)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gap", "cosface", "arcface"])
def test_rows_have_classes_and_weights(kernel_device, name, weighted, mean):
    n, g = 41, torch.Generator().manual_seed(2)
    classes = torch.randint(0, 3, (n,), generator=g)
    classes[::5] = IGNORED
    weights = torch.rand(n, generator=g) if weighted else None
    sides = [(states_of(FORMULAS[name], n, 2), None, None, classes, weights)]
    compare(name, FORMULAS[name], sides, mean, 2, kernel_device)
    classes[7] = WRONG
    loss, (by,) = finished(name, FORMULAS[name], sides, mean, 1, kernel_device)
    assert loss.isnan(), "a class out of range"
    assert by[:, (classes < 0)].count_nonzero() == 0


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_no_row_that_counts(kernel_device, name, mean):
    formula = FORMULAS[name]
    empty = torch.zeros(2, len(formula.folds), 5, dtype=torch.float64)
    nobody = states_of(formula, 5, 2), None, torch.tensor(0, dtype=torch.int32), None, None
    for side in (nobody, plain(empty[:, :, :0])):
        for programs in (1, 2):
            loss, (by,) = finished(name, formula, [side], mean, programs, kernel_device)
            assert loss == 0 and by.count_nonzero() == 0


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("name", FORMULAS)
def test_nan_shows(kernel_device, name, kind):
    """A state that is NaN is seen in the loss, if the row has pairs of the kind at all."""
    formula = FORMULAS[name]
    if kind >= len(formula.folds) or formula.folds[kind] == "count" or (name, kind) == ("nca", 1):
        pytest.skip("no state, or one that is not used")
    parts = torch.ones(2, len(formula.folds), 20, dtype=torch.float64) / 2
    parts[:, [of == "count" for of in formula.folds]] = 1.0  # of two, so that a mean is taken
    parts[1, kind, 17] = torch.nan
    for programs in (1, 3):
        loss, _ = finished(name, formula, [plain(parts)], True, programs, kernel_device)
        assert loss.isnan()


# A loss of every formula, with the reductions for which it closes.
LOSSES = {
    "gap": ("nt_xent_loss", {}),
    "supcon": ("supcon_loss", {}),
    "nca": ("nca_loss", {}),
    "multi_similarity": ("multi_similarity_loss", {}),
    "circle": ("circle_loss", dict(gamma=4.0)),
    "lifted": ("generalized_lifted_structure_loss", {}),
    "active": ("margin_loss", {}),
    "active_by_kind": ("pairwise_contrastive_loss", dict(reduction="active")),
    "cosface": ("cosface_loss", {}),
    "arcface": ("arcface_loss", {}),
    "proxy_anchor": ("proxy_anchor_loss", {}),
}


@pytest.mark.parametrize("closing", FORMULAS)
def test_a_loss_with_one_program_or_several_is_what_the_pytorch_form_makes_of_the_folds(closing, monkeypatch):
    name, options = LOSSES[closing]
    closed, found = [], []

    def spied(*args, **kwargs):
        closed.append(args[3])
        return close(*args, **kwargs)

    close = ops.close
    with running("triton", "small") as device:
        for alone, replaced in ((1 << 30, spied), (8, spied), (8, lambda *_, **__: None)):
            monkeypatch.setattr(configs, "ALONE", alone)
            monkeypatch.setattr(configs, "CLOSED", 16)
            monkeypatch.setattr(configs, "CLOSERS", 2)
            monkeypatch.setattr(ops, "close", replaced)
            arguments = {k: v.to(device) for k, v in example(getattr(fusedloss, name), 37, 9).items()}
            leaves = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
            value = getattr(fusedloss, name)(**arguments, **options)
            found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    assert closed == [closing] * 2
    for outcome in found[:2]:
        for of, like in zip(outcome, found[2], strict=True):
            torch.testing.assert_close(of, like, rtol=2e-6, atol=2e-6 * float(like.abs().max()))
