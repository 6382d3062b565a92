"""Every bad input is an error that names the argument and says what was seen."""

import math

import pytest
import torch

import fusedloss
from tests.grid import LOSSES, example

OPTIONS = {
    "metric": ["minkowski", None, 2],
    "reduction": ["average", None],
    "similar": [2, "1"],
    "power": [3, 1.5],
    "positives": ["semihard", "hard"],
    "negatives": ["farthest", None],
    "margin": [math.nan, math.inf, -2.0],
    "pos_margin": [math.nan, math.inf, -0.5],
    "neg_margin": [math.nan, -math.inf, -0.5],
    "eps": [math.nan, -1e-6],
}
WRONG_TYPES = ["1", True, torch.ones(2), torch.tensor(1), None]


def takes(name):
    return [loss for loss in LOSSES if name in loss.__kwdefaults__]


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [(loss, name, v) for name, values in OPTIONS.items() for loss in takes(name) for v in values],
)
def test_an_unknown_option_or_a_number_out_of_range_is_a_value_error(loss, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*got"):
        loss(**example(loss), **{name: value})


@pytest.mark.parametrize("value", WRONG_TYPES, ids=repr)
@pytest.mark.parametrize(
    ("loss", "name"), [(loss, name) for name in ("margin", "pos_margin", "neg_margin", "eps") for loss in takes(name)]
)
def test_a_number_of_the_wrong_type_is_a_type_error(loss, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be .*got"):
        loss(**example(loss), **{name: value})


@pytest.mark.parametrize("name", ["metric", "positives", "negatives"])
def test_hardest_pairs_checks_its_options(name):
    with pytest.raises(ValueError, match=f"^{name} must be one of .*'nearest'"):
        fusedloss.hardest_pairs(torch.ones(2, 2), torch.arange(2), **{name: "nearest"})


def rows_of(loss):
    """The floating arguments of a loss, the first of which the others are compared with."""
    return [name for name, v in example(loss, refs=True).items() if v.is_floating_point()]


@pytest.mark.parametrize(("loss", "name"), [(loss, name) for loss in LOSSES for name in rows_of(loss)])
def test_rows_of_the_wrong_type_rank_or_dtype_are_errors(loss, name):
    arguments = example(loss, refs=True)
    x = arguments[name]
    for wrong, error in [
        (x.tolist(), TypeError),
        (x.long(), TypeError),
        (x.to(torch.complex64), TypeError),
        (x[0], ValueError),
        (x[None], ValueError),
        (x[:, :0], ValueError),
    ]:
        with pytest.raises(error, match=f"^{name} must "):
            loss(**{**arguments, name: wrong})


@pytest.mark.parametrize(("loss", "name"), [(loss, name) for loss in LOSSES for name in rows_of(loss)[1:]])
def test_rows_that_do_not_fit_the_first_are_errors(loss, name):
    arguments = example(loss, refs=True)
    x = arguments[name]
    wrong = [(x[:, :-1], ValueError), (x.double(), TypeError), (x.half(), TypeError), (x.to("meta"), ValueError)]
    if not name.startswith("ref_"):
        wrong.append((x[:-1], ValueError))
    for value, error in wrong:
        with pytest.raises(error, match=f"^{name} must have the|^{name} must be on"):
            loss(**{**arguments, name: value})


@pytest.mark.parametrize(
    ("loss", "name"),
    [(loss, name) for loss in LOSSES for name in example(loss, refs=True) if name not in rows_of(loss)],
)
def test_labels_and_targets_that_do_not_fit_are_errors(loss, name):
    arguments = example(loss, refs=True)
    labels = arguments[name]
    wrong = [
        (labels.tolist(), TypeError),
        (labels[:-1], ValueError),
        (labels[:, None], ValueError),
        (labels.sum(), ValueError),
        (labels.to("meta"), ValueError),
    ]
    if name != "target":
        wrong += [(labels.float(), TypeError), (labels.bool(), TypeError), (labels.to(torch.complex64), TypeError)]
    for value, error in wrong:
        with pytest.raises(error, match=f"^{name} must .*got"):
            loss(**{**arguments, name: value})


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "ref_labels" in example(loss, refs=True)])
@pytest.mark.parametrize("missing", ["ref_labels", "ref_embeddings"])
def test_references_come_with_their_labels(loss, missing):
    arguments = example(loss, refs=True)
    del arguments[missing]
    with pytest.raises(ValueError, match=f"^{missing} must be given together with"):
        loss(**arguments)


@pytest.mark.parametrize("choose", [fusedloss.set_backend, lambda name: fusedloss.use_backend(name).__enter__()])
def test_an_unknown_backend_is_an_error_and_changes_nothing(choose):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'blocked', got 'cuda'"):
        choose("cuda")
    assert fusedloss.ops._selected == "auto"


def test_the_triton_backend_refuses_float64():
    with fusedloss.use_backend("triton"), pytest.raises(ValueError, match=r"backend 'triton' needs .*float64"):
        fusedloss.pairwise_contrastive_loss(torch.ones(2, 2).double(), torch.arange(2))


def test_the_triton_backend_refuses_cpu_tensors_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with fusedloss.use_backend("triton"), pytest.raises(ValueError, match=r"backend 'triton' needs .*on cpu"):
        fusedloss.pairwise_contrastive_loss(torch.ones(2, 2), torch.arange(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_double_backward_is_a_clear_error(backend, device, loss):
    arguments = {name: v.to(device) for name, v in example(loss).items()}
    rows = next(v.requires_grad_() for v in arguments.values() if v.is_floating_point())
    (grad,) = torch.autograd.grad(loss(**arguments), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        grad.sum().backward()
