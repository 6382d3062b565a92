"""docs/model.md holds what the recorded model says, of every loss and size, and no launch is forgotten."""

import json

from bench import files, model
from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.footprint import footprint
from tests.grid import FULL

RECORDED = json.loads(max((files.ROOT / "bench" / "results").glob("model-*.json")).read_text())
# Losses of two folds in a row, or of three; and one that settles what the parts of its columns know.
MORE = {"decoupled_contrastive_loss": 19, "pairwise_nt_xent_loss": 12, "lifted_structure_loss": 12,
        "batch_semihard_triplet_loss": 6}  # fmt: skip


def test_the_page_has_the_tables_of_the_file():
    (found,) = model.MARKERS.findall(model.PAGE.read_text())
    assert found == model.text(RECORDED), "python -m bench.model FILE"


def test_every_size_is_recorded_and_the_launches_of_every_loss():
    names = {work.name for work in model.works(model.LARGE, (128,))}
    modelled = {row["loss"] for row in RECORDED["shares"]}
    assert modelled <= names and {(row["loss"], row["D"]) for row in RECORDED["shares"]} == {
        (name, D) for name in modelled for D in model.DIMENSIONS
    }
    assert {(row["loss"], row["N"]) for row in RECORDED["launches"]} == {
        (name, N) for name in names for N in (model.SMALL, model.LARGE)
    }


def test_a_step_of_few_rows_takes_five_launches():
    """Of our kernels, and one more for variants that need another pass."""
    for row in RECORDED["launches"]:
        name = row["loss"].partition(",")[0]
        if row["N"] == model.SMALL and CATALOG[name].family in ("folds", "mined", "triplets"):
            assert row["kernels"] <= MORE.get(name, 6 if "," in row["loss"] else 5), row


def test_the_recorded_launches_are_those_of_the_code():
    works = {(work.name, N): work for N in (model.SMALL, model.LARGE) for work in model.works(N, (128,))}
    for row in RECORDED["launches"][:: 1 if FULL else 7]:
        found = footprint(works[row["loss"], row["N"]], model.ARCH)
        assert (found.kernels, found.operators) == (row["kernels"], row["operators"]), row
