"""The shape of the project: imports go one way, triton is optional, every loss is specified and its docstring runs."""

import ast
import doctest
import graphlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedloss
from fusedloss import reference
from fusedloss.distributed import GroupLoss

ROOT = Path(fusedloss.__file__).parent.parent
FUNCTIONS = [
    f for f in vars(fusedloss).values() if inspect.isfunction(f) and f.__module__.startswith("fusedloss.losses")
]

# What each layer may import besides the standard library, by string too; kernels may import three modules of that.
REQUESTS = ("dtypes", "moving", "request", "triplet_requests")
LEAVES = ("torch", "fusedloss.checks.")
LAYERS = {
    "kernels": ("triton", "kernels."),
    "fusedloss/groups.py": ("torch",),
    "fusedloss/checks": ("torch", "fusedloss.checks", "fusedloss.groups."),
    "fusedloss/options.py": ("fusedloss.checks.", "fusedloss.groups."),
    "fusedloss/reference": ("torch", "fusedloss.reference."),
    "fusedloss/backends/dtypes.py": LEAVES,
    "fusedloss/backends/moving.py": LEAVES,
    # The numbers of tiles, which need no Triton: what the forward keeps has the same shape in every backend.
    "fusedloss/backends/triplet_requests.py": (*LEAVES, "fusedloss.backends.dtypes.", "fusedloss.kernels.configs."),
    "fusedloss/backends/request.py": (*LEAVES, "fusedloss.backends.dtypes.", "fusedloss.kernels.configs."),
    "fusedloss/backends/__init__.py": ("torch", "fusedloss.backends.triton", "fusedloss.backends.blocked"),
    "fusedloss/backends/blocked": (
        *LEAVES, *(f"fusedloss.backends.{m}." for m in (*REQUESTS, "blocked")),
    ),
    "fusedloss/backends/triton": (
        "triton", *LEAVES, *(f"fusedloss.backends.{m}." for m in (*REQUESTS, "triton")),
        "fusedloss.kernels.",
    ),
    "fusedloss/ops": (*LEAVES, "fusedloss.groups.", "fusedloss.backends", "fusedloss.ops."),
    "fusedloss/losses": (
        "torch", *(f"fusedloss.{m}" for m in ("checks", "groups.", "options.", "backends.dtypes.", "ops", "losses.")),
    ),
    "fusedloss/loss_module.py": ("torch", *(f"fusedloss.{m}." for m in ("checks", "options", "losses"))),
    "fusedloss/modules.py": ("fusedloss.loss_module.", "fusedloss.losses."),
    "fusedloss/distributed": (
        "torch", *(f"fusedloss.{m}." for m in ("checks", "groups", "losses", "loss_module", "modules", "distributed")),
    ),
    "fusedloss/memory_bank.py": (
        "torch", *(f"fusedloss.{m}." for m in ("checks", "groups", "losses", "distributed.agreement")),
    ),
    # Only for FUSEDLOSS_AUTOTUNE=1 does the library call a tool, which fills the hook of the backends.
    "fusedloss/__init__.py": tuple(
        f"fusedloss.{m}" for m in ("reference", "backends.", "losses.", "memory_bank.", "modules.", "tools.autotune")
    ),
}  # fmt: skip
# A drop-in imports its own library, and what losses are made of.
for folder in sorted({path.parent for path in ROOT.glob("fusedloss/compat/**/*.py")}):
    library = folder.relative_to(ROOT / "fusedloss" / "compat").parts[:1]
    LAYERS[folder.relative_to(ROOT).as_posix()] = (
        "torch", "typing_extensions.", *(f"{name}." for name in library), *(() if library else ("<",)),
        *(f"fusedloss.{m}" for m in ("checks", "backends.dtypes.", "ops.", "losses.", "compat")),
    )  # fmt: skip


def imported(path):
    """Full names of everything that a file imports, inside functions and by string too."""
    own = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = own[: -node.level] if node.level else ()
            yield from (".".join([*package, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from by_string(node.args[0], own)


def by_string(name, own):
    """The names that a call may import; for a name that is put together, all modules that it may name."""
    text = ast.unparse(name)
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        relative = name.value.startswith(".")
        yield ".".join([*own[:-1], name.value[1:]]) if relative else name.value
    elif isinstance(name, ast.JoinedStr) and text.startswith(("f'.{", 'f".{')):
        packages = (m.name for m in pkgutil.iter_modules([str(ROOT.joinpath(*own[:-1]))]) if m.ispkg)
        yield from (".".join([*own[:-1], package]) for package in packages)
    else:
        yield f"<{text}>"  # any module: no layer may


# Files that may import by a name from outside: of a maker to measure, a kernel to compile, or another library.
OPEN = {"fusedloss/tools/measure.py", "fusedloss/tools/compiling.py", "fusedloss/compat/library.py"}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    standard = {"itertools", "os", "typing"} if layer == "kernels" else sys.stdlib_module_names
    files = sorted((ROOT / layer).glob("*.py")) or [ROOT / layer]
    for path in files:
        for name in imported(path):
            allowed = name.split(".")[0] in standard or f"{name}.".startswith(LAYERS[layer])
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def module_of(path):
    """The name of a file's module; a package is its __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_import_runs_in_a_circle_and_nothing_imports_the_tools():
    modules = {module_of(p): p for p in ROOT.glob("fusedloss/**/*.py") if "kernels" not in p.parts}
    graph = {}
    for module, path in modules.items():
        of_any_name = path.relative_to(ROOT).as_posix() in OPEN
        names = [name for name in imported(path) if not (of_any_name and name.startswith("<"))]
        # A name may be a module, or something in one.
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & modules.keys()) - {module}
        assert not any(name.startswith("<") for name in names), f"{module} imports {names}"
        if "tools" not in module and module not in ("fusedloss.__main__", "fusedloss"):
            assert not any(".tools" in name for name in names), f"{module} imports a tool"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def functions(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        if "kernels" not in path.parts or folder == "kernels":
            found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
            yield from ((path.relative_to(ROOT), node) for node in found)


def test_no_function_takes_more_than_a_reader_holds():
    """At most 10 parameters on the host, where records group arguments, and 26 in a kernel, of which up to 15 are its
    tile and its functions; public losses have more."""
    public = {f.__name__ for f in FUNCTIONS}
    for folder, most in (("fusedloss", 10), ("kernels", 26)):
        for path, node in functions(folder):
            count = sum(len(kind) for kind in (node.args.posonlyargs, node.args.args, node.args.kwonlyargs))
            assert count <= most or node.name in public, f"{path}: {node.name} takes {count}"


def test_the_packaged_kernels_are_those_at_the_top():
    """They are a relative link in git, and a copy in an sdist, which has PKG-INFO."""
    top, packaged = ROOT / "kernels", ROOT / "fusedloss" / "kernels"
    if not (ROOT / "PKG-INFO").exists():
        assert packaged.is_symlink() and packaged.readlink() == Path("../kernels")
    assert {p.name: p.read_text() for p in packaged.glob("*.py")} == {p.name: p.read_text() for p in top.glob("*.py")}
    assert not (top / "__init__.py").exists()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as if it were not installed: its import fails and find_spec finds nothing
import torch, fusedloss
x = torch.randn(9, 5, requires_grad=True)
fusedloss.batch_hard_triplet_loss(x, torch.arange(9) % 3).backward()
fusedloss.PairwiseContrastiveLoss()(x, torch.arange(9) % 3).backward()
fusedloss.CircleLoss()(x, torch.arange(9) % 3).backward()  # whose pieces are the device code
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


@pytest.mark.parametrize("documented", [*FUNCTIONS, fusedloss.MemoryBank, GroupLoss])
def test_docstring_examples_hold(documented):
    names = dict(vars(sys.modules[documented.__module__]), torch=torch, fusedloss=fusedloss)
    tests = doctest.DocTestFinder().find(documented, globs=names)
    results = [doctest.DocTestRunner().run(test) for test in tests]
    assert sum(result.attempted for result in results) and not sum(result.failed for result in results)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_an_example_and_an_equivalent(function):
    assert ">>>" in function.__doc__
    assert "Equivalent to" in function.__doc__


def code_lines(path, word):
    """The number of lines in top-level definitions with the word in their name, and of lines of tables that have it."""
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


PLACES = (
    "fusedloss/reference/structured.py",
    "kernels/losses.py",
    "fusedloss/backends/request.py",
    "fusedloss/losses/structured.py",
    "fusedloss/losses/closings.py",
    "kernels/closings.py",
    "fusedloss/losses/catalog.py",
    "fusedloss/modules.py",
    "fusedloss/__init__.py",
)


def test_contributing_has_the_real_line_count_of_its_example():
    counts = {path: code_lines(path, "circle") for path in PLACES}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"{sum(counts.values())} lines in all" in text, counts
    for path, count in counts.items():
        assert count and f"(`{path}`, {count} line{'s' * (count > 1)}" in text, (path, count)
