"""Tables and plots of result files, those of a GPU included, made by hand."""

import itertools
import json

import pytest

from bench import accuracy, files, gpu_table, plots, report, tables
from bench.floor import product_flop
from bench.gpu_table import LIBRARY
from bench.peers import PEERS
from bench.workloads import CASES, IMPLEMENTATIONS

RATE = 700e12
META = {
    "date": "2026-11-25T10:00:00+00:00", "device": "NVIDIA H100", "processor": "AMD EPYC", "cores": 16,
    "torch": "2.13.0", "triton": "3.7.1", "pytorch-metric-learning": "2.9.0", "driver": "570.1",
}  # fmt: skip


def found(case, n, d, seconds, peak):
    row = {"seconds": seconds, "wall_seconds": 2 * seconds, "runs": 9, "peak_bytes": peak}
    flop = product_flop(CASES[case].loss, n, d, CASES[case].classes)
    return row | ({"of_gemm_floor": flop / RATE / seconds} if flop else {})


def timing(case, n, d, dtype, **members):
    ran = {name: found(case, n, d, *m) if isinstance(m, tuple) else {"failed": m} for name, m in members.items()}
    return {"case": case, "n": n, "d": d, "dtype": dtype, "classes": CASES[case].classes, **ran}


def gpu_file(*more):
    rows = [
        timing(case, n, d, dtype, fusedloss=(1e-9 * n * d, 16 * n * d), reference=(4e-9 * n * d, n * n))
        for n, case, d, dtype in itertools.product(
            (4096, 16_384), ("supcon", "clip", "cross entropy, 32,000 logits"), (128, 256), ("float32", "bfloat16")
        )
    ]
    steps = {"timings": {"status": "passed", "seconds": 99.0, "detail": ""}}
    ceilings = {"bfloat16_gemm_flops": RATE, "copy_bytes_per_second": 3e12}
    return {"meta": dict(META), "steps": steps, "ceilings": ceilings, "parity": [], "timings": [*rows, *more]}


def cpu_file():
    rows = [
        {"case": case, "n": n, "d": 128, "classes": CASES[case].classes, "threads": threads, "rounds": 3, "load": 0.1,
         "fusedloss": {"seconds": 1e-9 * n * n, "peak_bytes": 1024 * n},
         "pytorch-metric-learning": {"seconds": 5e-9 * n * n, "peak_bytes": 8 * n * n},
         "time_ratio": 0.25, "peak_ratio": 1024 / 8 / n}
        for case in ("contrastive", "supcon") for n in (1024, 4096) for threads in (1, 2)
    ]  # fmt: skip
    return {"meta": META | {"driver": None}, "rows": rows, "gemm_flops": {"1": 5e10, "2": 9e10}}


def write(folder, name, results):
    path = folder / name
    path.write_text(json.dumps(results))
    return path


def table(text, first):
    """The rows of the Markdown table whose first column has this name."""
    part = text[text.index(f"| {first} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]


def test_a_gpu_file_marks_its_targets(tmp_path):
    results = gpu_file(
        timing("batch-hard", 65_536, 256, "bfloat16", fusedloss=(2.05e-3, 2**28), reference="out of memory"),
        timing("supcon", 65_536, 256, "bfloat16", fusedloss=(33e-3, 2**28)),
        timing("nt-xent", 65_536, 256, "bfloat16", fusedloss="AssertionError: gradient is off"),
        timing("siglip", 131_072, 768, "float32", fusedloss=(1e-3, 2**28)),  # in another dtype
        timing("clip", 131_072, 512, "bfloat16", fusedloss=(35e-3, 2**28)),
        timing("supcon", 1_048_576, 256, "bfloat16", fusedloss=(7.0, 2**33)),
        timing("circle", 8192, 128, "float32", fusedloss=(1e-3, 2**24), **{LIBRARY: (25e-3, 2**30)}),
        timing("supcon", 8192, 128, "float32", fusedloss=(1e-3, 2**24), **{LIBRARY: "out of memory"}),
        timing("nt-xent", 4096, 128, "bfloat16", **{"torch.compile": (5e-4, 2**26)})
        | {"fusedloss": found("nt-xent", 4096, 128, 1e-3, 2**24) | {"launches": 42}},
    )
    text = report.section([write(tmp_path, "gpu.json", results)])
    rows = table(text, "target")[2:]
    verdicts = {(row[0], int(row[3].replace(",", "")), row[4]): row[5:] for row in rows[:-1]}
    assert len(verdicts) == len(gpu_table.TARGETS)
    assert verdicts["batch-hard", 65_536, "4.1 ms"] == ["2.05 ms", "reached 2x"]
    assert verdicts["supcon", 65_536, "16.5 ms"] == ["33 ms", "missed 2x"]
    assert verdicts["nt-xent", 65_536, "16.5 ms"] == ["-", "failed"]
    assert verdicts["clip", 131_072, "35 ms"] == ["35 ms", "reached 1x"]
    assert verdicts["supcon", 1_048_576, "it runs"] == ["7.00 s", "reached"]
    assert verdicts["circle", 8192, f"1/20.0 of {LIBRARY}'s time"] == ["1/25.0", "reached 1.2x"]
    assert verdicts["circle", 8192, f"1/100.0 of {LIBRARY}'s peak"] == ["1/64.0", "missed 1.6x"]
    assert verdicts["supcon", 8192, f"1/20.0 of {LIBRARY}'s time"] == ["1 ms", f"{LIBRARY}: out of memory"]
    assert verdicts["nt-xent", 4096, "6 launches"] == ["42 launches", "missed 7x"]
    assert verdicts["nt-xent", 4096, "torch.compile's time"] == ["2.0x", "missed 2x"]
    for missing in (("contrastive", 65_536, "3 ms"), ("siglip", 131_072, "48.8 ms"), ("supcon", 4096, "6 launches")):
        assert verdicts[missing] == ["-", "not measured"]
    assert rows[-1][4:] == [
        "peak of 16 (N + M) D bytes + 256.0 MiB", "97% (supcon, bfloat16, D=256, N=1,048,576)", "reached 1x"
    ]  # fmt: skip


def test_a_gpu_file_compares_every_member(tmp_path):
    row = timing(
        "siglip", 8192, 256, "bfloat16",
        **{"fusedloss": (1e-3, 2**24), "siglip-kernel": (3e-3, 2**25), "reference": "out of memory"},
    )  # fmt: skip
    text = report.section([write(tmp_path, "gpu.json", gpu_file(row))])
    head, _, *rows = table(text, "case")
    assert head == ["case", "dtype", "D", "N", "fusedloss", "of floor", "reference", "siglip-kernel",
                    "peak", "reference's", "siglip-kernel's"]  # fmt: skip
    (shown,) = (row for row in rows if row[0] == "siglip")
    assert shown[1:] == ["bfloat16", "256", "8,192", "1 ms", f"{2 * 4096**2 * 256 / RATE / 1e-3:.1%}", "out of memory",
                         "3 ms (1/3.0)", "16.0 MiB", "-", "32.0 MiB (1/2.0)"]  # fmt: skip
    (logits, *_) = (row for row in rows if "logits" in row[0])
    assert logits[5] == "-"  # no product, no floor
    assert "NVIDIA H100" in text and "torch 2.13.0" in text and "2026-11-25" in text and "gpu.json" in text
    assert "700 TFLOP/s" in text


def test_tables_and_plots_are_written_between_the_markers(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    paths = [write(tmp_path, "cpu.json", cpu_file()), write(tmp_path, "gpu.json", gpu_file())]
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    report.main(*map(str, paths), "--page", str(readme), "--plots", str(tmp_path / "new" / "plots"))
    text = readme.read_text()
    assert text.startswith("before\n<!-- results -->\n") and text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text and str(tmp_path) not in text
    views = ("time", "memory", "floor")
    expected = [f"cpu-{view}.png" for view in views]
    expected += [f"gpu-{dtype}-{view}.png" for dtype in ("bfloat16", "float32") for view in views]
    for name in expected:
        assert f"](new/plots/{name})" in text
        content = (tmp_path / "new" / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and 20_000 < len(content) < 500_000
        assert str(tmp_path).encode() not in content
    assert {path.name for path in (tmp_path / "new" / "plots").iterdir()} == set(expected)
    assert "gpu-float32-floor.png" in capsys.readouterr().out
    report.main(*map(str, paths), "--page", str(readme), "--plots", str(tmp_path / "new" / "plots"))
    assert readme.read_text() == text


def test_the_floor_is_one_product_of_all_pairs():
    points = {(p.case, p.n, p.member): p.values for p in plots.points_of(cpu_file())}
    seconds = 1e-9 * 4096**2
    assert points["supcon", 4096, "fusedloss"]["floor"] == pytest.approx(2 * 4096**2 * 128 / 9e10 / seconds)
    assert product_flop("nt_xent_loss", 512, 64, 32) == 2 * 512 * 512 * 64
    assert product_flop("info_nce_loss", 512, 64, 32) == 2 * 256 * 256 * 64
    assert product_flop("arcface_loss", 512, 64, 1000) == 2 * 512 * 1000 * 64
    assert product_flop("cross_entropy_loss", 512, 64, 1000) is None


def test_without_a_ceiling_there_is_no_plot_of_the_floor():
    results = cpu_file()
    del results["gemm_flops"]
    assert [plot.view for plot in plots.plots_of("cpu", results)] == ["time", "memory"]


def test_of_several_thread_counts_the_most_are_plotted():
    results = cpu_file()
    results["rows"][0]["fusedloss"]["seconds"] = 77.0  # of one thread
    assert all(point.values["time"] < 77 for point in plots.points_of(results))


def test_a_panel_says_what_its_table_says():
    points = [point for point in plots.points_of(cpu_file()) if point.case == "supcon"]
    assert plots.summary("time", points) == "1/4.0 at N=4,096"  # the rounds' ratio, not that of the medians
    alone = [point for point in points if point.member == "fusedloss"]
    assert plots.summary("time", alone) == "16.8 ms at N=4,096"


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (tables.seconds(0.9996), "1.00 s"), (tables.seconds(9.996e-4), "1 ms"), (tables.seconds(1.5e-6), "1.5 µs"),
        (tables.gain(0.25), "4.0x"), (tables.gain(1 / 1234.5), "1,234x"), (tables.gain(2.0), "0.5x"),
        (tables.ratio(0.25), "1/4.0"), (tables.ratio(1.0), "1/1.0"), (tables.ratio(2.5), "2.5x"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(number, written):
    assert number == written


def test_every_member_has_a_look_of_its_own():
    assert set(IMPLEMENTATIONS) | set(PEERS) <= set(plots.LOOKS)
    assert len({*plots.LOOKS.values(), plots.OTHER_LOOK}) == len(plots.LOOKS) + 1


def without(results, *keys):
    *path, last = keys
    inner = results
    for key in path:
        inner = inner[key]
    del inner[last]
    return results


@pytest.mark.parametrize(
    ("results", "what"),
    [
        (without(gpu_file(), "meta"), "no result file"),
        (without(cpu_file(), "rows"), "no result file"),
        ([], "no result file"),
        (without(gpu_file(), "ceilings"), "'ceilings'"),
        (without(gpu_file(), "meta", "device"), "'device'"),
        (without(gpu_file(), "timings", 0, "n"), "'n'"),
        (without(gpu_file(), "timings", 0, "fusedloss"), "'fusedloss'"),
        (without(cpu_file(), "rows", 0, "time_ratio"), "'time_ratio'"),
        (without(cpu_file(), "rows", 0, "fusedloss", "seconds"), "'seconds'"),
    ],
)
def test_a_file_without_a_key_is_named(results, what, tmp_path):
    path = write(tmp_path, "broken.json", results)
    with pytest.raises(SystemExit, match=rf"broken\.json: .*{what}"):
        report.main(str(path), "--page", str(report.PAGE), "--plots", str(tmp_path))


def accuracy_file():
    """Results of two losses: one as exact as eager, and one that is not, and is not finite in float16."""
    row = {"dtype": "fp32", "regime": "length 1", "atol": [1e-6, 1e-6], "eager": [1e-7, 2e-7],
           "eager in float32": [1e-7, 2e-7], "triton": [1e-7, 1.2e-6], "blocked": [0.0, 3e-7]}  # fmt: skip
    half = {"dtype": "fp16", "atol": [1e-6, 5e-4], "eager": [None, None]}
    rows = [
        row | {"loss": "supcon_loss"},
        row | {"loss": "clip_loss", "triton": [1e-7, 2e-6]},
        row | half | {"loss": "clip_loss", "triton": [1e-7, None], "blocked": [1e-7, 4e-4]},
    ]
    backends = {"triton": "interpreted", "blocked": "PyTorch on the CPU"}
    return {"meta": META, "n": 48, "d": 64, "classes": 20, "backends": backends, "accuracy": rows}


def test_a_page_of_accuracy_marks_what_is_worse_than_eager(tmp_path):
    path, page = write(tmp_path, "accuracy.json", accuracy_file()), tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\n<!-- /results -->\nafter\n")
    report.main(str(path), "--page", str(page), "--plots", str(tmp_path / "plots"))
    text = page.read_text()
    assert "`accuracy.json`" in text and "2 of 3 by the triton backend" in text and report.NOTE not in text
    first, *_ = (table(part, "loss")[2:] for part in text.split("### ")[1:])
    assert first == [["`supcon_loss`", "1e-7 (1e-7), 1e-6 (2e-7)", "-", "-", "-", "-"],
                     ["`clip_loss`", "**!** 1e-7 (1e-7), 2e-6 (2e-7)", "-", "-", "-", "-"]]  # fmt: skip
    half = table(text.split("### fp16, triton")[1], "loss")
    assert half[-1][1] == "**!** 1e-7 (inf), inf (inf)"
    assert not list((tmp_path / "plots").iterdir())


def test_accuracy_is_measured_of_every_loss():
    (row, *_) = accuracy.measured("triplet_margin_loss")
    assert (row["loss"], row["dtype"], row["regime"]) == ("triplet_margin_loss", "fp32", "length 1")
    for found in (row[of] for of in ("eager", "eager in float32", *accuracy.BACKENDS)):
        assert all(0 <= error < 1e-5 for error in found)
    assert not any(accuracy.worse(row, backend) for backend in accuracy.BACKENDS)


@pytest.mark.parametrize("content", [None, "", '{"meta": {', "\x00"])
def test_a_file_that_is_no_json_is_named(content, tmp_path):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=r"broken\.json: (not JSON|No such file)"):
        report.main(str(path))


def test_a_readme_without_markers_is_named(tmp_path):
    path, readme = write(tmp_path, "cpu.json", cpu_file()), tmp_path / "plain.md"
    readme.write_text("nothing")
    with pytest.raises(SystemExit, match=r"plain\.md: no markers"):
        report.main(str(path), "--page", str(readme), "--plots", str(tmp_path))
    assert readme.read_text() == "nothing" and not list(tmp_path.glob("*.png"))


def test_a_result_file_keeps_its_other_sections(tmp_path):
    path = tmp_path / "folder" / "result.json"
    files.save(path, {"meta": META})
    files.update(path, timings=[])
    assert files.load(path) == {"meta": META, "timings": []}
