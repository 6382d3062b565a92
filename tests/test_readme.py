"""The README: its numbers, and those of tables in docs, come from committed result files; its links hold anywhere."""

import json
import re
from pathlib import Path

import pytest

import fusedloss
from bench import cpu_table, dense, files, front, gpu_table, report

TEXT = front.README.read_text()
DOCS = sorted((files.ROOT / "docs").glob("*.md"))
WITH_TABLES = [page for page in DOCS if any(report.MARKERS.findall(page.read_text()))]
PAGES = [front.README, *WITH_TABLES]
RESULTS = files.ROOT / "bench" / "results"

FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
VERDICT = re.compile(r"(reached|missed) [\d.e+]+x")  # against a target, no ratio of two members
NUMBER = r"(?<![\w.,/-])(\d[\d,]*(?:\.\d+)?)"
UNITS = {
    "s": "s|sec|seconds?",
    "ms": "ms|milliseconds?",
    "µs": "[µμu]s|microseconds?",
    "ns": "ns",
    "min": "min|minutes?",
    **{unit: f"{unit}|{unit}/s" for unit in ("KiB", "MiB", "GiB", "TiB", "KB", "kB", "MB", "GB", "TB")},
    **{unit: unit for unit in ("GFLOP/s", "TFLOP/s", "%")},
    **{f"{thing}s": f"{thing}s?" for thing in ("kernel", "register", "spill")},
}
FIGURES = {unit: re.compile(rf"{NUMBER}[\s-]?(?:{spelt})(?!\w)") for unit, spelt in UNITS.items()}
FIGURES["times"] = re.compile(rf"{NUMBER}(?:[x×]|[\s-]?(?:times|fold))(?![\w])")
PART = re.compile(r"(?<![\w.,/])1/(\d[\d,]*(?:\.\d+)?)(?!\w)")  # 1/38.4 is 38.4 times


def figures(text: str) -> set[tuple[str, str]]:
    """Every number with a unit of measurement, and every ratio."""
    found = {(number, unit) for unit, pattern in FIGURES.items() for number in pattern.findall(text)}
    return found | {(number, "times") for number in PART.findall(text)}


def measured(path: Path) -> set[tuple[str, str]]:
    """The figures of a result file: what a page says of it, and the rows that it leaves out."""
    results = json.loads(path.read_text())
    if "timings" in results:
        others = gpu_table.others_of(results["timings"])
        rows = [gpu_table.cells(row, others) for row in results["timings"]]
    elif "beside_dense" in results:
        rows = [dense.cells(row) for row in results["beside_dense"]]
    elif "rows" in results:
        rows = [cpu_table.cells(row) for row in results["rows"]]
    else:  # of no table whose figures are quoted
        return set()
    text = "\n".join([report.section([path]), *(" | ".join(cells) for cells in rows)])
    return figures(VERDICT.sub("", text))


@pytest.fixture(scope="module")
def known():
    return set().union(figures(front.section(named(TEXT))), *map(measured, RESULTS.glob("*.json")))


def prose(text: str) -> str:
    """The text that is written by hand, without code examples."""
    return FENCED.sub("", report.MARKERS.sub("", text))


def named(text: str) -> list[Path]:
    """The result files that a section names, in order."""
    (section,) = report.MARKERS.findall(text)
    names = re.findall(r"[`/](bench/results/[\w.-]+\.json)[`)]", section)
    return [files.ROOT / name for name in names]


@pytest.mark.parametrize("page", WITH_TABLES, ids=lambda page: page.name)
def test_the_tables_are_those_that_the_result_files_give(page):
    text = page.read_text()
    assert named(text), "it names no result file"
    assert report.MARKERS.findall(text) == [report.section(named(text), page=page)]


def test_the_few_of_the_readme_are_too():
    assert report.MARKERS.findall(TEXT) == [front.section(named(TEXT))]


def test_every_figure_outside_the_tables_is_in_a_result_file(known):
    assert figures(prose(TEXT)) <= known


FALSE = [
    "3.33 ms", "3.33 s", "12.3 seconds", "a 7-minute run", "987 µs", "77 GiB", "1.2 TB/s", "77.7 MB", "61.2 %", "61.2%",
    "777 TFLOP/s", "1/77.7", "66.6x faster", "66.6× faster", "66.6 times", "a 66.6-fold gain", "99,999 kernels",
    "255 registers", "(3.33 ms)", "**3.33 ms**", "3.33\nms",
]  # fmt: skip


@pytest.mark.parametrize("false", FALSE)
def test_a_false_figure_is_found(false, known):
    changed = TEXT.replace("## Install\n", f"## Install\n\nIt takes {false}, always.\n")
    assert changed != TEXT
    (figure,) = figures(prose(changed)) - known - figures(prose(TEXT))
    assert figure[0] in false


def test_a_false_figure_of_a_table_is_found():
    (section,) = report.MARKERS.findall(TEXT)
    found = re.findall(r"\d+(?:\.\d)?x (?:faster|less)", section)
    assert len(found) == 2 * len(front.ROWS)
    for figure in found:
        changed = section.replace(figure, f"9{figure}", 1)
        assert changed != front.section(named(TEXT))


def test_a_figure_of_a_result_file_is_accepted(known):
    step = next(front.steps([files.load(path) for path in named(TEXT)]))
    assert figures("; ".join(front.cells(step))) <= known


@pytest.mark.parametrize(
    "text",
    [
        "N = 4,096, D = 128", "Python 3.10 or newer", "torch 2.13.0+cpu, 2026-11-22", "tf32x3 and 3x128 tiles", "sm_90",
        "32,768 rows of 100,000 classes", "2 cores, 2 threads", "power 1 or 2", "in 16 bits", "`[4096, 128]`",
        "N² log N time", "siglip-kernel 0.1.2", "2x2 blocks", "N / 2 rows",
    ],
)  # fmt: skip
def test_a_number_that_is_no_measurement_is_none(text):
    assert figures(text) == set()


def test_code_is_no_prose():
    assert figures(prose("takes\n```sh\nsleep 3 s\n```\n5 s")) == {("5", "s")}


def shown(page: Path) -> list[Path]:
    """The pictures of a page that are files of the project."""
    links = re.findall(r"(?:!\[[^\]]+\]\(|<img src=\")([^)\"]+)", page.read_text())
    paths = [link.removeprefix(front.RAW) if link.startswith(front.RAW) else link for link in links]
    base = files.ROOT if page == front.README else page.parent
    return [(base / path).resolve() for path in paths if not path.startswith("https:")]


def test_the_plots_are_those_of_the_result_files():
    """Each is there, was made from the file as it is now, and is shown."""
    for page in PAGES:
        for path in named(page.read_text()):
            results = files.load(path)
            own = [image for image in shown(page) if image.name.startswith(path.stem)]
            assert own or page == front.README or not {"rows", "timings"} & results.keys(), f"no plot of {path.name}"
            for image in own:
                content = image.read_bytes()
                assert content.startswith(b"\x89PNG")
                assert f"{path.name} {files.digest(results)}".encode() in content, f"{image.name} is old"
    assert set(report.PLOTS.iterdir()) == {image for page in PAGES for image in shown(page)}


# ----------------------------------------------------------------------------------------------------- what surrounds


def test_it_fits_on_a_few_screens():
    assert len(TEXT.splitlines()) <= 150


def test_its_links_hold_anywhere():
    """PyPI resolves no relative link. That those of the repository lead somewhere, `test_site.py` checks."""
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links and not [link for link in links if not link.startswith("https://")]


def test_its_badges_are_true():
    project = (files.ROOT / "pyproject.toml").read_text()
    badges = dict(re.findall(r"badge/([a-z]+)-([^)]+)-blue", TEXT))
    assert f'requires-python = ">={badges["python"].removesuffix("%2B")}"' in project
    assert f'"torch>={badges["torch"].removesuffix("%2B")}"' in project
    assert f'license = "{badges["license"]}"'.replace("--", "-") in project
    workflow = re.search(r"actions/workflows/(\w+\.yml)/badge", TEXT)[1]
    assert "run: .ci/run" in (files.ROOT / ".github" / "workflows" / workflow).read_text()


def test_the_citation_is_of_this_version():
    assert f"\nversion: {fusedloss.__version__}\n" in (files.ROOT / "CITATION.cff").read_text()
