"""The command line."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from fusedloss.__main__ import main
from fusedloss.backends import resolve_backend


def doctor(capsys):
    """What it prints, by the word before the first ": " of a line."""
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    return {name: text for name, _, text in (line.partition(": ") for line in lines) if text}, "\n".join(lines)


def test_doctor(capsys):
    facts, printed = doctor(capsys)
    for word in (f"torch {torch.__version__}", "triton", "float32 matmul precision: highest"):
        assert word in printed
    for device in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            backend = resolve_backend(torch.empty(0, dtype=getattr(torch, dtype), device=device))
            assert f"{dtype} {backend}" in facts[device]
    assert (facts.get("cuda") == "no device") == (not torch.cuda.is_available())


def test_doctor_knows_the_gpus_of_apple_and_intel(capsys, monkeypatch):
    def empty(*size, dtype, device):
        if device == "mps" and dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return SimpleNamespace(dtype=dtype, device=torch.device(device), is_meta=False)

    intel = SimpleNamespace(name="Arc B580", total_memory=12 << 30)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: intel)
    facts, _ = doctor(capsys)
    assert facts["mps"] == "Apple GPU; float16 blocked, bfloat16 blocked, float32 blocked, float64 not supported"
    on_gpu = "triton" if importlib.util.find_spec("triton") else "blocked"
    backends = f"float16 {on_gpu}, bfloat16 {on_gpu}, float32 {on_gpu}, float64 blocked"
    assert facts["xpu:0"] == facts["xpu:1"] == f"Arc B580, 12 GiB; {backends}"


def test_doctor_says_which_devices_are_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 0)
    facts, _ = doctor(capsys)
    assert facts["cuda"] == facts["xpu"] == facts["mps"] == "no device"


def test_doctor_without_triton(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    facts, printed = doctor(capsys)
    assert "triton not installed" in printed and facts["tuned tiles"] == "Triton is not installed"
    assert facts["cpu"].endswith("float16 blocked, bfloat16 blocked, float32 blocked, float64 blocked")


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    """Tuning on a GPU that is not there, with a cache of its own."""
    pytest.importorskip("triton")
    from fusedloss.backends.triton import tuning

    monkeypatch.setenv("FUSEDLOSS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(tuning, "device_name", lambda: "Test GPU 9000")
    tuning.remembered.cache_clear()
    yield tuning
    tuning.remembered.cache_clear()


def test_doctor_shows_the_tuned_tiles(tuning, capsys):
    facts, _ = doctor(capsys)
    assert facts["tuned tiles"].startswith(f"none of this GPU in {tuning.file()}; `python -m fusedloss tune`")
    key = tuning.Key(tuning.Work("grad", "exp", 2), "softmax similarity sum/lse", 128)
    tile = tuning.Tile(64, 32, 64, 4, 2, 128)
    tuning.remember([tuning.Tuned(key, tile, 1e-3, 2e-3, "2026-11-25")])
    facts, printed = doctor(capsys)
    assert facts["tuned tiles"] == f"1 in {tuning.file()}"
    for word in ("Test GPU 9000", "grad", "softmax similarity sum/lse", "BM=64 BN=32", "1 ms", "2 ms", "16"):
        assert word in printed


def test_doctor_names_the_cache_without_a_gpu(tuning, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts, _ = doctor(capsys)
    assert facts["tuned tiles"] == f"kept in {tmp_path}; there is no GPU here to tune any for"


def test_demo_gets_its_options(monkeypatch, tmp_path):
    called = []
    demo = SimpleNamespace(run=lambda *arguments: called.append(arguments))
    monkeypatch.setitem(sys.modules, "fusedloss.tools.demo", demo)
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # kept; also undoes what main sets
    main(["demo", "--out", str(tmp_path), "--epochs", "2", "--seed", "7", "--device", "cpu"])
    assert called == [1, (tmp_path, 2, 7, "cpu")]


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "fusedloss.tools.demo", raising=False)
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
