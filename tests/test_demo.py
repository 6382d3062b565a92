"""The demo in small. The processes that `measure` starts are replaced by runs in this one."""

import pytest
import torch

from fusedloss import measure

demo = pytest.importorskip("fusedloss.demo", reason="needs the extra `examples`")
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
    for training in trainings[loss]:
        before, after = (demo.retrieval(x, digits.held_out_labels) for x in (training.before, training.after))
        assert after.recall_at_1 > before.recall_at_1
        assert after.r_precision > before.r_precision + 0.1


@pytest.mark.parametrize("loss", demo.LOSSES)
def test_fused_and_dense_agree_on_the_same_weights(loss, trainings):
    fused, dense = trainings[loss]
    assert len(fused.losses) == EPOCHS * demo.BATCHES
    for training in (fused, dense):
        torch.testing.assert_close(training.losses, training.others, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.losses[0], dense.losses[0], atol=1e-5, rtol=0)


def test_same_seed_same_numbers(digits):
    first, second = (demo.train(demo.LOSSES[0], True, digits, 1, seed=3, advance=lambda: None) for _ in range(2))
    assert torch.equal(first.losses, second.losses) and torch.equal(first.after, second.after)


def test_retrieval_by_hand():
    x, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0], [9.0]]), torch.tensor([0, 0, 1, 0, 1])
    # Of the R nearest, right are: 1 of 2, 1 of 2, 0 of 1, 1 of 2, 0 of 1; only the first's nearest is.
    assert demo.retrieval(x, labels) == pytest.approx((1 / 5, 3 / 2 / 5))


@pytest.mark.parametrize("enough", [True, False])
def test_run_writes_figures(enough, tmp_path, monkeypatch, capsys):
    """Also when nothing could be measured."""

    def here(maker, *, timeout, repeats, **arguments):
        assert maker == "fusedloss.measure:in_batch" and 0 <= timeout <= demo.SECONDS
        seconds = measure.timed(measure.in_batch(**arguments))
        return measure.Measurement(seconds, 4 * arguments["n"] ** 2) if enough else None

    monkeypatch.setattr(demo, "measure", here)
    monkeypatch.setitem(demo.DENSE_MOST, DEVICE, 64)
    paths = demo.run(tmp_path / "new" / "folder", epochs=1, seed=0, device=DEVICE, sizes=(64, 32, 128))
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    for word in ("held out", "raw pixels", "Recall@1", "same weights", "dense MiB", *map(str, paths)):
        assert word in printed
    rows = [line.split("│")[2:-1] for line in printed.splitlines() if line.startswith("│") and "MiB" not in line][-6:]
    assert [int(row[0]) for row in rows] == [32, 64, 128] * 2
    for n, *cells in rows:
        assert ["-" not in cell for cell in cells] == [enough, enough and int(n) <= 64] * 2
