"""A launch that finds its compiled kernel starts what Triton would start, with the same arguments."""

import functools
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from bench.host_time import COLUMNS
from fusedloss.backends.triton import kept
from fusedloss.kernels import tiles

BASE = ("n is 1", "n not divisible", "values", "order of the options")  # of the same binary as the base
compiled = pytest.mark.skipif(kept.specialize is None, reason="this Triton launches by itself")


@functools.cache
def launched():
    """What `tests/kept_launches.py` prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kept_launches"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@compiled
def test_what_selects_a_binary_selects_a_kept_one():
    launches = launched()["selected"]
    assert all(launch["hit"] and launch["same"] for launch in launches.values()), launches
    for arch in ("sm_90", "sm_80"):
        binaries = {name.partition(",")[0]: launch["binary"] for name, launch in launches.items() if arch in name}
        assert {binaries.pop(name) for name in BASE} == {binaries["base"]}
        assert len(set(binaries.values())) == len(binaries), "cases that are to differ do not"
    assert len({launch["binary"] for launch in launches.values()}) == 2 * len(binaries)


@compiled
def test_the_kernels_of_a_step_are_kept():
    launches = launched()["steps"]
    assert len({launch["kernel"] for launch in launches}) >= 6
    assert all(launch["hit"] and launch["same"] for launch in launches), launches


@compiled
def test_a_launch_that_is_watched_is_left_to_triton():
    expected = {
        "at rest": False, "each": [True] * 5, "launch_enter_hook": 2, "launch_exit_hook": 2,
        "compiled elsewhere": False, "another Triton": 1,
    }  # fmt: skip
    assert launched()["hooks"] == expected


@compiled
def test_the_benchmark_of_the_host_has_a_cell_for_every_column():
    positive, loss, N, launches, *times = launched()["table"]
    assert positive and (loss, N, int(launches) >= 3) == ("pairwise_contrastive_loss", "64", True)
    assert len([loss, N, launches, *times]) == len(COLUMNS)


@compiled
def test_interpreted_kernels_are_left_to_triton():
    if not tiles.INTERPRETED:
        pytest.skip("kernels are compiled here")
    assert kept.watched(tiles.prepare)
