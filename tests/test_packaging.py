"""The contents of a wheel and of an sdist, and a checkout without symbolic links, from which neither can be built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "docs", "examples", "fusedloss", "kernels", "tests")
FILES = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md",
    "constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.py",
)  # fmt: skip
PACKAGES = ("", "backends", "backends/blocked", "backends/triton", "kernels", "losses", "ops", "tools")
CACHES = shutil.ignore_patterns("__pycache__", ".*")

pytest.importorskip("setuptools", minversion="77")


def run(tree, *command):
    return subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["link", "folder"])
def tree(request, tmp_path):
    """The project with the link to the kernels, as in git, or with their copy, as in an sdist; and with caches."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    for name in filter(lambda name: (ROOT / name).exists(), FOLDERS):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=CACHES)
    if request.param == "link":
        shutil.rmtree(tmp_path / "fusedloss" / "kernels")
        os.symlink("../kernels", tmp_path / "fusedloss" / "kernels", target_is_directory=True)
    for folder in ("bench", "fusedloss", "kernels", "tests"):
        cached = tmp_path / folder / "__pycache__" / "cached.cpython-311.pyc"
        cached.parent.mkdir()
        cached.touch()
    return tmp_path


def test_wheel_and_sdist_hold_what_they_should(tree):
    wanted = {name for name in files(tree) if not name.endswith(".pyc")}
    wanted |= {f"fusedloss/{name}" for name in wanted if name.startswith("kernels/")}  # rglob follows no link
    done = run(tree, "setup.py", "-q", "egg_info", "build_py", "--build-lib", "wheel")
    assert done.returncode == 0, done.stderr
    source = map(Path, (tree / "fusedloss.egg-info" / "SOURCES.txt").read_text().splitlines())
    assert {path.as_posix() for path in source if path.parent.name != "fusedloss.egg-info"} == wanted
    wheel = files(tree / "wheel")
    assert wheel == {name for name in wanted if name.startswith("fusedloss/")}
    assert {Path("fusedloss", name).as_posix() for name in PACKAGES} <= {Path(name).parent.as_posix() for name in wheel}


def without_kernels(folder, seen):
    """A checkout whose link is a plain file, as git writes it where there are no symbolic links, or is not there."""
    (folder / "fusedloss").mkdir()
    shutil.copy(ROOT / "setup.py", folder)
    shutil.copy(ROOT / "fusedloss" / "__init__.py", folder / "fusedloss")
    if seen == "a plain file":
        (folder / "fusedloss" / "kernels").write_text("../kernels")


@pytest.mark.parametrize("seen", ["a plain file", "without kernels"])
def test_nothing_is_built_without_the_kernels(seen, tmp_path):
    without_kernels(tmp_path, seen)
    done = run(tmp_path, "setup.py", "-q", "egg_info")
    assert done.returncode == 1 and done.stdout == "" and not list(tmp_path.glob("*.egg-info"))
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fusedloss/kernels must be a link to ../kernels, but is {seen}: run `git config")
    assert line.endswith("check it out again with `git checkout -- fusedloss/kernels`.")


def test_kernels_that_differ_from_the_packaged_ones_are_named(tmp_path):
    without_kernels(tmp_path, "without kernels")
    for folder in ("kernels", "fusedloss/kernels"):
        shutil.copytree(ROOT / "kernels", tmp_path / folder, ignore=CACHES)
    with (tmp_path / "kernels" / "engine.py").open("a") as file:
        file.write("# changed\n")
    (tmp_path / "kernels" / "new.py").touch()
    done = run(tmp_path, "setup.py", "--version")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("differ in engine.py, new.py: change both.")


def test_an_import_without_the_link_says_what_to_do(tmp_path):
    without_kernels(tmp_path, "a plain file")
    done = run(tmp_path, "-c", "import fusedloss")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("ImportError: ") and "a plain file" in line and "git config core.symlinks true" in line
