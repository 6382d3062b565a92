"""The page about several processes: its code runs as it stands, its numbers are those of the result file."""

import json
import re

import pytest
import torch.distributed as dist

from bench import files
from tests import torchrun

PAGE = files.ROOT / "docs" / "distributed.md"
BLOCK = re.compile(r"^```python(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def blocks():
    """The page's programs by the word that marks their blocks; the program of unmarked blocks is ""."""
    programs = {}
    for kind, code in BLOCK.findall(PAGE.read_text()):
        programs[kind] = f"{programs.get(kind, '')}{code}\n"
    return programs


def test_all_code_is_run():
    assert PAGE.read_text().count("```") == 2 * len(BLOCK.findall(PAGE.read_text()))
    assert blocks().keys() == {"", "lightning", "accelerate"}


def test_the_page_is_one_program(tmp_path):
    (tmp_path / "page.py").write_text(blocks()[""])
    torchrun.run("page.py", folder=tmp_path)
    assert {path.name for path in tmp_path.glob("*.pt")} == {"shard-0.pt", "shard-1.pt"}


@pytest.mark.parametrize("trainer", ["lightning", "accelerate"])
def test_the_page_with_a_trainer(trainer, tmp_path, monkeypatch):
    pytest.importorskip(trainer, reason="needs the extra `trainers`")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "page.py").write_text(blocks()[trainer])
    torchrun.run("page.py", folder=tmp_path, processes=1 if trainer == "lightning" else 2)  # which starts its own


def test_the_table_of_traps_is_that_of_the_result_file():
    traps = pytest.importorskip("bench.group_traps", reason="needs the extra `examples`")
    (name,) = re.findall(r"\]\(\.\./(bench/results/group-traps-[\d-]+\.json)\)", PAGE.read_text())
    results = json.loads((files.ROOT / name).read_text())
    assert f"\n{traps.table(results)}\n" in PAGE.read_text()
    assert (results["temperature"], results["rows_of_a_process"]) == (0.1, 64) and "SIGABRT" in results["uneven_gather"]
    assert results["errors"].keys() == {f"{world} processes" for world in traps.WORLDS}
