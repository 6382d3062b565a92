"""A launch that finds its compiled kernel starts what Triton would start, with the same arguments."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from fusedloss.backends.triton import kept
from fusedloss.kernels import tiles

BASE = ("n is 1", "n not divisible", "values", "order of the options")  # of the same binary as the base


@pytest.fixture(scope="module")
def found():
    if kept.specialize is None:
        pytest.skip("this Triton launches by itself")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kept_launches"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_selects_a_binary_selects_a_kept_one(found):
    launches = found["selected"]
    assert all(launch["hit"] and launch["same"] for launch in launches.values()), launches
    for arch in ("sm_90", "sm_80"):
        binaries = {name.partition(",")[0]: launch["binary"] for name, launch in launches.items() if arch in name}
        assert {binaries.pop(name) for name in BASE} == {binaries["base"]}
        assert len(set(binaries.values())) == len(binaries), "cases that are to differ do not"
    assert len({launch["binary"] for launch in launches.values()}) == 2 * len(binaries)


def test_the_kernels_of_a_step_are_kept(found):
    assert len({launch["kernel"] for launch in found["steps"]}) >= 6
    assert all(launch["hit"] and launch["same"] for launch in found["steps"]), found["steps"]


def test_a_launch_that_is_watched_is_left_to_triton(found):
    expected = {
        "at rest": False, "debug": True, "add_stages_inspection_hook": True, "instrumentation_mode": True,
        "pre_run_hooks": True, "launch_enter_hook": 2, "launch_exit_hook": 2, "compiled elsewhere": False,
        "another Triton": 1,
    }  # fmt: skip
    assert found["hooks"] == expected


def test_interpreted_kernels_are_left_to_triton():
    if not tiles.INTERPRETED:
        pytest.skip("kernels are compiled here")
    assert kept.watched(tiles.prepare)
