"""The pages of the losses: each public function has one, whose formula, numbers and picture are of now."""

import inspect
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import fusedloss
from bench import gallery, pictures
from fusedloss.losses.catalog import CATALOG

TEXTS = {name: gallery.page_of(name).read_text() for name in gallery.NAMES}
SECTIONS = ["Formula", "When to use it", "Cost", "Example", "From other libraries", "Reference"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = re.compile(r"^```.*?^```$|<!-- cost -->.*<!-- /cost -->", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"\d\s?(?:ms|µs|KiB|MiB|TFLOP|times faster)\b")
DRAWN = ("supcon_loss", "proxy_anchor_loss", "hardest_pairs", "contrastive_loss")  # one of each kind of picture


def code(name, language):
    return [text for of, text in FENCE.findall(TEXTS[name]) if of == language]


def test_every_public_function_is_in_one_group_and_has_a_picture():
    assert sorted(gallery.NAMES) == sorted([*CATALOG, "hardest_pairs"]) == sorted(pictures.PICTURES)
    assert {path.stem for path in gallery.FOLDER.glob("*.md")} == {*gallery.NAMES, "index"}
    assert {path.stem for path in pictures.FOLDER.iterdir()} == set(gallery.NAMES)


@pytest.mark.parametrize("name", gallery.NAMES)
def test_a_page_has_all_parts_in_order(name):
    text, title = TEXTS[name], TEXTS[name].split("\n")[0].removeprefix("# ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert text.count(f"![{title}](images/{name}.svg)\n\n*") == 1
    assert text.endswith(f"## Reference\n\n::: fusedloss.{name}\n")
    assert [len(code(name, language)) for language in ("math", "python")] == [1, 1]
    assert len(text.splitlines()) <= 110 and max(map(len, FENCE.sub("", PROSE.sub("", text)).splitlines())) <= 120


@pytest.mark.parametrize("name", CATALOG)
def test_the_formula_is_that_of_the_docstring(name):
    fences = FENCE.findall(inspect.getdoc(getattr(fusedloss, name)))
    formulas = [text.split() for language, text in fences if language == "math"]
    assert [text.split() for text in code(name, "math")] == formulas


@pytest.mark.parametrize("name", gallery.NAMES)
def test_the_cost_is_that_of_the_catalog_and_of_the_result_files(name):
    assert gallery.COST.findall(TEXTS[name]) == [gallery.cost(name)]
    assert not FIGURE.findall(PROSE.sub("", TEXTS[name]))


def test_the_cards_are_those_of_the_pages():
    assert gallery.CARDS.findall(gallery.INDEX.read_text()) == [gallery.cards()]


@pytest.mark.parametrize("name", gallery.NAMES)
def test_the_picture_shows_what_the_loss_does_now(name):
    path = pictures.FOLDER / f"{name}.svg"
    (about,) = ElementTree.parse(path).iter("{http://purl.org/dc/elements/1.1/}description")
    kept, found = json.loads(about.text), pictures.data(name)
    assert kept.keys() == found.keys() and path.stat().st_size < 60_000
    for key, rows in kept.items():
        np.testing.assert_allclose(rows, found[key], atol=2e-3)


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_drawn_the_same_every_time(name, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `bench`")
    for number in range(2):
        pictures.draw(name, tmp_path / f"{number}.svg")
    first, second = (path.read_text() for path in sorted(tmp_path.iterdir()))
    assert first == second and "<text" in first
