"""The shape of the project: imports go one way, triton is optional, every loss is specified and its docstring runs."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedloss
from fusedloss import losses, reference

ROOT = Path(fusedloss.__file__).parent.parent
FUNCTIONS = [
    f for f in vars(fusedloss).values() if inspect.isfunction(f) and f.__module__.startswith("fusedloss.losses")
]

# What each layer may import of this package. The rest of fusedloss is not restricted.
LAYERS = {
    "kernels": set(),
    "fusedloss/reference.py": set(),
    "fusedloss/blocked.py": set(),
    "fusedloss/checks.py": set(),
    "fusedloss/launch.py": {"kernels"},
    "fusedloss/ops.py": {"launch", "blocked", "checks"},
    "fusedloss/losses": {"checks", "ops", "losses"},
    "fusedloss/modules.py": {"losses"},
}


def imported(path):
    """(top-level packages, modules of fusedloss) that a file imports. A relative import of kernels stays in kernels."""
    package = path.relative_to(ROOT).parts[:-1]
    outside, inside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [alias.name for alias in node.names] if len(base) < 3 and not node.module else [""]
            inside |= {([p for p in [*base, name] if p] + [""])[1 if base[0] == "fusedloss" else 0] for name in names}
    return outside - set(sys.stdlib_module_names), inside


def files(part):
    return sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / part]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    outside_allowed = {"triton"} if layer == "kernels" else {"torch"}
    for path in files(layer):
        outside, inside = imported(path)
        assert outside <= outside_allowed, f"{path.name} imports {outside}"
        assert inside <= LAYERS[layer] | ({"kernels"} if layer == "kernels" else set()), f"{path.name} imports {inside}"


def test_kernels_import_nothing_but_triton_and_their_siblings():
    for path in files("kernels"):
        modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert all((ROOT / "kernels" / f"{m}.py").exists() for m in modules - {"typing"}), path.name
        plain = {a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
        assert plain <= {"os", "triton", "triton.language"}, path.name


def test_kernels_is_a_relative_symlink_without_an_init():
    link = ROOT / "fusedloss" / "kernels"
    assert link.is_symlink() and link.readlink() == Path("../kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as if it were not installed: its import fails and find_spec finds nothing
import torch, fusedloss
x = torch.randn(9, 5, requires_grad=True)
fusedloss.batch_hard_triplet_loss(x, torch.arange(9) % 3).backward()
fusedloss.PairwiseContrastiveLoss()(x, torch.arange(9) % 3).backward()
assert x.grad.count_nonzero()
"""


def test_losses_work_without_triton():
    found = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_is_specified_in_the_reference_with_its_signature(function):
    specified = inspect.signature(getattr(reference, function.__name__)).parameters
    public = inspect.signature(function).parameters
    assert [(p.name, p.kind, p.default) for p in specified.values()] == [
        (p.name, p.kind, p.default) for p in public.values()
    ]


def test_public_names_are_sorted_and_exist():
    assert fusedloss.__all__ == sorted(fusedloss.__all__)
    assert all(hasattr(fusedloss, name) for name in fusedloss.__all__)
    assert {f.__name__ for f in FUNCTIONS} <= set(fusedloss.__all__)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(losses.__path__)])
def test_docstring_examples_hold(name):
    module = importlib.import_module(f"fusedloss.losses.{name}")
    result = doctest.testmod(module, extraglobs=dict(torch=torch))
    assert result.failed == 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_an_example_and_an_equivalent(function):
    assert ">>>" in function.__doc__
    assert "Equivalent to" in function.__doc__
