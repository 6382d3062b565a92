"""Default tiles, compiled for GPUs that are not there, in a process of its own: the other tests interpret kernels."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import version

import pytest

from bench.compile_report import FILE, identity
from fusedloss.tools.compiling import shared_limit
from fusedloss.tools.workloads import LOSSES

pytest.importorskip("triton")
RECORDED = json.loads(FILE.read_text())
# Registers are the compiler's to give: the tiles were chosen with this release, another one may spill some more.
TILES_ARE_FOR = RECORDED[0]["triton"]
PRODUCTS = {"sm_80": "hmma", "sm_90": "hgmma", "sm_100": "utcmma", "gfx942": "mfma"}
MEMORY_BOUND = (
    "merge",
    "prepare",
    "row_distances",
    "gather_grad",
    "fold_logits",
    "logits_grad",
    "fold_elements",
    "elements_grad",
)
# Every loss once, and a few of them elsewhere: a compilation takes a second, and the whole grid is in bench/results.
GRIDS = {
    "every loss": "--arch sm_90 --dtype bf16 --d 128 --n 65536",
    "few rows": "--arch sm_90 --dtype fp16 --d 256 --n 1024 --loss pairwise_contrastive_loss clip_loss supcon_loss",
    "large D": "--arch sm_90 --dtype bf16 --d 512 --n 65536 --loss batch_all_triplet_loss arcface_loss siglip_loss",
    "fp32": "--arch sm_90 --dtype fp32 --d 128 --n 65536 --loss pairwise_contrastive_loss info_nce_loss",
    "other architectures": "--arch sm_80 sm_100 gfx942 --dtype bf16 --d 128 --n 65536 --loss supcon_loss clip_loss",
}


def command(arguments, **environment):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "fusedloss", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def grouped(rows):
    found = defaultdict(list)
    for row in rows:
        found[identity(row)].append(row)
    return found


def check(row):
    """What holds of every default tile."""
    assert "error" not in row, row
    assert row["shared_bytes"] <= shared_limit(row["arch"]), row
    assert 0 < row["occupancy"] <= 1, row
    if row["kernel"].startswith(MEMORY_BOUND):
        assert row["spills"] == 0 or row["arch"] == "gfx942", row
        return
    if row["metric"] != "manhattan":
        assert row["registers"] >= 64, row  # fewer: the compiler gave up and left a trap
        assert row[PRODUCTS[row["arch"]]] > 0, row
        if row["arch"] == "sm_90" and row["dtype"] != "fp32":
            assert row["spills"] == 0, row


@pytest.mark.parametrize("grid", GRIDS)
def test_default_tiles_compile_to_tensor_core_code_that_fits_and_never_gets_worse(grid, tmp_path):
    command(["report", *GRIDS[grid].split(), "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows and all("error" not in row for row in rows)
    if version("triton") != TILES_ARE_FOR:
        return
    recorded = grouped(RECORDED)
    for row in rows:
        check(row)
    for key, group in grouped(rows).items():
        for now, before in zip(group, recorded[key], strict=True):
            for name in ("registers", "spills", "shared_bytes"):
                assert now[name] <= before[name], (name, now, before)


def test_the_recorded_report_has_every_loss_and_holds_its_promises():
    """No spills and wgmma for 16 bits up to D = 512 on sm_90."""
    assert {row["loss"].split(",")[0] for row in RECORDED} == set(LOSSES)
    assert {row["arch"] for row in RECORDED} == set(PRODUCTS)
    for row in RECORDED:
        check(row)
        assert row["triton"] == TILES_ARE_FOR
    sizes = {(row["dtype"], row["D"]) for row in RECORDED if row["arch"] == "sm_90"}
    assert {(dtype, D) for dtype in ("bf16", "fp16") for D in (64, 128, 256, 512)} <= sizes


SAME = """
from fusedloss.tools.compiling import compile_source, source, target
from fusedloss.tools.report import launches
from fusedloss.tools.workloads import Workload

for loss in ("batch_hard_triplet_loss", "supcon_loss", "arcface_loss", "clip_loss", "batch_all_triplet_loss"):
    kinds = []
    for N in (4096, 4097, 4100, 4112, 5000):
        kinds.append({source(launch) for launch in launches(Workload(loss, N, 64, "bf16"), "sm_90")})
    compiled = [{compile_source(code, target("sm_90"))["hash"] for code in kind} for kind in kinds]
    assert all(codes == compiled[0] for codes in compiled), loss
"""


def test_another_batch_size_compiles_nothing_anew():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SAME], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_candidates_of_a_kernel_are_reported(tmp_path):
    path = tmp_path / "rows.json"
    arguments = "--arch sm_90 --dtype bf16 --d 64 --n 1024 --loss batch_hard_triplet_loss --metric cosine --all"
    printed = command(["report", *arguments.split(), "--json", str(path)])
    rows = json.loads(path.read_text())
    tiles = {tuple(row["config"].values()) for row in rows if row["kernel"] == "mine"}
    assert len(tiles) > 20
    # of the hardest pairs, and of semihard ones: their positives, then the negatives beyond them
    assert sum(row["default"] for row in rows if row["kernel"] == "mine") == 3
    for word in ("batch_hard_triplet_loss", "mine", "sm_90", "GEMM floor", "nothing is measured"):
        assert word in printed
