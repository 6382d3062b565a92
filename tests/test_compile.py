"""Default tiles, compiled for GPUs that are not there, in a process of its own: the other tests interpret kernels."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import version

import pytest

from bench import files
from bench.compile_report import COMMAND, SAMPLED, identity, load, recorded
from fusedloss.losses.catalog import CATALOG
from fusedloss.tools.compiling import shared_limit
from fusedloss.tools.report import TENSOR
from tests.grid import FULL, in_full

pytest.importorskip("triton")
RECORDED = load()
ROWS = [row for rows in RECORDED.values() for row in rows]
# Registers are the compiler's to give: the tiles were chosen with this release, another one may spill some more.
TILES_ARE_FOR = {row["triton"] for row in ROWS}
MEMORY_BOUND = (
    "addmm",  # of a library
    "finish",
    "merge",
    "prepare",
    "row_distances",
    "row_slopes",
    "gather_grad",
    "close_triplets",
    "close_pairs",
    "reduce_terms",
    "fold_logits",
    "logits_grad",
    "fold_elements",
    "elements_grad",
    "settle_semihard",
)
RARE = ("triplets_tail",)  # with work to do only for classes of more than 512 rows
# A compilation takes seconds, and the whole grid is in bench/results: every loss once, in `make test` one of every
# family and piece, and a few elsewhere. (architectures, losses, N, D, dtype)
GRIDS = [
    (["sm_90"], list(CATALOG) if FULL else SAMPLED, 65536, 128, "bf16"),
    (["sm_90"], ["siglip_loss", *in_full("pairwise_contrastive_loss", "circle_loss")], 65536, 256, "fp16"),
    (["sm_90"], ["arcface_loss", *in_full("batch_all_triplet_loss", "siglip_loss")], 65536, 512, "bf16"),
    (["sm_90"], ["pairwise_nt_xent_loss", *in_full("pairwise_contrastive_loss")], 65536, 128, "fp32"),
    (["sm_80", "sm_100", "gfx942"], ["circle_loss", *in_full("linear_cross_entropy_loss")], 65536, 128, "bf16"),
]
COMPILE = """
import json, sys
from fusedloss.tools.report import report
from fusedloss.tools.workloads import workloads

if __name__ == "__main__":
    works = {}
    for archs, losses, N, D, dtype in json.loads(sys.argv[1]):
        works.setdefault(tuple(archs), []).extend(workloads(losses, [N], [D], [dtype], None, 8192))
    json.dump([row for archs, of in works.items() for row in report(of, archs)], sys.stdout)
"""


def command(arguments, start=("-m", "fusedloss"), **more):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | more
    done = subprocess.run([sys.executable, *start, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def grouped(rows):
    found = defaultdict(list)
    for row in rows:
        found[identity(row)].append(row)
    return found


def check(row):
    """What every default tile must satisfy."""
    assert row["shared_bytes"] <= shared_limit(row["arch"]), row
    assert 0 < row["occupancy"] <= 1 and row["programs"] >= 1, row
    if row["kernel"].startswith(MEMORY_BOUND):
        # `finish` has logarithms in float64, which are calls, around which it saves registers once.
        assert row["spills"] <= 4 * row["kernel"].startswith("finish") or row["arch"] == "gfx942", row
        return
    if row["metric"] != "manhattan":
        assert row["registers"] >= 48, row  # far fewer: the compiler gave up and left a trap
        assert row["tensor"] > 0, row
        unread = row["issued"] is None  # loops of gfx942, and of triplets on sm_80
        assert row["arch"] in ("gfx942", "sm_80") if unread else row["issued"] > 0, row
        if row["arch"] == "sm_90" and row["dtype"] != "fp32" and not row["kernel"].startswith(RARE):
            # Before and behind the loops some cost next to nothing; fp16 has the powers of two of its rows to hold too.
            # Both sides in one launch leave fewer registers: at D = 256, 5 spills in a tile of 8,192 pairs, and by
            # the model 19.5 ms where tiles without take 22.0. A tile of a panel has 32,768 pairs.
            most = 4 if row["dtype"] == "fp16" else 0
            most = 8 if "x and y" in row["kernel"] else 12 if row["kernel"] == "panel" else most
            spill = f"registers spill: fewer operations in the piece, or smaller tiles, for {row}"
            assert row["loop_spills"] <= most, spill


def test_default_tiles_compile_to_tensor_core_code_that_fits_and_never_gets_worse(tmp_path):
    script = tmp_path / "compile_grids.py"  # a file, which the processes that compile can import
    script.write_text(COMPILE)
    rows = json.loads(command([json.dumps(GRIDS)], [str(script)], PYTHONPATH=str(files.ROOT)))
    assert rows and all("error" not in row for row in rows)
    if {version("triton")} != TILES_ARE_FOR:
        return
    before = grouped(ROWS)
    for key, group in grouped([recorded(row) for row in rows]).items():
        loss = key[0].split(",")[0]
        again = f"if the change is meant, `{COMMAND} {loss}` records it"
        assert len(group) == len(before[key]), f"{key} has other launches than are recorded: {again}"
        for now, was in zip(group, before[key], strict=True):
            check(now)
            for name in ("registers", "spills", "shared_bytes", "issued", "loop_spills"):
                grown = was[name] is not None and now[name] > was[name]
                assert not grown, f"{key}: {now[name]} {name}, recorded are {was[name]}: {again}"
            for name in ("loop_groups", "loop_waits"):  # more of them: products that wait for each other
                assert now[name] == was[name], f"{key}: {now[name]} {name}, recorded are {was[name]}: {again}"


def test_every_loss_is_recorded():
    missing, gone = sorted(CATALOG.keys() - RECORDED.keys()), sorted(RECORDED.keys() - CATALOG.keys())
    assert not missing, f"record what compilers make of them, and commit the files: {COMMAND} {' '.join(missing)}"
    assert not gone, f"in bench/results/compiled are files of losses that are none: {gone}"


def test_the_recorded_report_holds_its_promises():
    """On sm_90, 16-bit kernels up to D = 512 use wgmma and have almost no spills in the loop with most of the pairs."""
    assert len(TILES_ARE_FOR) == 1, f"recorded with several releases of Triton: {COMMAND} {' '.join(RECORDED)}"
    for loss, rows in RECORDED.items():
        assert {row["loss"].split(",")[0] for row in rows} == {loss}
        sizes = {(row["dtype"], row["D"]) for row in rows if row["arch"] == "sm_90"}
        assert {("bf16", D) for D in (128, 256, 512)} <= sizes
        if loss in SAMPLED:
            assert {row["arch"] for row in rows} == set(TENSOR)
            assert {("fp16", D) for D in (128, 256, 512)} | {("bf16", 64), ("fp32", 128)} <= sizes
        for row in rows:
            check(row)


# Instructions a pair of the far loop, where mining finds a better pair in a third of the tiles.
BUDGET = {("fold", 128): 14, ("fold", 256): 15, ("grad self", 128): 22, ("grad self", 256): 25,
          ("mine", 128): 13, ("mine", 256): 15}  # fmt: skip


def test_far_loops_stay_within_their_budget():
    seen = set()
    for loss in ("pairwise_contrastive_loss", "supcon_loss", "batch_hard_triplet_loss"):
        for row in RECORDED[loss]:
            kernel = row["kernel"], row["D"]
            of = row["arch"], row["dtype"], row["N"], row["loss"]
            if kernel not in BUDGET or of != ("sm_90", "bf16", 65_536, loss) or row["metric"] == "manhattan":
                continue
            if loss == "supcon_loss" and row["metric"] != "cosine":
                continue
            if kernel[0] != "mine":
                assert row["programs"] >= (1 if kernel == ("grad self", 256) else 2), row
            others = loss != "supcon_loss" and row["metric"] in ("cosine", "sqeuclidean")  # scores that take more
            folds_too = 2 * CATALOG[loss].emits
            assert row["issued"] <= BUDGET[kernel] + folds_too or others, row
            seen.add((loss, kernel))
    assert len(seen) == 8, seen  # a step of the contrastive loss has no fold


SAME = """
from fusedloss.tools.compiling import compile_source, source, target
from fusedloss.tools.report import launches
from fusedloss.tools.workloads import Workload

for loss in ("batch_hard_triplet_loss", "supcon_loss", "arcface_loss", "batch_all_triplet_loss"):
    for sizes in ((1024, 1025, 1040), (8192, 8193, 8208)):  # above N = 4,096 rows are sorted
        kinds = []
        for N in sizes:
            kinds.append({source(launch) for launch in launches(Workload(loss, N, 64, "bf16"), "sm_90")})
        compiled = [{compile_source(code, target("sm_90"))["hash"] for code in kind} for kind in kinds]
        assert all(codes == compiled[0] for codes in compiled), (loss, sizes)
"""


def test_another_batch_size_compiles_nothing_anew():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SAME], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The command, with three candidates of a tile where there are some thirty.
FEW = """
from fusedloss.__main__ import main
from fusedloss.kernels import configs

configs.shapes = lambda tile: [tile._replace(BN=BN) for BN in (16, 32, 64)]
configs.depths = lambda *_: []
main()
"""


def test_all_candidates_of_a_kernel_are_reported(tmp_path):
    path = tmp_path / "rows.json"
    arguments = "--arch sm_90 --dtype bf16 --d 64 --n 1024 --loss batch_hard_triplet_loss --metric cosine --all"
    start = ["-m", "fusedloss"] if FULL else ["-c", FEW]
    printed = command(["report", *arguments.split(), "--json", str(path)], start)
    rows = json.loads(path.read_text())
    tiles = {tuple(row["config"].values()) for row in rows if row["kernel"] == "mine"}
    assert len(tiles) > 20 if FULL else len(tiles) == 3
    # of the hardest pairs, and of semihard ones: their positives, then the negatives beyond them
    assert sum(row["default"] for row in rows if row["kernel"] == "mine") == 3
    for word in ("batch_hard_triplet_loss", "mine", "sm_90", "GEMM floor", "nothing is measured"):
        assert word in printed
