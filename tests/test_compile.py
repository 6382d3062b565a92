"""Default tiles, compiled for GPUs that are not there, in a process of its own: the other tests interpret kernels."""

import json
import os
import subprocess
import sys

import pytest

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# Every loss with every score once, and a few of them elsewhere: a compilation takes seconds, and the whole grid is in
# bench/results. D = 1 because Triton turns an argument of 1 into a constant.
GRIDS = {
    "every loss": ["--arch sm_90 --dtype bf16 --d 128"],
    "16-bit": [
        "--arch sm_90 --dtype bf16 --d 64 256 --metric euclidean dot --loss contrastive supcon siglip",
        "--arch sm_90 --dtype fp16 --d 128 256 --metric cosine similarity --loss contrastive clip",
        "--arch sm_90 --dtype fp16 --d 256 --metric chord --loss lifted_structure",
        "--arch sm_90 --dtype bf16 --d 1 --metric sqeuclidean similarity --loss contrastive clip",
        "--arch sm_90 --dtype fp16 --d 64 256 --metric dot similarity --loss linear_cross_entropy arcface",
    ],
    "fp32": [
        "--arch sm_90 --dtype fp32 --d 128 768 --metric sqeuclidean similarity --loss contrastive clip",
        "--arch sm_90 --dtype fp32 --d 1 --metric manhattan --loss contrastive",
    ],
    "other architectures": [
        "--arch sm_80 sm_100 gfx942 --dtype bf16 --d 128 --metric euclidean similarity --loss contrastive supcon"
    ],
}


NO_PRODUCTS = ("row_distances", "row_distances_grad", "gather_grad", "prepare")
NO_PRODUCTS += ("fold_logits", "logits_grad", "fold_elements", "elements_grad")

# Registers are the compiler's to give: the tiles were chosen with this release, another one may spill some more.
TILES_ARE_FOR = pytest.importorskip("triton").__version__.startswith("3.7.")


def compile_report(arguments, path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.compile_report", *arguments.split(), "--json", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("grid", GRIDS)
def test_default_tiles_compile_to_tensor_core_code_that_fits(grid, tmp_path):
    rows = [row for i, a in enumerate(GRIDS[grid]) for row in compile_report(a, tmp_path / f"{i}.json")]
    assert len(rows) >= 10
    for row in rows:
        assert "error" not in row, row
        assert row["shared_bytes"] <= SHARED_LIMIT[row["arch"]], row
        if row["kernel"] in NO_PRODUCTS or row["metric"] == "manhattan":
            assert row["spills"] == 0 or row["metric"] == "manhattan" or not TILES_ARE_FOR, row
            continue
        assert row["registers"] >= 64, row  # fewer: the compiler gave up and left a trap
        products = {"sm_80": "hmma", "sm_90": "hgmma", "sm_100": "utcmma", "gfx942": "mfma"}[row["arch"]]
        assert row[products] > 0, row
        if TILES_ARE_FOR and row["arch"] == "sm_90" and row["dtype"] != "fp32" and row["D"] <= 256:
            most = 8 if row["metric"] in ("cosine", "similarity", "chord") else 0  # instructions, of some 2,000
            assert row["spills"] <= most, row
