"""The demo in small. The processes that `measure` starts are replaced by runs in this one."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fusedloss.tools import measure

demo = pytest.importorskip("fusedloss.tools.demo", reason="needs the extra `examples`")
training = pytest.importorskip("fusedloss.tools.demo_training")
figures = pytest.importorskip("fusedloss.tools.demo_figures")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPOCHS = 5


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits(DEVICE, seed=0)


@pytest.fixture(scope="module")
def trainings(digits):
    return demo.train_all(digits, EPOCHS, seed=0, console=demo.Console(quiet=True))


def test_a_third_of_every_digit_is_held_out(digits):
    assert len(digits.train) + len(digits.held_out) == 1797
    share = digits.held_out_labels.bincount() / torch.cat((digits.train_labels, digits.held_out_labels)).bincount()
    assert (share - 1 / 3).abs().max() < 0.01


@pytest.mark.parametrize("loss", demo.LOSSES)
def test_training_improves_retrieval(loss, digits, trainings):
    for done in trainings[loss]:
        before, after = (demo.retrieval(x, digits.held_out_labels) for x in (done.before, done.after))
        assert after.recall_at_1 > before.recall_at_1
        assert after.r_precision > before.r_precision + 0.1


@pytest.mark.parametrize("loss", demo.LOSSES)
def test_fused_and_dense_agree_on_the_same_weights(loss, trainings):
    fused, dense = trainings[loss]
    assert len(fused.losses) == EPOCHS * demo.BATCHES
    for done in (fused, dense):
        torch.testing.assert_close(done.losses, done.others, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.losses[0], dense.losses[0], atol=1e-5, rtol=0)


def test_same_seed_same_numbers(digits):
    first, second = (training.train(demo.LOSSES[0], True, digits, 1, seed=3, advance=lambda: None) for _ in range(2))
    assert torch.equal(first.losses, second.losses) and torch.equal(first.after, second.after)


def test_retrieval_by_hand():
    x, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0], [9.0]]), torch.tensor([0, 0, 1, 0, 1])
    # Of the R nearest, right are: 1 of 2, 1 of 2, 0 of 1, 1 of 2, 0 of 1; only the first's nearest is.
    assert demo.retrieval(x, labels) == pytest.approx((1 / 5, 3 / 2 / 5))


def cells(printed, title):
    """The rows of the table with a title, without its loss."""
    lines = printed.split(title)[1].splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("└"))
    return [[cell.strip() for cell in line.split("│")[2:-1]] for line in lines[:end] if line.startswith("│")]


@pytest.mark.parametrize("known", ["time and memory", "time", "nothing"])
def test_run_writes_figures(known, tmp_path, monkeypatch, capsys):
    """Also when nothing could be measured, or the system does not tell the memory; dense fails at 64 rows."""
    measured = []

    def here(maker, *, timeout, repeats, **arguments):
        assert maker == "fusedloss.tools.measure:in_batch" and 0 <= timeout <= demo.SECONDS
        measured.append(arguments["n"])
        if "time" not in known or (arguments["n"], arguments["implementation"]) == (64, "reference"):
            return None
        seconds = measure.timed(measure.in_batch(**arguments))
        return measure.Measurement(seconds, 2**20 * arguments["n"] ** 2 if "memory" in known else None)

    monkeypatch.setattr(demo, "measure", here)
    paths = demo.run(tmp_path / "new" / "folder", epochs=1, seed=0, device=DEVICE, sizes=((16, 32, 64), (128,)))
    assert measured == sorted(measured)  # small ones first
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    for word in ("held out", "raw pixels", "Recall@1: ", "R-precision: ", "same weights", *map(str, paths)):
        assert word in printed
    assert ("psutil" in printed) == (known == "time")
    if known == "nothing":
        assert "fused alone" not in printed
        return
    compared, alone = cells(printed, "Forward + backward"), cells(printed, "fused alone")
    assert [row[0] for row in compared] == ["16", "32"] * 2 and [row[0] for row in alone] == ["64", "128"] * 2
    assert all(cell and "-" not in cell for row in (*compared, *alone) for cell in row)
    assert {len(row) for row in compared} == {5 if "memory" in known else 3}
    assert "dense batch hard triplet at 64" in " ".join(printed.split())
    if "memory" in known:
        assert compared[0][3:] == ["256", "256"] and alone[0][2:] == ["4,096", "about 4,096 MiB"]


def test_every_loss_is_retrieved_with_before_and_after(digits, trainings):
    table = demo.retrieval_table(digits, trainings)
    trained = [*table.columns[1].cells]
    assert trained == ["not", *["before", "after, fused", "after, dense"] * len(demo.LOSSES)]
    assert all(cell.endswith("%") for column in table.columns[2:] for cell in column.cells)


def test_ticks_are_plain_numbers_around_the_data():
    axes = figures.Figure().add_subplot()
    axes.loglog([1, 2], [3 * 2**20, 300 * 2**20])
    figures.set_ticks(axes.yaxis, figures.MEMORY)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 MiB", "10 MiB", "100 MiB", "1 GiB"]
    assert axes.get_ylim() == (2**20, 2**30)


@pytest.fixture
def windows(monkeypatch, tmp_path):
    """Stands for a system without /proc, without the module `resource` and, if not installed, without psutil."""
    monkeypatch.setattr(measure, "Path", lambda name: tmp_path / "missing" / name.lstrip("/"))
    for module in ("resource", "psutil"):
        monkeypatch.setitem(sys.modules, module, None)


def test_without_psutil_memory_is_unknown_on_windows(windows):
    found = measure.measure_here(measure.in_batch, 1, loss=demo.LOSSES[0], implementation="fusedloss", n=64)
    assert found.seconds > 0 and found.peak_bytes is None


@pytest.mark.parametrize("peak", ["peak_wset", "peak_rss"])
def test_psutil_tells_the_memory_on_windows(peak, windows, monkeypatch):
    """The field has another name since psutil 8."""
    told = iter([{"rss": 5000, peak: 6000}, {"rss": 5500, peak: 9000}])
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(**next(told)))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    assert measure.CpuMemory().peak() == 9000 - 5000


def test_running_out_of_memory_is_known_by_what_the_systems_say():
    for text in ("can't allocate memory: you tried", "not enough memory: you tried", "CUDA out of memory"):
        assert measure.out_of_memory(RuntimeError(f"DefaultCPUAllocator: {text}"))
    assert measure.out_of_memory(MemoryError()) and not measure.out_of_memory(RuntimeError("shapes differ"))
