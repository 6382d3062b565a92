"""What the catalog says about every loss is true: its tensors, its kernels, what it folds, and what its module owns."""

import ast
import inspect
import json
from functools import partial

import pytest
import torch

import fusedloss
from bench import files
from bench.workloads import CASES
from fusedloss import ops, reference
from fusedloss.backends.request import PIECES
from fusedloss.losses.catalog import CATALOG, Role, find
from fusedloss.tools.workloads import Workload, arguments
from tests.grid import LOSSES, example

# The family of each function of `ops`.
FAMILIES = {
    "close": "folds",
    "fold": "folds",
    "fold_triplets": "triplets",
    "rank": "ranking",
    "mine": "mined",
    "hard_triplets": "mined",
    "listed_distances": "rows",
    "mined_distances": "mined",
    "to_centers": "mined",
    "row_distances": "rows",
    "fold_logits": "logits",
    "fold_elements": "elements",
}
OF_ALL_PAIRS = {"close", "fold", "fold_triplets", "hard_triplets", "mine", "rank"}
MODULES = [m for m in vars(fusedloss).values() if inspect.isclass(m) and hasattr(m, "function")]

GALLERY, RESULTS = files.ROOT / "docs" / "losses", files.ROOT / "bench" / "results"
# What measures a loss: a case where all pairs are compared; the overhead of a call where a row is compared with few.
COMPARED = {case.loss for case in CASES.values()}
OVERHEAD = json.loads(max(RESULTS.glob("overhead-*.json")).read_text())["overhead"]
TIMED = {row["loss"] for row in OVERHEAD}


def called_in_tests():
    """The functions of fusedloss that a test has by name, as `fusedloss.x` or, if it was imported, as `x`."""
    for path in (files.ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fusedloss":
                yield node.attr


CALLED = set(called_in_tests())


@pytest.mark.parametrize("name", CATALOG)
def test_it_is_everywhere_where_a_loss_belongs(name):
    """Other tests check some of these places more closely: a reference's signature, the rows of a compile report."""
    loss = CATALOG[name]
    places = {
        "module": loss.function in {module.function for module in MODULES},
        "reference": hasattr(reference, name),
        "page in docs/losses": (GALLERY / f"{name}.md").exists(),
        "benchmark": name in COMPARED or (loss.products is None and name in TIMED),
        "compile report": (RESULTS / "compiled" / f"{name}.csv").exists(),
        "test of its own": name in CALLED,
    }
    missing = [place for place, found in places.items() if not found]
    assert not missing, f"{name} has no {', no '.join(missing)}"


def test_every_public_loss_is_in_the_catalog_and_nothing_else():
    assert {loss.function for loss in CATALOG.values()} == set(LOSSES)
    assert all(loss.function.__name__ == name for name, loss in CATALOG.items())


@pytest.mark.parametrize("name", CATALOG)
def test_its_tensors_are_the_parameters_that_are_no_options(name):
    function = CATALOG[name].function
    options = function.__kwdefaults__.keys() - {name for name, role in CATALOG[name].tensors.items() if role.optional}
    tensors = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.name not in options}
    assert list(CATALOG[name].tensors) == list(tensors)
    assert all(isinstance(role, Role) for role in CATALOG[name].tensors.values())
    optional = [name for name, role in CATALOG[name].tensors.items() if role.optional]
    assert optional == [name for name, default in tensors.items() if default is None]
    assert all(default in (None, inspect.Parameter.empty) for default in tensors.values())
    assert list(CATALOG[name].required) == [name for name in tensors if name not in optional]


@pytest.mark.parametrize("name", CATALOG)
def test_it_calls_the_ops_of_its_family_and_folds_its_pieces(name, monkeypatch):
    called, folded = set(), set()

    def spy(op, function, *args, **kwargs):
        called.add(op)
        if op in ("close", "fold"):
            folded.add(args[1])
        return function(*args, **kwargs)

    assert set(FAMILIES) == set(ops.__all__) - {"Of", "closes", "minable", "of"}
    for op in FAMILIES:
        monkeypatch.setattr(ops, op, partial(spy, op, getattr(ops, op)))
    loss = CATALOG[name]
    for options in ({}, *loss.variants):
        loss.function(**example(loss.function, sub_centers=options.get("sub_centers", 1)), **options)
    assert {FAMILIES[op] for op in called} == {loss.family}
    assert folded == set(loss.pieces) <= PIECES.keys()
    assert (loss.products is not None) == bool(OF_ALL_PAIRS & called)


@pytest.mark.parametrize("name", CATALOG)
def test_its_variants_change_options_that_it_has(name):
    loss = CATALOG[name]
    for options in loss.variants:
        assert options and not {*options} - {*loss.function.__kwdefaults__}
        assert all(loss.function.__kwdefaults__[option] != value for option, value in options.items())


@pytest.mark.parametrize("name", [name for name, loss in CATALOG.items() if loss.family == "folds"])
def test_the_shape_of_its_scores_is_that_of_the_fold(name, monkeypatch):
    """The two sides in either order, since classes may be the anchors."""
    loss, shapes = CATALOG[name], []

    def spy(function, batch, *args, **kwargs):
        shapes.append(sorted((len(batch.x), len(batch.y_labels))))
        return function(batch, *args, **kwargs)

    for op in ("close", "fold"):
        monkeypatch.setattr(ops, op, partial(spy, getattr(ops, op)))
    loss.function(**arguments(Workload(name, 12, 8, "fp32", classes=7), "cpu"))
    assert shapes and all(shape == sorted(loss.sides(12, 7)) for shape in shapes)


def test_a_loss_is_found_by_its_function_its_module_and_a_partial_of_either():
    assert {m.function for m in MODULES} == set(LOSSES)
    for loss in CATALOG.values():
        assert find(loss.function) is find(partial(partial(loss.function), reduction="sum")) is loss
    for module in MODULES:
        owned = CATALOG[module.function.__name__].named(Role.CLASSES)
        made = module(*[3, 2][: 2 * len(owned)])
        assert find(module) is find(made) is find(partial(made, a=1)) is CATALOG[module.function.__name__]
        assert [name for name, _ in made.named_parameters()] == owned


def test_what_is_no_loss_of_fusedloss_is_not_found():
    for other in (fusedloss.hardest_pairs, reference.supcon_loss, partial(len), torch.nn.CrossEntropyLoss(), None):
        assert find(other) is None
