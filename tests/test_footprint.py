"""Launches and memory of a step on a GPU that is not there."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fusedloss.tools.footprint import Watch, footprint
from fusedloss.kernels import configs
from fusedloss.tools.roofline import GPUS
from fusedloss.tools.workloads import LOSSES, VARIANTS, Workload, arguments

CLASSES = 1024


def numbers(work: Workload) -> int:
    """(N + M) D of the score matrix: those of both sides, of which a batch compared with itself is either."""
    matrices = [t for t in arguments(work, "meta").values() if t.dim() == 2]
    itself = len(matrices) == 1 or work.loss == "nt_xent_loss"
    return (1 + itself) * sum(t.numel() for t in matrices)


@pytest.mark.parametrize("N", [1024, 4096, 65_536, 1_048_576])
@pytest.mark.parametrize("name", LOSSES)
def test_memory_is_linear_up_to_a_million_rows(name, N):
    """16 bytes for each number of both sides, and a constant workspace."""
    for options in ({}, *VARIANTS.get(name, ())):
        for dtype, D in (("bf16", 256), ("fp32", 64)):
            work = Workload(name, N, D, dtype, options=tuple(options.items()), classes=CLASSES)
            parts = configs.SPLIT_TARGET * 128 * D * 4  # of programs that share the columns of their rows
            peak = footprint(work, "sm_90").peak_bytes
            assert 0 < peak <= 16 * numbers(work) + configs.WORKSPACE + parts, (work, peak)


def test_launches_and_operators_are_counted():
    found = footprint(Workload("pairwise_contrastive_loss", 65_536, 128, "bf16"), "sm_90")
    assert found.kernels == 4  # prepare and fold, prepare and grad
    assert 5 <= found.operators <= 20
    assert all(footprint(Workload("supcon_loss", 1024, 64, "fp32"), arch).operators for arch in GPUS)


def test_memory_is_counted_while_it_is_held_and_views_share_it():
    x: Tensor = torch.empty(1000, device="meta")
    with Watch([x]) as watch:
        y = x + x.view(10, 100).sum()
        z = y.view(10, 100)[2:]
        del y
        assert watch.live == 4000 and watch.peak == 4004
        del z
        assert watch.live == 0 and watch.operators == 2
