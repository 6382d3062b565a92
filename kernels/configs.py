"""Tile numbers: the only place that has them.

A row is (kernel, itemsize of the compute format, largest D) -> BM, BN, BD, warps, stages. CHUNKS of D are unrolled up to
`UNROLLED`; above that D is walked by a run-time loop. The gradient of the rows a program owns lives in registers, up to
`SLAB` dimensions of it; a wider D takes several programs, each of which recomputes the scores.
"""

from typing import NamedTuple


class Tile(NamedTuple):
    BM: int
    BN: int
    BD: int
    num_warps: int
    num_stages: int
    slab: int = 0  # dimensions of the gradient that one program of `grad` owns


ROWS_PER_PROGRAM = 8  # rows.py and prepare.py: memory-bound, 8 rows of up to 256 dimensions
ROW_CHUNK = 256
ENTRIES = 16  # gather_grad: mined pairs read at a time
SPLIT_TARGET = (
    264  # programs that fill a device (two per multiprocessor of the largest, 132), below which columns are split
)
UNROLLED = 512
SORT_FROM = (
    1 << 24
)  # pairs above which a sparse loss sorts its rows by label before the backward (not timed on a GPU yet)


# Chosen by compiling for sm_90 with Triton 3.7.1 on 2026-11-22 (no spills for 16-bit formats, tensor-core products,
# shared memory within the limits of sm_80, sm_90, sm_100 and gfx942); not timed on a GPU yet.
TILES: dict[tuple[str, int], list[tuple[int, Tile]]] = {
    ("fold", 2): [(64, Tile(128, 128, 64, 8, 3)), (256, Tile(128, 64, 64, 8, 3)), (0, Tile(128, 128, 64, 8, 3))],
    ("fold", 4): [(0, Tile(64, 64, 32, 4, 2))],
    ("grad", 2): [
        (64, Tile(128, 128, 64, 8, 2, 64)),
        (128, Tile(128, 64, 128, 8, 2, 128)),
        (256, Tile(128, 64, 128, 8, 2, 256)),
        (0, Tile(64, 32, 256, 8, 1, 512)),
    ],
    ("grad", 4): [(64, Tile(64, 64, 64, 8, 1, 64)), (0, Tile(64, 32, 64, 8, 1, 128))],
    ("manhattan", 4): [(0, Tile(64, 64, 32, 8, 1, 32))],
}


def choose(kernel: str, itemsize: int, D: int) -> Tile:
    """The default tile of a kernel for D dimensions in a format of that many bytes."""
    return next(tile for largest, tile in TILES[kernel, itemsize] if largest == 0 or largest >= D)
