"""Builds nothing without the kernels; all else is in pyproject.toml.

fusedloss/kernels is a link to ../kernels in git, and a folder of its own in an sdist.
"""

import filecmp
import sys
from pathlib import Path

import setuptools

KERNELS = Path(__file__).parent / "kernels"
PACKAGED = Path(__file__).parent / "fusedloss" / "kernels"

if not (PACKAGED / "engine.py").is_file():
    seen = "a plain file" if PACKAGED.is_file() else "without kernels"
    sys.exit(
        f"fusedloss/kernels must be a link to ../kernels, but is {seen}: run `git config core.symlinks true` (on "
        "Windows with Developer Mode on) and check it out again with `git checkout -- fusedloss/kernels`."
    )
if KERNELS.is_dir():  # a patch of kernels alone would not be built
    names = [path.name for path in KERNELS.glob("*.py")]
    _, differing, missing = filecmp.cmpfiles(KERNELS, PACKAGED, names, shallow=False)
    if differing or missing:
        names = ", ".join([*differing, *missing])
        sys.exit(f"kernels and fusedloss/kernels, of which the latter is built, differ in {names}: change both.")

setuptools.setup()
