"""The model of a kernel's time, and what a binary says."""

import pytest
import torch

from fusedloss.tools.compiling import Pointer, loops, portable, shared_limit, size, target
from fusedloss.tools.roofline import GPUS, floor_seconds, kernel_seconds, occupancy
from fusedloss.tools.workloads import LOSSES, Workload

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "arch", "share"),
    [
        (255, 50 << 10, 8, "sm_90", 8 / 64),  # registers: 255 x 256 threads are nearly all
        (128, 50 << 10, 8, "sm_90", 16 / 64),  # registers for two programs
        (32, 100 << 10, 4, "sm_90", 8 / 64),  # shared memory for two
        (32, 0, 4, "sm_80", 1.0),
        (128, 0, 4, "gfx942", 0.5),  # 64 threads a warp
    ],
)
def test_occupancy(registers, shared, warps, arch, share):
    assert occupancy({"registers": registers, "shared_bytes": shared}, warps, arch) == share


def test_floors_are_products_or_bytes():
    product = 2 * 65536**2 * 128 / 800e12  # 1.4 ms, as every pair of rows takes
    expected = {
        "pairwise_contrastive_loss": 1.5 * product,
        "batch_hard_triplet_loss": product,
        "supcon_loss": 3 * product,
        "clip_loss": 4 * product,
        "nt_xent_loss": 3 * 4 * product,  # two views: twice as many rows
        "arcface_loss": 3 * product * 1024 / 65536,
        "cross_entropy_loss": 3 * 65536 * 1024 * 2 / 3e12,
        "triplet_margin_loss": 9 * 65536 * 128 * 2 / 3e12,
        "center_loss": 3 * (65536 + 1024) * 128 * 2 / 3e12,
    }
    for loss, seconds in expected.items():
        assert floor_seconds(Workload(loss, 65536, 128, "bf16"), "sm_90") == pytest.approx(seconds), loss
    assert all(floor_seconds(Workload(loss, 1024, 64, "fp32"), arch) > 0 for loss in LOSSES for arch in GPUS)
    assert floor_seconds(Workload("batch_hard_triplet_loss", 64, 8, "bf16", "manhattan"), "sm_90") == 0  # no product


def test_a_kernel_takes_what_takes_longest(monkeypatch):
    from fusedloss.tools.report import launches

    work = Workload("supcon_loss", 4096, 128, "bf16")
    fold = next(launch for launch in launches(work, "sm_90") if launch.key)
    tensor = 2 * 4096**2 * 128 / GPUS["sm_90"].flops
    assert kernel_seconds(fold, {"tile_instructions": 0}, 128, "sm_90") == pytest.approx(tensor)
    tiles = 4096**2 / (fold.options["BM"] * fold.options["BN"])
    issue = tiles * fold.options["num_warps"] * 5000 / (4 * 132 * 1.755e9)
    assert kernel_seconds(fold, {"tile_instructions": 5000}, 128, "sm_90") == pytest.approx(issue)


SASS = """
  /*0000*/  MOV R1, c[0x0][0x28] ;
  /*0010*/  IADD3 R2, R2, 0x1, RZ ;
  /*0020*/  FADD R3, R3, R4 ;
  /*0030*/  @P0 BRA 0x20 ;
  /*0040*/  FMUL R3, R3, R4 ;
  /*0050*/  @!P1 BRA 0x10 ;
  /*0060*/  EXIT ;
  /*0070*/  BRA 0x70 ;
"""


def test_instructions_of_loops():
    assert loops(SASS) == {"tile_instructions": 5, "inner_instructions": 2}
    assert loops("/*0000*/  EXIT ;") == {"tile_instructions": 0, "inner_instructions": 0}


def test_what_is_compiled_alike_is_compiled_once():
    assert [size(n, False) for n in (0, 1, 7, 16, 4096, 4097, 1 << 31)] == [0, 1, 17, 16, 16, 17, 1 << 31]
    assert size(1, True) == size(4096, True) == 17
    row = torch.empty(2, 3, device="meta")
    assert portable((row, None, 2.0, "name")) == (Pointer("float32", True), None, 0.5, "name")
    assert portable(row[1]) == Pointer("float32", False)


def test_targets():
    assert target("sm_100") == ("cuda", 100, 32) and target("gfx942") == ("hip", "gfx942", 64)
    assert [shared_limit(arch) >> 10 for arch in ("sm_80", "sm_89", "sm_90", "gfx942")] == [163, 99, 227, 64]
