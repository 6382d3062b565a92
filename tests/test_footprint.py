"""The launches and the memory of a step, recorded for an absent GPU."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fusedloss.kernels import configs
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.tools.footprint import Watch, footprint
from fusedloss.tools.gpus import GPUS
from fusedloss.tools.workloads import Workload, arguments
from tests.grid import FULL, in_full

CLASSES = 1024


def numbers(work: Workload) -> int:
    """(N + M) D of the score matrix, counting both sides; a batch that is compared with itself is both."""
    matrices = [t for t in arguments(work, "meta").values() if t.dim() == 2]
    itself = len(matrices) == 1 or bool(CATALOG[work.loss].named(Role.VIEW))
    return (1 + itself) * sum(t.numel() for t in matrices)


# At a million rows these take thousands of launches.
OF_TRIPLETS = ("batch_semihard_triplet_loss", "smooth_ap_loss", "recall_at_k_loss")
SIZES = [(name, N) for N in (1024, 1_048_576) for name in CATALOG]
SIZES = [size for size in SIZES if size not in [(name, 1_048_576) for name in OF_TRIPLETS] or FULL]


@pytest.mark.parametrize(("name", "N"), [*SIZES, *in_full(*((name, N) for N in (4096, 65_536) for name in CATALOG))])
def test_memory_is_linear_up_to_a_million_rows(name, N):
    """16 bytes for each number of both sides, and a constant workspace."""
    for options in ({}, *CATALOG[name].variants):
        for dtype, D in (("bf16", 256), ("fp32", 64)):
            work = Workload(name, N, D, dtype, options=tuple(options.items()), classes=CLASSES)
            parts = configs.SPLIT_TARGET * 128 * D * 4  # of programs that share the columns of their rows
            peak = footprint(work, "sm_90").peak_bytes
            assert 0 < peak <= 16 * numbers(work) + configs.WORKSPACE + parts, (work, peak)


def test_launches_and_operators_are_counted():
    found = footprint(Workload("pairwise_contrastive_loss", 65_536, 128, "bf16"), "sm_90")
    assert found.kernels == 3  # prepare, grad and merge
    assert 5 <= found.operators <= 25
    assert all(footprint(Workload("supcon_loss", 1024, 64, "fp32"), arch).operators for arch in GPUS)


@pytest.mark.parametrize(("kind", "N", "kernels"), [("all", 4096, 4), ("all", 65_536, 4), ("semihard", 4096, 5)])
def test_triplets_take_few_launches_however_large_a_class_may_be(kind, N, kernels):
    """Of all triplets: prepare, fold; grad, tail. Of semi-hard ones the splits are settled, parts merged."""
    assert footprint(Workload(f"batch_{kind}_triplet_loss", N, 128, "bf16"), "sm_90").kernels == kernels


def test_memory_is_counted_while_it_is_held_and_views_share_it():
    x: Tensor = torch.empty(1000, device="meta")
    with Watch([x]) as watch:
        y = x + x.view(10, 100).sum()
        z = y.view(10, 100)[2:]
        del y
        assert watch.live == 4000 and watch.peak == 4004
        del z
        assert watch.live == 0 and watch.operators == 2
