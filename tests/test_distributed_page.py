"""The page about several processes: a program for every trainer, and numbers that are those of the result file."""

import json
import re

import pytest

from bench import files
from tests import pages

PAGE = "docs/distributed.md"


def test_every_trainer_has_a_program():
    assert pages.programs(PAGE).keys() == {"", "lightning", "accelerate"}


def test_the_table_of_traps_is_that_of_the_result_file():
    traps = pytest.importorskip("bench.group_traps", reason="needs the extra `examples`")
    text = (files.ROOT / PAGE).read_text()
    (name,) = re.findall(r"\]\(\.\./(bench/results/group-traps-[\d-]+\.json)\)", text)
    results = json.loads((files.ROOT / name).read_text())
    assert f"\n{traps.table(results)}\n" in text
    assert (results["temperature"], results["rows_of_a_process"]) == (0.1, 64) and "SIGABRT" in results["uneven_gather"]
    assert results["errors"].keys() == {f"{world} processes" for world in traps.WORLDS}
