"""The command line."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fusedloss.__main__ import main
from fusedloss.backends import resolve_backend


def test_doctor(capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    for word in (f"torch {torch.__version__}", "triton", "float32 matmul precision: highest", "float64 blocked"):
        assert word in printed
    for device in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{device}: "))
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            backend = resolve_backend(torch.empty(0, dtype=getattr(torch, dtype), device=device))
            assert f"{dtype} {backend}" in line
    assert ("cuda: no device" in printed) == (not torch.cuda.is_available())


def test_demo_gets_its_options(monkeypatch, tmp_path):
    called = []
    demo = SimpleNamespace(run=lambda *arguments: called.append(arguments))
    monkeypatch.setitem(sys.modules, "fusedloss.demo", demo)
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # kept; also undoes what main sets
    main(["demo", "--out", str(tmp_path), "--epochs", "2", "--seed", "7", "--device", "cpu"])
    assert called == [1, (tmp_path, 2, 7, "cpu")]


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "fusedloss.demo", raising=False)
    for module in ("matplotlib", "rich", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(SystemExit, match=r'the demo needs \w+: pip install "fusedloss\[examples\]"'):
        main(["demo", "--device", "cpu"])


@pytest.mark.parametrize("arguments", [[], ["train"], ["demo", "--epochs", "0"], ["demo", "--device", "tpu"]])
def test_bad_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage: python -m fusedloss" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said():
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["demo", "--device", "cuda"])
