"""The model of a kernel's time, and what a binary says."""

from types import SimpleNamespace

import pytest
import torch

from fusedloss.tools.compiling import Pointer, portable, shared_limit, size, target
from fusedloss.tools.gpus import GPUS, occupancy, resident
from fusedloss.tools.roofline import added, floor_seconds, kernel_parts, product_parts, tensors_of, walked
from fusedloss.tools.sass import counted, issued, loops, summary
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
    found = {"registers": registers, "shared_bytes": shared}
    assert occupancy(found, warps, arch) == share
    assert resident(found, warps, arch) == share * GPUS[arch].warps / warps


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


def launched(work, kernel, role="", arch="sm_90"):
    from fusedloss.tools.report import launches

    return next(ln for ln in launches(work, arch) if (ln.kernel.fn.__name__, ln.role) == (kernel, role))


def loop(inner=(), skippable=0, waits=1, **classes):
    return {"classes": classes, "groups": 1, "waits": waits, "skippable": skippable, "inner": list(inner)}


def binary(*loops, registers=255, shared_bytes=50 << 10):
    """What was found in a binary; with at most 128 registers, two programs of 8 warps fit."""
    return {"registers": registers, "shared_bytes": shared_bytes, "loops": list(loops)}


SUPCON = Workload("supcon_loss", 65536, 128, "bf16")
SM90 = GPUS["sm_90"]


def with_options(launch, **options):
    return launch._replace(options=launch.options | options)


def tiled(launch, **options):
    """The launch with other tiles, of one walk over the columns."""
    kept = {name: value for name, value in launch.options.items() if name != "NEAR"}
    BM = options.get("BM", kept["BM"])
    grid = (-(-65536 // BM), *launch.grid[1:])
    return launch._replace(grid=grid, options=kept | options)


# Far loops alone on an H200 (N = 65,536, bf16): BM, BN, warps, stages, programs, products, D, milliseconds, and what a
# thread issues for its 32 pairs of a tile: float, select and integer, mufu, all.
FAR = {
    "contrastive fold": (128, 64, 8, 3, 2, 1, 128, 2.83, (132, 114, 32, 360)),
    "SupCon fold": (128, 64, 8, 3, 2, 1, 128, 3.04, (134, 85, 34, 340)),
    "the same, alone": (128, 64, 8, 3, 1, 1, 128, 3.40, (132, 114, 32, 360)),
    "1 stage": (128, 64, 8, 1, 2, 1, 256, 5.11, (132, 88, 32, 345)),
    "2 stages": (128, 64, 8, 2, 1, 1, 256, 7.84, (132, 93, 32, 361)),
    "SupCon, 1 stage": (128, 64, 8, 1, 2, 1, 256, 5.61, (134, 58, 34, 326)),
    "SupCon, 2 stages": (128, 64, 8, 2, 1, 1, 256, 7.99, (134, 64, 34, 341)),
    "grad": (64, 64, 4, 2, 2, 2, 256, 10.15, (228, 126, 32, 553)),
    "grad of 128 rows": (128, 64, 8, 2, 1, 2, 256, 9.25, (228, 98, 32, 517)),
    "SupCon grad": (64, 64, 4, 2, 2, 2, 256, 10.25, (198, 62, 64, 490)),
    "SupCon grad of 128 rows": (128, 64, 8, 2, 1, 2, 256, 10.28, (198, 34, 64, 451)),
    "grad of 128 dimensions": (64, 64, 4, 2, 2, 2, 128, 6.1, (228, 98, 32, 470)),
}


def modelled(case):
    BM, BN, warps, stages, programs, products, D, _, (floats, compared, mufu, issued) = FAR[case]
    work = SUPCON._replace(D=D)
    own = launched(work, "grad", "self") if products == 2 else launched(work, "fold")
    found = tiled(own, BM=BM, BN=BN, BD=D, CHUNKS=1, num_warps=warps, num_stages=stages)
    rest = issued - floats - compared - mufu
    code = loop(float=floats, select=compared, mufu=mufu, move=rest)
    registers = 65536 // (warps * 32 * programs) // 8 * 8
    return kernel_parts(found._replace(grid=found.grid[:2]), binary(code, registers=registers), work, "sm_90").total


@pytest.mark.parametrize("case", FAR)
def test_the_model_is_near_what_was_measured(case):
    assert 0.75 < modelled(case) * 1e3 / FAR[case][7] < 1.15


def test_the_model_chooses_between_tiles_as_measured():
    assert modelled("contrastive fold") < modelled("the same, alone") / 1.15
    assert modelled("1 stage") < modelled("2 stages") and modelled("SupCon, 1 stage") < modelled("SupCon, 2 stages")
    assert modelled("SupCon grad") == pytest.approx(modelled("SupCon grad of 128 rows"), rel=0.1)


def test_one_program_does_one_thing_after_the_other_and_two_overlap():
    fold, code = tiled(launched(SUPCON, "fold"), BM=128, BN=64), loop(float=400)
    alone = kernel_parts(fold, binary(code), SUPCON, "sm_90")
    product = 2 * 65536**2 * 128 / SM90.flops
    waves = 4 * 132 / 512  # the last one is not full
    assert alone.products == pytest.approx(product * waves)
    issue = 65536**2 / (128 * 64) * 8 * 400 / (4 * 132 * 1.755e9)
    assert alone.issue == pytest.approx(issue * waves) and alone.bound == "issue"
    assert alone.total == pytest.approx(alone.products + alone.issue + alone.wait)  # with 3 stages rows are there
    both = kernel_parts(fold, binary(code, registers=128), SUPCON, "sm_90")
    rest = both.products + both.wait
    assert both[:4] == pytest.approx(alone[:4]) and both.total == pytest.approx(both.issue + 0.6 * rest)
    more = kernel_parts(fold, binary(loop(float=400, waits=9)), SUPCON, "sm_90")
    assert more.wait == pytest.approx(9 * alone.wait)


def test_compares_and_roots_have_fewer_lanes():
    fold = tiled(launched(SUPCON, "fold"), BM=128, BN=64)
    seconds = {
        names: kernel_parts(fold, binary(loop(**dict.fromkeys(names, 100), float=100)), SUPCON, "sm_90").issue
        for names in ((), ("select",), ("select", "integer"), ("mufu",), ("shuffle",), ("move",))
    }
    of_floats = seconds[()]
    expected = {("select",): 2, ("select", "integer"): 4, ("mufu",): 8, ("shuffle",): 4, ("move",): 2}
    assert {names: seconds[names] / of_floats for names in expected} == pytest.approx(expected)


@pytest.mark.parametrize("columns", [16, 32, 64])
def test_narrow_products_take_longer_on_hopper_alone(columns):
    for arch, slower in (("sm_90", {16: 2.2, 32: 1.35, 64: 1}), ("sm_80", {16: 1, 32: 1, 64: 1})):
        fold = tiled(launched(SUPCON, "fold", arch=arch), BM=128, BN=columns, num_warps=8)
        full = tiled(fold, BN=128)
        times = [kernel_parts(tiles, binary(loop()), SUPCON, arch).products for tiles in (fold, full)]
        assert times[0] / times[1] == pytest.approx(slower[columns])
    halves = tiled(launched(SUPCON, "fold"), BM=64, BN=64, num_warps=8)  # two groups of warps, 32 columns each
    whole = tiled(halves, num_warps=4)
    times = [kernel_parts(tiles, binary(loop(), registers=64), SUPCON, "sm_90").products for tiles in (halves, whole)]
    assert times[0] / times[1] == pytest.approx(1.35)
    grad = tiled(launched(SUPCON, "grad", "self"), BM=64, BN=128, BD=64, CHUNKS=2, num_warps=8)
    times = [kernel_parts(with_options(grad, num_warps=n), binary(loop()), SUPCON, "sm_90").products for n in (8, 4)]
    assert times[0] / times[1] == pytest.approx(2.35 / 2)  # 128 columns to the score, chunks of 64 to the gradient


def test_rows_are_read_from_l2_for_every_tile():
    fold = tiled(launched(SUPCON, "fold"), BM=128, BN=64, BD=64, CHUNKS=2)
    held = kernel_parts(fold, binary(loop()), SUPCON, "sm_90")
    assert held.l2 == pytest.approx(4 * 132 / 512 * 65536 * 65536 / 128 * 128 * 2 / SM90.l2_bandwidth)
    both = kernel_parts(with_options(fold, CHUNKS=0), binary(loop()), SUPCON, "sm_90")
    assert both.l2 == pytest.approx(3 * held.l2)  # 64 columns, and 128 rows anew
    assert both.total == both.l2 and both.bound == "l2"  # never less than that
    one = kernel_parts(with_options(fold, num_stages=1), binary(loop()), SUPCON, "sm_90")
    assert one.total == pytest.approx(held.total + held.l2)  # nothing is asked for ahead


def test_the_scores_of_panels_are_computed_once_and_their_products_are_a_librarys():
    """At D = 512 a step of SupCon is a fold, panels, and products, of which each takes all pairs once."""
    from fusedloss.tools.report import launches

    work = SUPCON._replace(D=512)
    recorded = launches(work, "sm_90")
    panels = [one for one in recorded if one.kernel.fn.__name__ == "panel"]
    assert len(panels) == len(recorded.products) == 32
    once = 2 * 65536**2 * 512 / 800e12
    inner = loop(tensor=4)
    code = binary(loop([inner], float=500), loop([inner], float=800))
    of_panels = added(kernel_parts(one, code, work, "sm_90") for one in panels)
    assert of_panels.products == pytest.approx(once, rel=0.05)  # but for waves that are not full, and near tiles
    products = added(product_parts(one, "sm_90") for one in recorded.products)
    assert products.products == pytest.approx(once / 0.85) and products.total == pytest.approx(products.products)
    assert products.bound == "products"
    few = product_parts(launches(work._replace(N=1024), "sm_90").products[0], "sm_90")
    assert few.total == pytest.approx(max(few.products, few.memory, 2e-6))


def test_a_loop_over_dimensions_turns_as_often_as_there_are_chunks():
    fold = with_options(tiled(launched(SUPCON, "fold"), BM=128, BN=64), CHUNKS=0, BD=64)
    inner = loop(tensor=4, uniform=16)
    for D, turns in ((64, 1), (512, 8), (500, 8)):
        (tiles,) = walked(fold, binary(loop([inner], float=100)), SUPCON._replace(D=D))
        assert tiles.instructions == {"float": 100, "tensor": 4 * turns, "uniform": 16 * turns}
        assert tiles.waits == 1 + turns
    assert tiles.a_pair(fold.options, "sm_90") == (100 + 160) / 32


def near_rows(launch, near):
    """The launch with rows that are sorted, or that are not."""
    x = SimpleNamespace(rows=launch.args[0].rows, near=near)
    return launch._replace(args=(x, *launch.args[1:]))


def test_sorted_rows_have_few_near_tiles():
    fold = with_options(launched(SUPCON, "fold"), BM=128, BN=64, NEAR=16)
    found = binary(loop(float=100), loop(float=500))
    far, near = walked(near_rows(fold, (1, 2)), found, SUPCON)
    assert (far.name, far.columns, far.instructions) == ("far", 64, {"float": 100})
    assert (near.name, near.columns, near.stages, near.instructions) == ("near", 16, 1, {"float": 500})
    assert near.number == (128 + 2 * 31) / 16 and far.number == (65536 - 190) / 64
    pairs = SUPCON._replace(loss="n_pair_loss")  # every label once on each side
    assert walked(near_rows(fold, (1, 2)), found, pairs)[1].number == 128 / 16
    all_near, none = walked(near_rows(fold, ()), found, SUPCON)
    assert (all_near.name, all_near.number, none.number) == ("near", 65536 / 16, 0)
    ordered, unordered = (kernel_parts(near_rows(fold, of), found, SUPCON, "sm_90") for of in ((1, 2), ()))
    assert unordered.issue / ordered.issue > 15


@pytest.mark.parametrize(
    ("loss", "role", "products"),
    [("arcface_loss", "x and y", 4), ("proxy_anchor_loss", "x and y", 4), ("normalized_softmax_loss", "y", 2)],
)
def test_the_gradient_of_a_side_takes_every_pair_however_long_the_sides_are(loss, role, products):
    """Classes are the columns, but proxies are anchors."""
    work = Workload(loss, 65536, 128, "bf16", classes=8192)
    grad = tiled(launched(work, "grad", role), BM=64, BN=64, NEAR=64)
    found = kernel_parts(grad, binary(loop(), loop(), registers=64), work, "sm_90")
    assert found.products == pytest.approx(products * 2 * 65536 * 8192 * 128 / 800e12, rel=0.1)


def test_a_pair_is_mined_where_a_row_improves():
    work = SUPCON._replace(loss="batch_hard_triplet_loss")
    mine = tiled(launched(work, "mine"))
    always, seldom = (walked(mine, binary(loop(select=400, skippable=n)), work)[0] for n in (0, 200))
    assert always.instructions == {"select": 400} and seldom.instructions["select"] == pytest.approx(264)


def test_thresholds_are_walked_in_groups():
    work = Workload("batch_all_triplet_loss", 65536, 128, "bf16")
    of_thresholds = loop(float=10) | dict(groups=0)
    sorting = of_thresholds
    scores, far, near = loop(tensor=8, float=300), loop([of_thresholds], float=100), loop([of_thresholds], float=200)
    fold = launched(work, "fold_triplets")
    K, BM, BN, NEAR = (fold.options[name] for name in ("K", "BM", "BN", "NEAR"))
    first, second = walked(fold, binary(loop([scores, sorting, far, near])), work)
    assert (first.name, first.number) == ("far", (65536 - BM - 62) / BN)
    assert (second.name, second.number) == ("near", (BM + 62) / NEAR)
    assert (first.instructions["float"], second.instructions["float"]) == (100 + 32 / K * 10, 200 + 32 / K * 10)
    grad = launched(work, "triplets_grad", "self")
    tiles = walked(grad, binary(loop([of_thresholds] * 2, float=1000), loop(float=3000)), work)[0]
    assert tiles.instructions["float"] == 1000 + 2 * 32 / K * 10


def test_positives_beyond_those_that_are_kept_cost_a_launch_where_there_are_none():
    work = Workload("batch_all_triplet_loss", 65536, 128, "bf16")
    tail = kernel_parts(launched(work, "triplets_tail", "self"), binary(loop(tensor=8, float=900)), work, "sm_90")
    assert tail.products == tail.issue == 0 and tail.total < 1e-5 and tail.bound == "wait"


def test_a_kernel_without_tiles_takes_its_memory():
    prepare = launched(SUPCON, "prepare")
    parts = kernel_parts(prepare, binary(), SUPCON, "sm_90")
    each = {id(t): t.nbytes for t in tensors_of(prepare.args)}
    assert sum(each.values()) >= 65536 * (128 * 2 + 8)  # the rows, once or rounded too, and their norms
    assert parts.total == parts.memory == pytest.approx(sum(each.values()) / 3e12) and parts.bound == "memory"


def listing(*instructions):
    """The SASS of instructions, where {3} is the address of instruction 3."""
    places = [f"0x{16 * i:x}" for i in range(len(instructions))]
    return "\n".join(f"  /*{16 * i:04x}*/  {text.format(*places)} ;" for i, text in enumerate(instructions))


HGMMA = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"
TWO = listing(
    "MOV R1, c[0x0][0x28]",
    HGMMA, f"{HGMMA}, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MUFU.EX2 R2, R2", "@P0 BRA {1}",
    "FADD R3, R3, R4", "LDL R5, [R1]", "FSETP.GT.AND P1, PT, R2, R3, PT", "@!P1 BRA {6}",  # no products
    f"{HGMMA}, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "STL [R1], R5", "IMAD.MOV.U32 R3, RZ, RZ, R4", "BRA.U UP0, {10}",
    "EXIT",
    "BRA {16}",
)  # fmt: skip


def test_loops_with_products_are_read_by_address():
    far, near = map(summary, loops(TWO))
    assert far["classes"] == {"tensor": 2, "wait": 1, "mufu": 1, "branch": 1}
    assert (far["instructions"], far["groups"], far["waits"], far["spills"]) == (5, 1, 1, 0)
    assert (near["instructions"], near["groups"], near["spills"], near["classes"]["move"]) == (5, 1, 1, 1)
    assert loops(listing("EXIT")) == []
    (alone,) = loops(listing("FADD", "FMUL", "ISETP.NE.AND P0", "@P0 BRA {0}", "EXIT"))  # products in none
    assert alone["classes"] == {"float": 2, "integer": 1, "branch": 1}


def test_a_loop_is_in_another_one():
    nested = listing(
        "S2R R0", "FADD", "FMUL", f"{HGMMA}, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "LDGSTS.E R1", "@P0 BRA {3}",
        "SHFL.BFLY", "@!P1 BRA {1}", "EXIT",
    )  # fmt: skip
    (outer,) = loops(nested)
    (inner,) = outer["inner"]
    assert outer["classes"] == {"float": 2, "shuffle": 1, "branch": 1} and outer["groups"] == 0
    assert inner["classes"] == {"tensor": 1, "wait": 1, "global": 1, "branch": 1}
    assert issued(outer, [3]) == {"float": 2, "shuffle": 1, "branch": 4, "tensor": 3, "wait": 3, "global": 3}
    assert counted(outer, "waits", [3]) == 3 and summary(outer)["inner"] == [4]


def test_what_a_branch_leaves_out_is_told_apart():
    rare = ["FADD"] * 31
    code = listing(HGMMA, "@P2 BRA {33}", *rare, "@!P0 BRA {36}", "FMUL", "FMUL", "@P1 BRA {0}", "EXIT")
    (found,) = loops(code)
    assert found["skippable"] == 31 and sum(found["classes"].values()) == 37
    (few,) = loops(listing(HGMMA, "@P2 BRA {32}", *rare[1:], "@P1 BRA {0}", "EXIT"))
    assert few["skippable"] == 0


def test_code_put_elsewhere_counts_where_it_runs():
    """As ptxas writes it for sm_100: a wait spins behind the end and jumps back, and code for threads that diverge
    never runs."""
    code = listing(
        "UTCHMMA gdesc[UR6]", "UTCBAR [UR10]", "SYNCS.PHASECHK.TRANS64.TRYWAIT P4", "@!P4 BRA {9}", "FADD",
        "BRA.DIV UR4, {12}", "SHFL.BFLY", "@P0 BRA {0}", "EXIT",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P4", "@!P4 BRA {9}", "BRA {4}",
        "WARPSYNC.COLLECTIVE R44", "BRA {7}",
    )  # fmt: skip
    (found,) = loops(code)
    assert found["classes"] == {"tensor": 1, "wait": 2, "branch": 4, "float": 1, "shuffle": 1}
    assert found["groups"] == found["waits"] == 1 and found["inner"] == []


def test_what_is_compiled_alike_is_compiled_once():
    assert [size(n, False) for n in (0, 1, 7, 16, 4096, 4097, 1 << 31)] == [0, 1, 17, 16, 16, 17, 1 << 31]
    assert size(1, True) == size(4096, True) == 17
    row = torch.empty(2, 3, device="meta")
    assert portable((row, None, 2.0, "name")) == (Pointer("float32", True), None, 0.5, "name")
    assert portable(row[1]) == Pointer("float32", False)


def test_targets():
    assert target("sm_100") == ("cuda", 100, 32) and target("gfx942") == ("hip", "gfx942", 64)
    assert [shared_limit(arch) >> 10 for arch in ("sm_80", "sm_89", "sm_90", "gfx942")] == [163, 99, 227, 64]
