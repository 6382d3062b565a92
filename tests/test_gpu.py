"""The program for a machine with a GPU, up to the steps that run without one."""

import json
import subprocess
import sys
import time

import torch

from bench import files, gpu, gpu_losses
from bench.gpu_table import TARGETS
from bench.gpu_timings import DENSE_ROWS, SIZES, Job, Parity, turns
from bench.workloads import CASES
from fusedloss.tools.workloads import LOSSES


def test_all_steps_end_within_nine_minutes():
    assert gpu.END + gpu.GRACE <= 9 * 60
    assert list(gpu.LIMITS)[:4] == ["device", "graphs", "tests", "timings"]  # the most telling ones first


def test_rows_with_a_target_are_timed_first():
    todo = turns(SIZES, "cuda")
    ours = list(dict.fromkeys((Job(*target.key), "fusedloss") for target in TARGETS))
    compared = list(dict.fromkeys((Job(*target.key), target.of) for target in TARGETS if target.of))
    assert todo[: len(ours) + len(compared)] == ours + compared
    assert len(set(todo)) == len(todo)
    assert {job.case for job, _ in todo} == set(CASES)
    assert all(job.n <= 512 for job, _ in turns([512], "cpu"))
    assert all(job.n <= DENSE_ROWS for job, member in todo if member == "torch.compile")


def test_a_wrong_result_is_not_timed(monkeypatch):
    parity = Parity("cpu", 64)
    job = Job("contrastive", 64, 16, "float32")
    assert parity.failure(job, "fusedloss") is None
    monkeypatch.setattr("bench.gpu_timings.loss_of", lambda case, member: lambda x, labels: x.sum())
    assert "is off by" in parity.failure(job, "torch.compile")
    assert parity.failure(job, "fusedloss") is None  # found once
    assert len(parity.rows) == 2


def test_a_step_that_is_stopped_passes_as_far_as_it_came(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 2)
    monkeypatch.setitem(gpu.LIMITS, "tests", gpu.GRACE)
    monkeypatch.setattr(gpu, "STARTED", time.perf_counter())
    assert gpu.run("tests", "timeit", "-n", "1", "pass").status == "passed"
    assert gpu.run("tests", "timeit", "-n", "1", "1 / 0").status == "failed"
    stopped = gpu.run("tests", "timeit", "-n", "1", "-s", "import time", "time.sleep(60)")
    assert stopped.status == "stopped" and stopped.detail.endswith("past its limit of 2 s")
    ran = {"tests": 9, "failures": 0, "errors": 0, "skipped": 0, "failed": []}
    row = {"fusedloss": {"seconds": 1.0}, "reference": {"failed": "out of memory"}}
    assert gpu.sound("tests", {"tests": ran}) and gpu.sound("timings", {"timings": [row]})
    assert not gpu.sound("tests", {}) and not gpu.sound("tests", {"tests": ran | {"failed": ["a::b"]}})
    assert not gpu.sound("timings", {}) and not gpu.sound("timings", {"timings": [row, {"fusedloss": {"failed": "x"}}]})
    assert not gpu.sound("demo", {"tests": ran, "timings": [row]})


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
