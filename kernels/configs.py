"""Tile numbers, which are nowhere else. A row of TILES is Work -> [(largest D, or 0 for any, Tile)]."""

import itertools
from typing import NamedTuple


class Tile(NamedTuple):
    BM: int  # rows that a program owns
    BN: int  # columns of a tile
    BD: int  # dimensions of a chunk
    num_warps: int
    num_stages: int
    held: int  # dimensions kept on chip; above it D is walked by a run-time loop
    near: int = 16  # columns of a tile of the near walk
    maxnreg: int = 0  # the most registers of a thread, if the backend has such a limit; 0: no limit


class Work(NamedTuple):
    """What the registers and the memory of a tile depend on."""

    kernel: str  # the name of the kernel
    # the terms of a pair: "", or the name of terms that take more registers: "exp", "lifted" scores, "costly" (groups
    # of columns, capped logits), "nearest" negatives, "rank", "manhattan"
    terms: str
    itemsize: int  # bytes of the compute format


ROWS_PER_PROGRAM = 8  # of rows.py and tiles.prepare, which are memory-bound
ROW_CHUNK = 256  # dimensions that these kernels read at a time
ENTRIES = 16  # mined pairs that gather_grad reads at a time
# From so many comparisons of a row with a pair on, which is 16,384 rows with two pairs each, pairs are sorted for
# gather_grad; with fewer, a row looks for its pairs among all of them, a block at a time. Not timed.
SORT_PAIRS_FROM = 1 << 29
SCANNED = 256
SUMMED = 1024  # numbers that folds.merge or hinges.reduce_terms adds up at a time
# Logits of a tile in logits.py. With 4 warps, the registers let 12 to 96 KB of logits be on their way to a
# multiprocessor (compiled for sm_90). No fewer logits than threads: where a gradient overwrites its logit, a single
# thread must hold that logit.
CLASS_TILE = 2048
CLASS_WARPS = 4
CLASSES_APART = 32  # classes of a tile whose rows are neighbours in memory
ELEMENTS = 1024  # elements of a program in logits.py
# Programs that fill a device (2 x 132 multiprocessors); with fewer, the columns of a row block are split.
SPLIT_TARGET = 264
POSITIVES = 4  # thresholds of an anchor that are compared with a tile at a time
ROOM = 256  # positives of an anchor whose semi-hard negatives are mined at a time
SETTLED = 64  # anchors of a program of semihard.settle_semihard
ANCHORS = 256  # anchors of a program of folds.prepare_anchors
PARTS, MERGED = 16, 64  # folds.merge reads so many parts of so many rows at a time
# Rows that a program of closings.finish reads at a time, the most that one program closes alone, and the most programs.
CLOSED, ALONE, CLOSERS = 512, 16384, 128
SORT_FROM = 1 << 24  # from so many pairs on, rows are sorted by label, so that most tiles are far
# Bytes; the most for states of columns folded in the same pass as those of the rows, for the weights of a panel,
# and for thresholds of triplets.
WORKSPACE = 256 << 20
# Rows of a panel, at least, if there are as many: with fewer, a product is bound by reading the other side.
PANEL_ROWS = 2048

# Kernels with a far and a near walk, see `walks.walks`.
TWO_WALKS = ("fold", "grad", "attend", "panel", "mine", "fold_triplets", "mine_semihard", "triplets_grad")
GRADIENTS = ("grad", "attend", "triplets_grad")  # kernels whose programs own a row's gradient
SLABS = ("triplets_grad",)  # of these, kernels whose programs own `held` dimensions of it if there are more
# The sum of |x - y| is no matrix product: its kernels walk D one by one.
MANHATTAN = {
    Work(kernel, "manhattan", 4): [(0, tile)]
    for kernel, tile in {
        "fold": Tile(64, 64, 32, 8, 1, 32),
        "grad": Tile(64, 64, 32, 8, 1, 32),
        "mine": Tile(64, 64, 32, 8, 1, 32),
        "fold_triplets": Tile(64, 32, 32, 8, 1, 32),
        "mine_semihard": Tile(64, 32, 32, 8, 1, 32),
        "triplets_grad": Tile(64, 32, 32, 8, 1, 32),
        "rank": Tile(64, 32, 32, 8, 1, 32),
    }.items()
}


def for_all(kernel: str, itemsize: int, *tiles: tuple[int, Tile]) -> dict[Work, list[tuple[int, Tile]]]:
    """The same tiles for all kinds of terms."""
    return {Work(kernel, terms, itemsize): [*tiles] for terms in ("", "exp", "lifted", "costly")}


# Chosen with `python -m fusedloss report` (Triton 3.7.1, 2026-11-27): tiles with tensor-core instructions, with shared
# memory within the limits and without spills in a loop on sm_90 in 16 bits; of these, the fastest in its model.
# Where far loops were timed on an H200, the fastest: two programs per multiprocessor for folds up to D = 256 and for
# gradients up to 128, and 128 rows above. The tiles of triplets and ranks (2026-11-28) have no spills in
# their loops in bf16 and were not timed.
TILES: dict[str, dict[Work, list[tuple[int, Tile]]]] = {
    "sm_90": {
        **for_all(
            "fold",
            2,
            (64, Tile(128, 64, 64, 4, 3, 64)),
            (128, Tile(128, 64, 128, 8, 3, 128, maxnreg=128)),
            (256, Tile(128, 64, 256, 8, 1, 256, maxnreg=128)),
            (0, Tile(128, 256, 64, 8, 3, 0)),
        ),
        Work("mine", "", 2): [
            (64, Tile(128, 64, 64, 4, 3, 64)),
            (128, Tile(128, 64, 128, 8, 3, 128, maxnreg=128)),
            (256, Tile(128, 64, 256, 8, 1, 256, maxnreg=128)),
            (0, Tile(128, 128, 64, 8, 3, 0)),
        ],
        **for_all(
            "grad",
            2,
            (64, Tile(64, 64, 64, 4, 3, 64)),
            (128, Tile(64, 64, 128, 4, 3, 128)),
            (256, Tile(128, 64, 256, 8, 3, 256)),
        ),
        Work("grad", "costly", 2): [
            (64, Tile(64, 64, 64, 4, 3, 64)),
            (128, Tile(64, 64, 128, 4, 3, 128)),
            (256, Tile(128, 32, 256, 8, 3, 256)),
        ],
        **for_all("panel", 2, (0, Tile(128, 256, 64, 8, 3, 0, 32))),
        Work("panel", "exp", 2): [(0, Tile(128, 256, 64, 8, 3, 0, 16))],
        **for_all("fold", 4, (128, Tile(128, 64, 64, 8, 3, 128)), (0, Tile(128, 64, 32, 8, 3, 0))),
        Work("mine", "", 4): [(128, Tile(128, 64, 64, 8, 3, 128)), (0, Tile(128, 64, 32, 8, 3, 0))],
        **for_all(
            "grad",
            4,
            (64, Tile(128, 32, 32, 8, 2, 64)),
            (128, Tile(128, 32, 128, 8, 3, 128)),
        ),
        **for_all("panel", 4, (0, Tile(128, 64, 32, 8, 3, 0, 64))),
        Work("fold_triplets", "", 2): [
            (64, Tile(64, 128, 64, 4, 3, 64)),
            (128, Tile(64, 128, 128, 4, 2, 128)),
            (256, Tile(64, 64, 256, 4, 1, 256)),
            (0, Tile(64, 64, 64, 4, 3, 0)),
        ],
        Work("fold_triplets", "", 4): [(128, Tile(128, 32, 64, 8, 3, 128)), (0, Tile(128, 32, 32, 8, 3, 0))],
        Work("fold_triplets", "exp", 2): [(128, Tile(64, 32, 128, 4, 2, 128)), (0, Tile(64, 32, 64, 4, 3, 0))],
        Work("fold_triplets", "exp", 4): [(128, Tile(128, 32, 64, 8, 3, 128)), (0, Tile(128, 32, 32, 8, 3, 0))],
        Work("mine_semihard", "", 2): [
            (64, Tile(64, 64, 64, 4, 3, 64)),
            (128, Tile(64, 64, 128, 4, 2, 128)),
            (256, Tile(64, 64, 256, 4, 1, 256)),
            (0, Tile(64, 64, 64, 4, 3, 0)),
        ],
        Work("mine_semihard", "", 4): [(128, Tile(128, 32, 64, 8, 3, 128)), (0, Tile(128, 32, 32, 8, 3, 0))],
        Work("triplets_grad", "", 2): [
            (64, Tile(64, 64, 64, 4, 3, 64)),
            (128, Tile(64, 32, 128, 4, 2, 128)),
            (0, Tile(64, 64, 64, 8, 2, 128)),
        ],
        Work("triplets_grad", "", 4): [(0, Tile(128, 16, 32, 8, 2, 128))],
        Work("triplets_grad", "exp", 2): [
            (64, Tile(64, 32, 64, 4, 2, 64)),
            (128, Tile(64, 16, 64, 4, 2, 128)),
            (0, Tile(128, 16, 64, 8, 2, 128)),
        ],
        Work("triplets_grad", "exp", 4): [(0, Tile(128, 16, 32, 8, 2, 128))],
        Work("triplets_grad", "nearest", 2): [
            (64, Tile(64, 32, 64, 4, 2, 64)),
            (128, Tile(64, 32, 128, 4, 2, 128)),
            (256, Tile(128, 32, 64, 8, 2, 256)),
            (0, Tile(64, 32, 64, 4, 2, 128)),
        ],
        Work("triplets_grad", "nearest", 4): [(0, Tile(128, 16, 32, 8, 2, 64))],
        Work("rank", "", 2): [(128, Tile(128, 16, 64, 8, 3, 128)), (0, Tile(128, 16, 64, 8, 3, 0))],
        Work("rank", "", 4): [(0, Tile(64, 16, 32, 4, 3, 0))],
        Work("triplets_grad", "rank", 2): [
            (64, Tile(64, 16, 64, 4, 2, 64)),
            (128, Tile(64, 32, 128, 4, 2, 128)),
            (0, Tile(64, 16, 64, 4, 2, 128)),
        ],
        Work("triplets_grad", "rank", 4): [(0, Tile(64, 16, 32, 4, 2, 128))],
        **MANHATTAN,
    },
    "other": {
        Work("fold", "", 2): [(128, Tile(128, 64, 64, 8, 3, 128)), (0, Tile(128, 64, 64, 8, 3, 0))],
        Work("fold", "", 4): [(0, Tile(64, 64, 32, 8, 3, 0))],
        Work("fold", "exp", 2): [(128, Tile(64, 64, 64, 8, 3, 128)), (0, Tile(64, 64, 64, 8, 3, 0))],
        Work("fold", "costly", 2): [(128, Tile(64, 64, 64, 8, 3, 128)), (0, Tile(64, 64, 64, 8, 3, 0))],
        Work("fold", "exp", 4): [(0, Tile(64, 32, 32, 8, 3, 0))],
        Work("fold", "costly", 4): [(0, Tile(64, 32, 32, 8, 3, 0))],
        Work("fold", "lifted", 2): [(128, Tile(64, 32, 64, 8, 3, 128)), (0, Tile(64, 32, 64, 8, 3, 0))],
        Work("fold", "lifted", 4): [(0, Tile(64, 32, 32, 8, 3, 0))],
        Work("mine", "", 2): [(128, Tile(128, 64, 64, 8, 3, 128)), (0, Tile(128, 64, 64, 8, 3, 0))],
        Work("mine", "", 4): [(0, Tile(64, 64, 32, 8, 3, 0))],
        Work("grad", "", 2): [(128, Tile(128, 32, 64, 8, 2, 128))],
        Work("grad", "", 4): [(64, Tile(64, 32, 32, 8, 2, 64))],
        Work("grad", "exp", 2): [(128, Tile(64, 16, 64, 4, 2, 128))],
        Work("grad", "costly", 2): [(128, Tile(64, 16, 64, 4, 2, 128))],
        Work("grad", "exp", 4): [(64, Tile(64, 16, 32, 4, 2, 64))],
        Work("grad", "costly", 4): [(64, Tile(64, 16, 32, 4, 2, 64))],
        Work("grad", "lifted", 2): [(128, Tile(64, 16, 64, 4, 2, 128))],
        Work("grad", "lifted", 4): [(64, Tile(64, 16, 32, 4, 2, 64))],
        **for_all("panel", 2, (0, Tile(64, 64, 64, 4, 3, 0, 64))),
        **for_all("panel", 4, (0, Tile(64, 64, 32, 8, 3, 0, 64))),
        Work("fold_triplets", "", 2): [(128, Tile(64, 32, 64, 4, 3, 128)), (0, Tile(64, 32, 64, 4, 3, 0))],
        Work("fold_triplets", "exp", 2): [(128, Tile(64, 32, 64, 4, 3, 128)), (0, Tile(64, 32, 64, 4, 3, 0))],
        Work("fold_triplets", "exp", 4): [(0, Tile(64, 32, 32, 8, 3, 0))],
        Work("mine_semihard", "", 2): [(128, Tile(64, 32, 64, 4, 3, 128)), (0, Tile(64, 32, 64, 4, 3, 0))],
        Work("fold_triplets", "", 4): [(0, Tile(64, 32, 32, 8, 3, 0))],
        Work("mine_semihard", "", 4): [(0, Tile(64, 32, 32, 8, 3, 0))],
        Work("triplets_grad", "", 2): [(0, Tile(64, 16, 64, 4, 2, 128))],
        Work("triplets_grad", "", 4): [(0, Tile(64, 16, 32, 4, 2, 64))],
        Work("triplets_grad", "exp", 2): [(0, Tile(64, 16, 64, 4, 2, 128))],
        Work("triplets_grad", "exp", 4): [(0, Tile(64, 16, 32, 4, 2, 64))],
        Work("triplets_grad", "nearest", 2): [(0, Tile(64, 16, 64, 4, 2, 128))],
        Work("triplets_grad", "nearest", 4): [(0, Tile(64, 16, 32, 4, 2, 64))],
        Work("rank", "", 2): [(128, Tile(64, 16, 64, 4, 3, 128)), (0, Tile(64, 16, 64, 4, 3, 0))],
        Work("rank", "", 4): [(0, Tile(64, 16, 32, 4, 3, 0))],
        Work("triplets_grad", "rank", 2): [(0, Tile(64, 16, 64, 4, 2, 128))],
        Work("triplets_grad", "rank", 4): [(0, Tile(64, 16, 32, 4, 2, 64))],
        **MANHATTAN,
    },
}


# No other NVIDIA GPU has as much shared memory as these, so their tiles are not the default.
TILES["sm_80"] = {
    **TILES["other"],
    **for_all(
        "fold",
        2,
        (128, Tile(64, 64, 64, 4, 2, 128)),
        (256, Tile(128, 64, 64, 4, 3, 256)),
        (0, Tile(128, 64, 64, 8, 3, 0)),
    ),
    **for_all(
        "grad",
        2,
        (64, Tile(64, 64, 64, 4, 3, 64)),
        (128, Tile(64, 64, 128, 4, 3, 128)),
        (256, Tile(64, 32, 128, 4, 3, 256)),
    ),
}
TILES["sm_100"] = {
    **TILES["sm_90"],
    **for_all(
        "fold",
        2,
        (64, Tile(128, 64, 64, 8, 3, 64)),
        (128, Tile(128, 64, 128, 8, 3, 128)),
        (256, Tile(128, 64, 256, 8, 3, 256)),
        (0, Tile(128, 128, 64, 8, 3, 0)),
    ),
    **for_all(
        "grad",
        2,
        (64, Tile(64, 64, 64, 4, 3, 64)),
        (128, Tile(64, 64, 128, 4, 3, 128)),
        (256, Tile(128, 64, 256, 8, 3, 256)),
    ),
}


# `attend` holds two numbers a row beside what `grad` holds, for which chunks of 256 dimensions leave no registers.
for tiles in TILES.values():
    for work in [work for work in tiles if work.kernel == "grad"]:
        smaller = [(D, tile._replace(BD=min(tile.BD, 128))) for D, tile in tiles[work]]
        tiles[work._replace(kernel="attend")] = smaller


def on_chip(work: Work, D: int, arch: str) -> bool:
    """Whether there is a tile of the kernel `grad` for D dimensions; it holds all of them."""
    return any(largest >= D for largest, _ in TILES.get(arch, TILES["other"])[work])


def choose(work: Work, D: int, arch: str) -> Tile:
    """The default tile for D dimensions."""
    for largest, tile in TILES.get(arch, TILES["other"])[work]:
        if largest == 0 or largest >= D:
            return tile
    raise KeyError(f"no tile of {work} for {D} dimensions on {arch}")


SIZES = {  # what a tile may be made of
    "BM": (32, 64, 128, 256),
    "BN": (16, 32, 64, 128, 256),
    "BD": (16, 32, 64, 128, 256),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "held": (0, 32, 64, 128, 256, 512),
    "near": (16, 32, 64),
    "maxnreg": (0, 128),
}


def shapes(tile: Tile) -> list[Tile]:
    """The tile with other numbers of rows, columns and warps, such that a thread has at most 128 numbers of it."""
    sizes = itertools.product(SIZES["BM"][1:], SIZES["BN"], SIZES["num_warps"])
    fits = [(BM, BN, warps) for BM, BN, warps in sizes if 4 <= BM * BN // (32 * warps) <= 128]
    return [tile._replace(BM=BM, BN=BN, num_warps=warps) for BM, BN, warps in fits]


def depths(tile: Tile, kernel: str, D: int) -> list[Tile]:
    """The tile with the next smaller or larger chunks, stages, dimensions on chip, near columns or registers, one of
    them at a time."""
    found = []
    for name in ("BD", "num_stages", "held", *(("near", "maxnreg") if kernel in TWO_WALKS else ())):
        sizes, current = SIZES[name], getattr(tile, name)
        near = [sizes[i] for i in range(len(sizes)) if abs(i - sizes.index(current)) == 1]
        if name == "held" and kernel not in SLABS:  # all of them or none
            near = [D - current] if current in (0, D) and D in sizes else []
        found += [tile._replace(**{name: size}) for size in near]
    return [t for t in found if t.held % t.BD == 0 and (t.held > 0 or kernel not in GRADIENTS)]
