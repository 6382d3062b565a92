"""The program for a machine with a GPU, as far as it goes without one."""

import json
import subprocess
import sys

import torch

from bench import files, gpu, gpu_losses
from bench.gpu_table import TARGETS
from bench.gpu_timings import SIZES, Job, Parity, jobs
from fusedloss.workloads import LOSSES


def test_all_steps_end_within_nine_minutes():
    assert gpu.END + gpu.GRACE <= 9 * 60
    assert list(gpu.LIMITS)[:4] == ["device", "graphs", "tests", "timings"]  # the most telling ones first


def test_rows_with_a_target_are_timed_first():
    todo = jobs(SIZES)
    assert todo[: len(TARGETS)] == [Job(t.case, t.n, t.d, t.dtype) for t in TARGETS]
    assert len(set(todo)) == len(todo)
    assert max(job.n for job in jobs([512])) == 512


def test_a_wrong_result_is_not_timed(monkeypatch):
    parity = Parity("cpu", 64)
    job = Job("contrastive", 64, 16, "float32")
    assert parity.failure(job, "fusedloss") is None
    monkeypatch.setattr("bench.gpu_timings.loss_of", lambda case, member: lambda x, labels: x.sum())
    assert "is off by" in parity.failure(job, "torch.compile")
    assert parity.failure(job, "fusedloss") is None  # found once
    assert len(parity.rows) == 2


def test_every_loss_is_captured():
    assert {work.loss for work in gpu_losses.works(["bf16"])} == set(LOSSES)


def test_results_are_the_same_bit_for_bit_with_nan_in_the_same_places():
    a = torch.tensor([1.0, float("nan"), float("inf")])
    assert gpu_losses.same(a, a.clone())
    assert not gpu_losses.same(a, torch.tensor([1.0, 0.0, float("inf")]))
    assert not gpu_losses.same(a, torch.tensor([1.0 + 1e-6, float("nan"), float("inf")]))


def test_the_program_runs_its_steps_and_keeps_what_they_find(tmp_path):
    """Without a GPU: no graphs and no memory checker; tuning says that there is none, and that step fails."""
    command = [sys.executable, "-m", "bench.gpu", str(tmp_path), "--device", "cpu", "--steps", "graphs", "tune"]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert found["steps"]["device"]["status"] == found["steps"]["graphs"]["status"] == "passed", found["steps"]
    assert len(found["graphs"]) >= 2 * len(LOSSES) and not any("failed" in row for row in found["graphs"])
    if not torch.cuda.is_available():
        assert done.returncode == 1 and "PyTorch finds no GPU here" in found["steps"]["tune"]["detail"]
