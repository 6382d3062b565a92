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

# What each layer may import besides the standard library, of which kernels take two modules. backends finds its own by
# name at run time.
LAYERS = {
    "kernels": ("triton", "kernels."),
    "fusedloss/reference.py": ("torch",),
    "fusedloss/states.py": ("torch",),
    "fusedloss/blocked": ("torch", "fusedloss.backends.dtypes", "fusedloss.backends.blocked."),
    "fusedloss/checks.py": ("torch",),
    "fusedloss/tuning.py": ("torch", "fusedloss.kernels."),
    "fusedloss/launch": (
        "torch",
        "fusedloss.backends.dtypes",
        "fusedloss.backends.triton.tuning",
        "fusedloss.kernels.",
        "fusedloss.backends.triton.",
    ),
    "fusedloss/backends.py": ("torch",),
    "fusedloss/ops.py": (
        "torch",
        "fusedloss.backends.dtypes",
        "fusedloss.backends.triton.tuning",
        "fusedloss.backends.",
    ),
    "fusedloss/logit_ops.py": ("torch", "fusedloss.backends.dtypes", "fusedloss.backends.", "fusedloss.ops."),
    "fusedloss/losses": ("torch", *(f"fusedloss.{m}" for m in ("checks", "logit_ops", "ops", "states", "losses."))),
    "fusedloss/modules.py": ("torch", "fusedloss.losses."),
    "fusedloss/memory_bank.py": ("torch", "fusedloss.checks"),
}


def imported(path):
    """Full names of everything that a file imports."""
    own = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = own[: -node.level] if node.level else ()
            yield from (".".join([*package, *filter(None, [node.module]), alias.name]) for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    standard = {"itertools", "os", "typing"} if layer == "kernels" else sys.stdlib_module_names
    files = sorted((ROOT / layer).glob("*.py")) or [ROOT / layer]
    for path in files:
        for name in imported(path):
            assert name.split(".")[0] in standard or name.startswith(LAYERS[layer]), f"{path.name} imports {name}"


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


@pytest.mark.parametrize("name", ["memory_bank", *(f"losses.{m.name}" for m in pkgutil.iter_modules(losses.__path__))])
def test_docstring_examples_hold(name):
    module = importlib.import_module(f"fusedloss.{name}")
    result = doctest.testmod(module, extraglobs=dict(torch=torch, fusedloss=fusedloss))
    assert result.failed == 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_an_example_and_an_equivalent(function):
    assert ">>>" in function.__doc__
    assert "Equivalent to" in function.__doc__


def code_lines(path, word):
    """Lines of the top-level definitions whose name has the word, and of other lines of tables that have it."""
    text = (ROOT / path).read_text()
    lines, found = text.splitlines(), set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and word in node.name.lower():
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found |= {*range(first, node.end_lineno + 1)}
            if ast.get_docstring(node):
                found -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
        elif isinstance(node, ast.Assign | ast.ImportFrom):
            found |= {i for i in range(node.lineno, node.end_lineno + 1) if word in lines[i - 1].lower()}
    return sum(bool(lines[i - 1].strip()) for i in found)


def test_contributing_has_the_real_line_count_of_its_example():
    counts = {
        path: code_lines(path, "circle")
        for path in (
            "fusedloss/reference.py",
            "kernels/losses.py",
            "fusedloss/launch/folds.py",
            "fusedloss/blocked/losses.py",
            "fusedloss/losses/structured.py",
            "fusedloss/modules.py",
            "fusedloss/__init__.py",
        )
    }
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"{sum(counts.values())} lines in all" in text, counts
    for path in ("fusedloss/reference.py", "kernels/losses.py", "fusedloss/blocked/losses.py"):
        assert f"(`{path}`, {counts[path]} lines)" in text
