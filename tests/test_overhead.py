"""The benchmark of what a call costs."""

import subprocess

import pytest

from bench import overhead
from fusedloss.losses.catalog import CATALOG


@pytest.mark.parametrize("loss", ["cross_entropy_loss", "clip_loss", "batch_all_triplet_loss"])
def test_a_loss_is_timed_beside_dense_pytorch_where_that_ends(loss, monkeypatch):
    monkeypatch.setattr(overhead, "DENSE_ROWS", {"batch_all_triplet_loss": 4})
    row = overhead.small(loss, 8, rounds=1)
    assert row["fusedloss"] > 0
    assert ("ratio" in row) == (loss != "batch_all_triplet_loss")


def test_limits_of_dense_pytorch_are_of_losses():
    assert overhead.DENSE_ROWS.keys() <= CATALOG.keys()


def test_the_busy_process_ends(monkeypatch):
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(overhead.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    found = overhead.beside("contrastive_loss", n=8, rounds=1, steps=1)
    assert found["idle"] > 0 and found["busy"] > 0
    assert [process.poll() is not None for process in started] == [True]


def test_a_row_has_a_cell_for_every_column():
    small = [{"fusedloss": 1e-3, "dense": 2e-3, "ratio": 0.5}, {"fusedloss": 1e-3, "ratio": 2.0}, {"fusedloss": 1.0}]
    large = {"idle": 0.1, "busy": 0.3, "ratio": 3.0}
    row = {"loss": "x", "small": small, "first": 0.05, "large": large}
    cells = overhead.cells(row)
    assert len(cells) == len(overhead.COLUMNS)
    assert cells[2] == "0.50x, reached 2.6x" and cells[6] == "-" and cells[-1] == "missed 1.5x"
