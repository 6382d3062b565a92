"""The table of libraries beside their drop-ins: what is timed is the same script, and computes the same."""

import json
import subprocess
import sys

import pytest

from bench import drop_ins, files
from bench.drop_ins import CASES, DROP_IN, LIBRARY
from tests.libraries import library


def test_the_command_measures_a_loss_and_writes_the_page(tmp_path):
    library("pytorch_metric_learning", "pytorch-metric-learning")
    out, page = tmp_path / "drop-ins.json", tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\n<!-- /results -->\nafter\n")
    options = ["--libraries", "pytorch_metric_learning", "--losses", "SupConLoss", "--rows", "64", "--rounds", "1"]
    command = [sys.executable, "-m", "bench.drop_ins", *options, "--repeats", "1", "--out", out, "--page", page]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    (row,) = results["drop_ins"]
    assert (row["loss"], row["n"], row[DROP_IN]["not_fused"]) == ("SupConLoss", 64, [])
    assert all(row[who]["seconds"] > 0 and row[who]["peak_bytes"] > 0 for who in (LIBRARY, DROP_IN))
    assert row[LIBRARY]["value"] == pytest.approx(row[DROP_IN]["value"], rel=1e-5)
    assert row[LIBRARY]["norm"] == pytest.approx(row[DROP_IN]["norm"], rel=1e-5)
    assert results["meta"]["pytorch-metric-learning"] and results["meta"]["cores"]
    text = page.read_text()
    assert f"| {' | '.join(drop_ins.cells(row))} |\n" in text and text.endswith("<!-- /results -->\nafter\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_drop_in_is_the_script_with_one_import_changed(case):
    theirs, ours = (drop_ins.script_of(case, who).splitlines() for who in (LIBRARY, DROP_IN))
    assert theirs[1:] == ours[1:]
    assert theirs[0].startswith(f"from {case.library}")
    assert ours[0] == theirs[0].replace(case.library, f"fusedloss.compat.{case.library}")


def run(**more):
    return {"seconds": 0.5, "peak_bytes": 2**20, "value": 1.0, "norm": 2.0, "not_fused": []} | more


@pytest.mark.parametrize("of", ["value", "norm"])
def test_a_drop_in_that_computes_something_else_is_not_timed(of, monkeypatch):
    for wrong in (1.5, float("nan")):
        found = {LIBRARY: run(), DROP_IN: run(**{of: wrong})}
        monkeypatch.setattr(drop_ins, "measured", lambda case, who, n, repeats, found=found: found[who])
        with pytest.raises(RuntimeError, match=f"ContrastiveLoss, N = 64: {of} "):
            drop_ins.compared(CASES[0], 64, rounds=1, repeats=1)


TOO_LARGE = {"failed": "memory", "asked_bytes": None}


@pytest.mark.parametrize(
    ("theirs", "ours", "cells"),
    [
        (
            run(), run(seconds=0.25, peak_bytes=2**19),
            ["500 ms", "250 ms", "1/2.0", "1.0 MiB", "0.5 MiB", "1/2.0", "yes"],
        ),
        (
            run(), run(not_fused=["A: b", "C: d"]),
            ["500 ms", "500 ms", "1/1.0", "1.0 MiB", "1.0 MiB", "1/1.0", "A: b; C: d"],
        ),
        (TOO_LARGE, run(), ["-", "500 ms", "-", "> 16.00 GiB", "1.0 MiB", "-", "yes"]),
        (TOO_LARGE | {"asked_bytes": 2**36}, run(), ["-", "500 ms", "-", "> 64.00 GiB", "1.0 MiB", "-", "yes"]),
        (run(), {"failed": "time"}, ["500 ms", "> 40 s", "-", "1.0 MiB", "-", "-", "-"]),
    ],
)  # fmt: skip
def test_what_failed_is_told_and_not_tried_again(theirs, ours, cells, monkeypatch):
    tried = []

    def measured(case, who, n, repeats):
        tried.append(who)
        return theirs if who == LIBRARY else ours

    monkeypatch.setattr(drop_ins, "measured", measured)
    row = drop_ins.compared(CASES[0], 64, rounds=3, repeats=1)
    assert drop_ins.cells(row) == ["ContrastiveLoss", "64", *cells]
    assert [tried.count(who) for who in (LIBRARY, DROP_IN)] == [1 if "failed" in run else 3 for run in (theirs, ours)]
