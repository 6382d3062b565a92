"""The command line."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from fusedloss.__main__ import main
from fusedloss.backends import resolve_backend
from fusedloss.tools import choices, console


def doctor(capsys):
    """What it says behind the mark of a line, by the word before the first ": ", and all that it prints."""
    main(["doctor"])
    printed = capsys.readouterr().out
    lines = (line[6:].partition(": ") for line in printed.splitlines())
    return {name: text for name, _, text in lines if text}, printed


def marked(printed, mark):
    """The lines with a mark."""
    return "\n".join(line[6:] for line in printed.splitlines() if line[:4].strip() == mark)


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
    facts, printed = doctor(capsys)
    assert facts["tuned tiles"] == f"none of this GPU in {tuning.file()}"
    assert "`python -m fusedloss tune` finds and keeps tiles" in marked(printed, "next")
    key = tuning.Key(tuning.Work("grad", "exp", 2), "softmax similarity sum/lse", 128)
    tile = tuning.Tile(64, 32, 64, 4, 2, 128)
    tuning.remember([tuning.Tuned(key, tile, 1e-3, 2e-3, "2026-11-25")])
    facts, printed = doctor(capsys)
    assert facts["tuned tiles"] == f"1 in {tuning.file()}"
    for word in ("Test GPU 9000", "grad", "softmax similarity sum/lse", "BM", "warps", "1 ms", "2 ms", "2.00x"):
        assert word in printed
    assert "finds and keeps" not in printed


def test_doctor_names_the_cache_without_a_gpu(tuning, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts, _ = doctor(capsys)
    assert facts["tuned tiles"] == f"kept in {tmp_path}; there is no GPU here to tune any for"


def test_doctor_says_what_to_do_next(tuning, capsys, monkeypatch, tmp_path):
    """Of everything that is not as it should be."""
    tuning.file().write_text('{"format": 4, "device": "Test GPU 9000", "triton": "1.0"}')
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.2.0")
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    _, printed = doctor(capsys)
    todo = marked(printed, "next").splitlines()
    wanted = ('pip install --upgrade "triton>=3.3"', 'set_float32_matmul_precision("high")', "nvidia-smi is here",
              "fusedloss.distributed", "unset TRITON_INTERPRET", "FUSEDLOSS_CACHE_DIR", "`python -m fusedloss tune`",
              "`python -m fusedloss demo`")  # fmt: skip
    assert len(todo) == len(wanted) and all(word in line for word, line in zip(wanted, todo, strict=True)), printed
    warned = marked(printed, "!")
    for word in ("triton 3.2.0", "torch.distributed", "TRITON_INTERPRET=1", str(tmp_path), "triton must be"):
        assert word in warned


@pytest.mark.parametrize(("system", "package"), [("Linux", "triton"), ("Windows", "triton-windows"), ("Darwin", None)])
def test_doctor_names_the_package_of_triton(system, package, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("platform.system", lambda: system)
    _, printed = doctor(capsys)
    assert (f"pip install {package}: " in marked(printed, "next")) == (package is not None)


def test_marks_are_coloured_on_a_terminal_only(capsys, monkeypatch):
    pytest.importorskip("rich")
    for environment, coloured in (({}, False), ({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False)):
        with monkeypatch.context() as patch:
            for name in ("FORCE_COLOR", "NO_COLOR"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            console.mark("ok", "triton [3.7]")
        printed = capsys.readouterr().out
        assert ("\x1b[" in printed) == coloured and printed.endswith("  triton [3.7]\n")


def test_without_rich_all_is_plain(capsys, monkeypatch):
    for module in ("rich", "rich.text", "rich.table", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, module, None)
    console.mark("!", "triton [3.7]")
    console.show("title", ("a", "b"), [["1", "2"]], "note")
    with console.progress("work") as advance:
        advance(1, 2)
    assert capsys.readouterr().out == "   !  triton [3.7]\ntitle\na  b\n1  2\nnote\n"


def test_without_a_command_the_help_is_printed(capsys):
    main([])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("usage: python -m fusedloss", "doctor", "demo", "report", "tune"))


@pytest.mark.parametrize("command", ["demo", "report", "tune"])
def test_help_is_short_and_says_every_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = (printed := capsys.readouterr().out).splitlines()
    assert len(lines) < 40 and not any("{" in line for line in lines)
    options = sum(line.startswith("  --") for line in lines)
    flags = {"demo": 0, "report": 2, "tune": 3}[command]  # that have none
    assert " ".join(printed.split()).count("(default: ") == options - flags


SAID = [
    ("--loss supcon", "argument --loss: unknown loss 'supcon'; did you mean supcon_loss?"),
    ("--loss TripletMarginLoss", "did you mean triplet_margin_loss?"),
    ("--loss batch_triplet", "did you mean batch_"),
    ("--loss triplet", "did you mean triplet_margin_loss, batch_all_triplet_loss or batch_hard_triplet_loss?"),
    ("--loss qwxz", "there are\narcface_loss "),
    ("--metric cosin", "unknown metric 'cosin'; there are euclidean, sqeuclidean, cosine, manhattan"),
    ("--arch h100", "unknown architecture 'h100'; there are sm_80, sm_90, sm_100, gfx942"),
    ("--dtype float16", "unknown format 'float16'; there are fp32, bf16, fp16"),
]


@pytest.mark.parametrize("command", ["report", "tune"])
@pytest.mark.parametrize(("arguments", "said"), SAID)
def test_a_misspelt_name_is_told_what_it_may_mean(command, arguments, said, capsys):
    with pytest.raises(SystemExit):
        main([command, *arguments.split()])
    assert said in capsys.readouterr().err


def test_all_names_are_listed_in_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    assert choices.columns(["a", "bbb", "cc", "d", "e"]) == "a    d\nbbb  e\ncc"


def test_demo_gets_its_options(monkeypatch, tmp_path):
    called = []
    demo = SimpleNamespace(run=lambda *arguments: called.append(arguments))
    monkeypatch.setitem(sys.modules, "fusedloss.tools.demo", demo)
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # kept; also undoes what main sets
    main(["demo", "--out", str(tmp_path), "--epochs", "2", "--seed", "7", "--device", "cpu"])
    assert called == [1, (tmp_path, 2, 7, "cpu")]


def test_a_missing_extra_is_named(monkeypatch):
    for module in ("demo", "demo_figures", "demo_training"):
        monkeypatch.delitem(sys.modules, f"fusedloss.tools.{module}", raising=False)
    for module in ("matplotlib", "rich", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(SystemExit, match=r'the demo needs \w+: pip install "fusedloss\[examples\]"'):
        main(["demo", "--device", "cpu"])


@pytest.mark.parametrize("arguments", [["train"], ["demo", "--epochs", "0"], ["demo", "--device", "tpu"]])
def test_bad_arguments_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage: python -m fusedloss" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said():
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["demo", "--device", "cuda"])


def test_the_report_labels_what_it_says_of_tiles(monkeypatch, capsys):
    """Columns that no row uses are left out; a kernel that does not compile is in the first table only."""
    pytest.importorskip("triton")
    from fusedloss.tools import report

    row = {
        "loss": "supcon_loss", "metric": "cosine", "kernel": "fold", "arch": "sm_90", "dtype": "bf16", "D": 128,
        "N": 4096, "config": {"BM": 128, "BN": 64, "num_warps": 8}, "default": True, "registers": 105, "spills": 0,
        "shared_bytes": 81920, "hgmma": 16, "programs": 2, "issued": 11.9, "bound": "issue", "roofline_us": 2940.0,
        "parts_us": dict.fromkeys(report.Parts._fields[:-1], 1420.0), "floor_us": 4120.0,
        "step": {"kernels": 5, "operators": 45, "peak_bytes": 2**20},
    }  # fmt: skip
    monkeypatch.setattr(report, "report", lambda *_: [row, row | {"kernel": "grad", "error": "out of registers"}])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit, match="1 kernels do not compile"):
        main(["report", "--loss", "supcon_loss", "--arch", "sm_90"])
    tables = capsys.readouterr().out.split("model of a ")
    head, *_ = (line for line in tables[0].splitlines() if "loss" in line)
    assert all(name in head for name in ("BM", "BN", "warps", "registers", "tensor"))
    assert not any(name in head for name in ("stages", "near", "blocks"))
    assert "failed out of registers" in tables[0] and "BM: rows of a program" in tables[0]
    assert "1.42" in tables[1] and "grad" not in tables[1] and "2.94 ms" in tables[2]
