"""Choosing, sweeping and remembering tiles; all but the timing, for a GPU that is not there."""

import importlib
import json
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch

import fusedloss
from fusedloss import backends, tools
from fusedloss.__main__ import main
from fusedloss.backends.triton import tuning
from fusedloss.backends.triton.tuning import Key, Tuned
from fusedloss.kernels import configs
from fusedloss.kernels.configs import Tile, Work
from fusedloss.tools.workloads import Workload, step

pytest.importorskip("triton")
from fusedloss.tools import tune as command

KEY = Key(Work("fold", "exp", 2), "softmax similarity sum/lse", 128)
DEFAULT = configs.choose(KEY.work, 128, "sm_90")
FOUND = Tuned(KEY, Tile(64, 32, 64, 4, 2, 128), 1e-3, 2e-3, "2026-11-23")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """As it was, after commands that compile too."""
    if "TRITON_INTERPRET" in os.environ:
        monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU, known only by its name, and an empty cache."""
    monkeypatch.setenv("FUSEDLOSS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "device_name", lambda: "Test GPU 9000")
    monkeypatch.setattr(tuning, "wanted", None)
    monkeypatch.setattr(backends, "after_call", None)
    tuning.remembered.cache_clear()
    yield tmp_path
    tuning.remembered.cache_clear()


def test_a_tile_is_remembered_for_its_device_and_every_d_of_its_bucket(gpu):
    assert tuning.choose(KEY, 100, "sm_90") == DEFAULT
    assert tuning.remember([FOUND]) == gpu / "test-gpu-9000.json"
    assert {tuning.bucket(D) for D in (65, 100, 128)} == {128} and tuning.bucket(513) == 0
    assert tuning.choose(KEY, 100, "sm_90") == FOUND.tile
    assert tuning.choose(KEY._replace(use="circle similarity lse/lse"), 100, "sm_90") == DEFAULT
    other = FOUND._replace(key=KEY._replace(D=64), default_seconds=None)
    tuning.remember([other])
    assert tuning.remembered() == {KEY: FOUND, other.key: other}  # added, not replaced


def test_without_a_gpu_nothing_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tuning, "remembered", lambda: pytest.fail("read"))
    assert tuning.choose(KEY, 128, "sm_90") == DEFAULT


def broken(change):
    def edit(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def entry(**values):
    return broken(lambda content: content["tiles"][0].update(values))


def tile(**sizes):
    return broken(lambda content: content["tiles"][0]["tile"].update(sizes))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda path: path.write_text("{"), "Expecting"),
        (lambda path: path.write_text("[]"), "a JSON object is needed, got list"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "codec"),
        (broken(lambda content: content.update(device="Other GPU")), "device must be 'Test GPU 9000', got 'Other GPU'"),
        (broken(lambda content: content.update(triton="1.0")), "triton must be"),
        (broken(lambda content: content.update(format=99)), "format must be 4, got 99"),
        (broken(lambda content: content.pop("tiles")), "tiles"),
        (tile(BM=100), "BM of 'fold' must be one of .*, got 100"),
        (tile(BN=True), "BN of 'fold' must be one of .*, got True"),
        (tile(num_warps="8"), "num_warps .*, got '8'"),
        (tile(BX=1), "BX"),
        (entry(seconds=-1.0), "seconds must be positive numbers, got -1.0"),
        (entry(seconds="fast"), "seconds must be positive numbers, got 'fast'"),
        (
            entry(work={"kernel": "sort", "terms": "", "itemsize": 2}),
            "no kernel has the key .*'sort'",
        ),
        (entry(D=100), "no tile is chosen by"),
    ],
)
def test_a_broken_or_foreign_file_is_ignored_with_a_warning(gpu, edit, said):
    path = tuning.remember([FOUND])
    edit(path)
    tuning.remembered.cache_clear()
    with pytest.warns(UserWarning, match=f"tuned tiles ignored: .*test-gpu-9000.json: .*{said}"):
        assert tuning.choose(KEY, 128, "sm_90") == DEFAULT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.choose(KEY, 128, "sm_90") == DEFAULT  # said once
    tuning.remember([FOUND])
    assert tuning.choose(KEY, 128, "sm_90") == FOUND.tile


def test_a_tile_under_trial_comes_first(gpu):
    tuning.remember([FOUND])
    trial = Tile(128, 16, 64, 4, 1, 128)
    with tuning.trying(KEY, trial):
        assert tuning.choose(KEY, 128, "sm_90") == trial
    assert tuning.choose(KEY, 128, "sm_90") == FOUND.tile


def test_the_report_is_of_default_tiles_whatever_was_tuned_here(gpu, monkeypatch):
    tools.autotune()
    report = importlib.import_module("fusedloss.tools.report")
    work = Workload("info_nce_loss", 1024, 128, "bf16")
    before = [launch.options for launch in report.launches(work, "sm_90")]
    keys = {launch.key for launch in report.launches(work, "sm_90") if launch.key}
    tuning.remember([FOUND._replace(key=key) for key in keys])
    assert all(tuning.choose(key, 128, "sm_90") == FOUND.tile for key in keys)
    assert [launch.options for launch in report.launches(work, "sm_90")] == before
    assert not tuning.wanted


@pytest.mark.parametrize("arch", list(configs.TILES))
def test_every_default_tile_is_made_of_sizes_that_a_sweep_may_try(arch):
    for (kernel, _, _), rows in configs.TILES[arch].items():
        for _, tile in rows:
            assert all(size in configs.SIZES[name] for name, size in tile._asdict().items()), tile
            assert tile in configs.shapes(tile)
            near = configs.depths(tile, kernel, 128)
            assert near and all(sum(a != b for a, b in zip(tile, other, strict=True)) == 1 for other in near)


def test_a_sweep_leaves_out_what_spills_or_does_not_fit_and_keeps_the_fastest(gpu, monkeypatch):
    sweep = importlib.import_module("fusedloss.tools.sweep")
    default = configs.choose(Work("fold", "exp", 2), 128, "sm_90")
    best, spilling, large = (default._replace(BM=BM, BN=BN, num_warps=4) for BM, BN in ((64, 32), (64, 128), (256, 32)))
    deeper = best._replace(num_stages=4)
    jobs, timed = [], []

    def compiled(jobs_, advance):
        jobs_ = list(jobs_)
        jobs.append(jobs_)
        found = {}
        for code, target in jobs_:
            assert target == ("cuda", 90, 32)
            shape = tuple(dict(code.options)[name] for name in ("BM", "BN"))
            found[code, target] = {"spills": 4 * (shape == spilling[:2]), "shared_bytes": 1024}
            if shape == large[:2]:
                found[code, target]["shared_bytes"] = 1 << 20
        return found

    def timer(runs):
        now = next(iter(tuning._trial.values()))
        timed.append(now)
        return {best: 2e-3, deeper: 1e-3}.get(now, 5e-3)

    monkeypatch.setattr(sweep, "compile_all", compiled)
    monkeypatch.setattr(sweep, "architecture", lambda: "sm_90")
    runs = [step(Workload("info_nce_loss", N, 128, "bf16"), "meta") for N in (1024, 4096)]
    with fusedloss.use_backend("triton"):
        done = []
        keys = sweep.keys_of(sweep.launches(runs, "sm_90"))
        swept = sweep.tune(runs, keys, timer, lambda part, whole: done.append(part / whole))
    found = {tuned.key.work.kernel: tuned for tuned in swept}
    assert done == sorted(done) and 0 <= done[0] < 0.3 and 0.9 < done[-1] <= 1
    assert [tuned.key.work for tuned in found.values()] == [Work("fold", "exp", 2), Work("grad", "exp", 2)]
    assert found["fold"].tile == deeper and found["fold"].seconds == 1e-3
    assert found["fold"].default_seconds == 5e-3
    shapes = {tile[:2] for tile in timed}
    assert spilling[:2] not in shapes and large[:2] not in shapes and len(shapes) > 5
    assert len(timed) == len({(tile, i < len(timed) / 2) for i, tile in enumerate(timed)})  # none twice for a kernel
    assert set(tuning.remembered().values()) == set(found.values())
    row = command.config_row(found["fold"])
    assert row.startswith(f'Work("fold", "exp", 2): [(128, Tile({", ".join(map(str, deeper))}))],  # Test GPU 9000, ')
    code, _, _ = row.partition("  #")
    assert eval(f"{{{code}}}", {"Tile": Tile, "Work": Work}) == {Work("fold", "exp", 2): [(128, deeper)]}


def test_what_cannot_run_is_not_kept(gpu, monkeypatch):
    sweep = importlib.import_module("fusedloss.tools.sweep")
    fits = {"spills": 0, "shared_bytes": 1024}
    monkeypatch.setattr(sweep, "compile_all", lambda jobs, advance: dict.fromkeys(jobs, fits))
    monkeypatch.setattr(sweep, "architecture", lambda: "sm_90")
    runs = [step(Workload("nt_xent_loss", 256, 64, "bf16"), "meta")]
    default = configs.choose(Work("fold", "exp", 2), 64, "sm_90")

    def timer(runs):
        (now,) = tuning._trial.items()
        return 1e-3 if now[0].work.kernel == "fold" and now[1] != default else math.inf

    with fusedloss.use_backend("triton"):
        (found,) = sweep.tune(runs, sweep.keys_of(sweep.launches(runs, "sm_90")), timer)
    assert found.key.work.kernel == "fold" and found.tile != default and found.default_seconds is None
    assert "does not fit" in command.cells(found) and "default does not fit" in command.config_row(found)
    assert tuning.remembered() == {found.key: found}


def test_tiles_with_other_results_do_not_count():
    sweep = importlib.import_module("fusedloss.tools.sweep")
    value = torch.tensor([1.0, math.inf, math.nan])
    assert sweep.agree([value * 1.001], [value])
    assert not sweep.agree([value * 1.1], [value])
    assert not sweep.agree([torch.full((3,), math.nan)], [torch.ones(3)])
    assert sweep.agree([torch.tensor([1])], [torch.tensor([2])])  # near ties may be mined the other way


def test_at_first_use_a_kernel_is_tuned_once(gpu, monkeypatch):
    tools.autotune()
    calls = []

    def tune(runs, keys, advance):
        calls.append(list(keys))
        runs[0]()  # what was called, again
        tuning.remember([FOUND._replace(key=key) for key in keys])

    monkeypatch.setattr(importlib.import_module("fusedloss.tools.sweep"), "tune", tune)
    x = torch.empty(64, 100, device="meta", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.empty(64, device="meta", dtype=torch.int64)
    from fusedloss.backends.triton.launch import recording

    with fusedloss.use_backend("triton"), recording("sm_90"):
        for _ in range(2):
            fusedloss.supcon_loss(x, labels).backward()
        fusedloss.supcon_loss(torch.cat([x, x]), torch.cat([labels, labels])).backward()  # another batch size
    assert [[key.work.kernel for key in keys] for keys in calls] == [["fold"], ["grad"]]
    assert not tuning.wanted


def test_while_a_graph_is_captured_nothing_is_tuned(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(importlib.import_module("fusedloss.tools.sweep"), "tune", lambda *_: pytest.fail("tuned"))
    tools.autotune()
    tuning.wanted.add(KEY)
    backends.after_call(lambda: None, ())


def test_at_first_use_is_what_the_environment_asks_for(monkeypatch):
    called = "import fusedloss.backends as b; print(b.after_call)"
    for value, said in (("1", "tune_wanted"), ("0", "None")):
        script = f"import torch; torch.cuda.is_available = lambda: True\n{called}"
        environment = {**os.environ, "FUSEDLOSS_AUTOTUNE": value}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert said in done.stdout, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_that_there_is_no_gpu():
    with pytest.raises(SystemExit, match="tune: PyTorch finds no GPU here; --dry-run"):
        main(["tune"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--list --n 4096", "tune: --list takes no other options"),
        ("--reset --loss supcon_loss", "tune: --reset takes no other options"),
        ("--arch sm_80", "tune: --arch is for --dry-run"),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments, said):
    with pytest.raises(SystemExit, match=said):
        main(["tune", *arguments.split()])


def test_a_dry_run_says_what_would_be_tuned_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = "--loss supcon_loss linear_cross_entropy_loss --n 1024 4096 --dtype bf16 fp32 --arch sm_80"
    main(["tune", "--dry-run", *arguments.split()])
    printed = capsys.readouterr().out
    groups = command.plan([1024, 4096], "sm_80", loss=["supcon_loss"], d=[128], dtype=["bf16"], metric=None, classes=9)
    ((works, kernels),) = groups
    assert [work.N for work in works] == [1024, 4096]
    assert [kernel.key.work.kernel for kernel in kernels] == ["fold", "grad"]
    assert all(kernel.tiles > 20 and kernel.seconds > kernel.tiles for kernel in kernels)
    for word in ("sm_80, A100", "supcon_loss", "label_smoothing=0.1", "fold exp", "fp32", "Nothing was run"):
        assert word in printed
    main(["tune", "--dry-run", "--loss", "cross_entropy_loss"])
    assert capsys.readouterr().out == "the kernels of these losses have no tile to choose\n"


def test_a_kernel_that_losses_share_is_tuned_once():
    losses = ["supcon_loss", "nt_xent_loss", "info_nce_loss"]
    groups = command.plan([1024], "sm_90", loss=losses, d=[64], dtype=["bf16"], metric=None, classes=9)
    keys = [kernel.key for _, kernels in groups for kernel in kernels]
    assert len(keys) == len(set(keys)) and len(groups) > 2


def test_the_command_tunes_all_that_it_planned(gpu, monkeypatch, capsys):
    calls = []

    def tune(runs, keys, advance):
        advance(1, 2)
        calls.append((len(runs), [key.work.kernel for key in keys]))
        return [FOUND._replace(key=key) for key in keys]

    monkeypatch.setattr(command.sweep, "tune", tune)
    monkeypatch.setattr(command, "architecture", lambda: "sm_90")
    monkeypatch.setattr(command, "step", lambda work, device: step(work, "meta"))
    monkeypatch.setattr(backends, "_default", "auto")
    main(["tune", "--loss", "supcon_loss", "batch_hard_triplet_loss", "--n", "1024", "2048"])
    assert calls == [(2, ["fold", "grad"]), (2, ["mine"])]
    printed = capsys.readouterr().out
    for word in ("3 kernels with", "about ", "1 of 3: supcon_loss cosine", "3 of 3: batch_hard", "maxnreg", "2.00x"):
        assert word in printed
    main(["tune", "--loss", "cross_entropy_loss"])
    assert "no tile to choose" in capsys.readouterr().out


def test_kept_tiles_are_listed_and_deleted(gpu, monkeypatch, capsys):
    def said(*arguments):
        main(["tune", *arguments])
        return capsys.readouterr().out

    assert said("--list") == f"no tuned tiles in {gpu}\n"
    assert said("--reset") == f"nothing to delete: there is no {tuning.file()}\n"
    (gpu / "another.json").write_text("{")
    assert "not readable" in (printed := said("--list")) and "none of this GPU, Test GPU 9000" in printed
    path = tuning.remember([FOUND])
    printed = said("--list")
    for word in (path.name, "3.", FOUND.key.use, "BM", "held", "2.00x"):
        assert word in printed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert path.name in (printed := said("--list")) and FOUND.key.use not in printed
    with pytest.raises(SystemExit, match="deletes the tiles of this GPU; there is none"):
        said("--reset")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert said("--reset") == f"deleting {path}, the tuned tiles of Test GPU 9000\n"
    assert [file.name for file in gpu.glob("*.json")] == ["another.json"]
    assert tuning.choose(KEY, 128, "sm_90") == DEFAULT


def test_a_list_says_why_tiles_are_not_used(gpu):
    tuning.file().write_text('{"format": 4, "device": "Test GPU 9000", "triton": "1.0", "tiles": []}')
    with pytest.raises(SystemExit, match=r"not used: .*triton must be"):
        main(["tune", "--list"])
