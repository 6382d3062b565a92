"""What a kernel takes, in a model of one GPU of each architecture: from data sheets, and from what its binary issues.

Of a tile, a program does one thing after the other: it waits for rows that it has not asked for early enough, for the
products, and issues its instructions. Other programs on the multiprocessor fill a part of that. The constants that no
data sheet has were chosen by far loops alone on an H200 (tests/test_roofline.py has their times).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..kernels.configs import GRADIENTS
from ..losses.catalog import CATALOG, Role
from .gpus import GPU, GPUS, resident
from .sass import counted, issued
from .workloads import ROWS_OF_A_CLASS, Workload

if TYPE_CHECKING:
    from ..backends.triton.launch import Launch, Product  # which needs Triton

# A multiprocessor issues to 128 lanes a cycle, and has so many times fewer for these instructions together.
PIPES = ((2, ("select", "integer")), (8, ("mufu",)), (4, ("shared", "shuffle")))
WAIT = 200  # cycles from the last product of a group to the first instruction that needs it, barriers included
HIDDEN = 0.4  # share of all but its longest part that one more program hides: the same fold takes 1.2 times less with 2
AHEAD = 2  # tiles ahead that rows are asked for (stages, less one) if they are to be there in time
IMPROVED = 0.32  # of the tiles, a row finds a better pair in, of 65,536 rows in random order: an estimate
LAUNCH = 2e-6  # seconds that a kernel takes at least: an estimate
LIBRARY = 0.85  # of the matrix products' rate that a library reaches for those of panels; 0.80 to 0.92 on an H200
SORTING = ("fold_triplets", "mine_semihard")  # kernels that sort thresholds before they walk tiles
UNREAD: dict[str, Any] = dict(classes={}, groups=0, waits=0, skippable=0, inner=[])  # a loop of unknown instructions


class Parts(NamedTuple):
    """Seconds of a launch if it had one part only, and the total of the model."""

    products: float = 0.0
    l2: float = 0.0
    issue: float = 0.0  # of instructions, or the pipe that takes longest for them
    wait: float = 0.0
    memory: float = 0.0
    total: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        return dict(zip(self._fields[:-1], self, strict=False))

    @property
    def bound(self) -> str:
        """The longest part."""
        return max(self.parts, key=self.parts.__getitem__)


class Tiles(NamedTuple):
    """Tiles of one kind that a program walks."""

    name: str
    number: float
    columns: int
    stages: int
    loop: dict[str, Any]  # that walks them, from `sass.loops`
    instructions: dict[str, float]  # of a thread for one of them, by class
    waits: float  # for products

    def a_pair(self, options: dict[str, Any], arch: str) -> float:
        """Instructions that a thread issues for a pair."""
        threads = options["num_warps"] * GPUS[arch].threads
        return sum(self.instructions.values()) * threads / (options["BM"] * self.columns)


def kernel_parts(launch: Launch, found: dict[str, Any], work: Workload, arch: str) -> Parts:
    """Of a recorded launch and what its binary says."""
    gpu, options = GPUS[arch], launch.options
    memory = sum({id(t): t.nbytes for t in tensors_of(launch.args)}.values()) / gpu.bandwidth
    if "BN" not in options:  # of rows or logits: nothing is computed twice
        return Parts(memory=memory, wait=LAUNCH, total=max(memory, LAUNCH))
    blocks = launch.grid[0] if kernel_of(launch) != "grad" else math.ceil(sides(launch)[0] / options["BM"])
    programs = blocks * math.prod(launch.grid[1:])
    together = max(1, min(resident(found, options["num_warps"], arch), math.ceil(programs / gpu.multiprocessors)))
    waves = math.ceil(programs / (gpu.multiprocessors * together))
    kinds, sums = [tiles for tiles in walked(launch, found, work) if tiles.number], [0.0] * 5
    if not kinds:
        return Parts(wait=LAUNCH, total=LAUNCH)
    for tiles in kinds:
        products, l2, issue = tile_cycles(launch, tiles, work.D, gpu)
        wait, late = WAIT * tiles.waits, max(0.0, 1 - (tiles.stages - 1) / AHEAD)
        steps = products, late * l2, issue, wait
        exposed = (1 - HIDDEN) ** (together - 1) * (sum(steps) - max(steps))
        for i, part in enumerate((products, l2, issue, wait, max(l2, max(steps) + exposed))):
            sums[i] += waves * together * tiles.number * part / gpu.clock
    products, l2, issue, wait, total = sums
    return Parts(products, l2, issue, max(wait, LAUNCH), memory, max(total, memory, LAUNCH))


def product_parts(product: Product, arch: str) -> Parts:
    """Of a product of PyTorch's library, which reads and writes the sum that it adds to."""
    gpu, (out, a, b) = GPUS[arch], product
    rate = LIBRARY * (gpu.fp32_library if a.dtype == torch.float32 else gpu.flops)
    products = 2.0 * a.shape[0] * a.shape[1] * b.shape[1] / rate
    memory = sum(t.numel() * t.element_size() for t in (out, out, a, b)) / gpu.bandwidth
    return Parts(products=products, memory=memory, wait=LAUNCH, total=max(products, memory, LAUNCH))


def added(of: Iterable[Parts]) -> Parts:
    """Of several launches one after the other."""
    return Parts(*map(sum, zip(*of, strict=True)))


def tile_cycles(launch: Launch, tiles: Tiles, D: int, gpu: GPU) -> tuple[float, float, float]:
    """Of a multiprocessor for a tile: its products, its reading from L2, its instructions."""
    o, rows = launch.options, launch.args[0].rows
    BM, BN, BD, warps = o["BM"], tiles.columns, o["BD"], o["num_warps"]
    fp32, each = rows.dtype == torch.float32, rows.element_size()
    groups = max(1, warps // 4 * 64 // BM)  # of four warps, which share the columns of 64 rows
    D = BD * math.ceil(D / BD)
    slab = BD * o.get("SLAB", 0)  # dimensions of the gradient that the program owns
    if kernel_of(launch) in ("grad", "attend"):
        slab = BD if o["PRECISION"] == "manhattan" else D
    flop = 2 * BM * BN * (D * narrow(BN / groups, gpu) + slab * narrow(BD / groups, gpu))
    rate = (gpu.fp32_flops if fp32 else gpu.flops) / gpu.multiprocessors / gpu.clock
    products = 0.0 if o["PRECISION"] == "manhattan" else flop / rate
    read = BN * D if o["CHUNKS"] else (BM + BN) * D + BN * slab
    l2 = each * read * gpu.multiprocessors * gpu.clock / gpu.l2_bandwidth
    issue = sum(tiles.instructions.values())
    pipes = [times * sum(tiles.instructions.get(name, 0) for name in names) for times, names in PIPES]
    return products, l2, warps / 4 * max(issue, *pipes)


def narrow(columns: float, gpu: GPU) -> float:
    return next((factor for most, factor in gpu.narrow if columns <= most), 1.0)


def walked(launch: Launch, found: dict[str, Any], work: Workload) -> list[Tiles]:
    """The tiles of a program, those first that most pairs are in: far and near ones of sorted rows; of ranks all alike,
    for each group of K thresholds. Each anchor has as many positives as others have its label; those beyond what a
    kernel keeps are none."""
    o, given, kernel = launch.options, arguments(launch), kernel_of(launch)
    if "BN" not in o:
        return []
    (N, M), mates, first = sides(launch), columns_of_a_label(work), given.get("first", 0)
    splits = launch.grid[1] if len(launch.grid) > 1 else 1
    near = min(M, o["BM"] * M / N + 2 * (mates - 1))  # columns that share a label with a program's rows
    if "low" in given:  # of a panel
        M, near = given["high"] - given["low"], near * (given["high"] - given["low"]) / M
    loops = found.get("loops") or [UNREAD]

    def tiles(name: str, columns: float, width: int, stages: int, loop: dict[str, Any]) -> Tiles:
        turns = turns_inside(loop, launch, work)
        waits = max(1.0, counted(loop, "waits", turns))
        instructions = issued(loop, turns)
        if kernel == "mine":  # where no row finds a better pair, its place is not looked for
            kept = 1 - (1 - IMPROVED) * loop["skippable"] / max(1, sum(instructions.values()))
            instructions = {name: kept * count for name, count in instructions.items()}
        return Tiles(name, columns / width, width, stages, loop, instructions, waits)

    if kernel == "rank":  # programs share the groups
        groups, inner = max(0, math.ceil((min(given["last"], mates) - first) / o["K"])), loops[0]["inner"] or [UNREAD]
        return [
            tiles("all", groups * M / splits, o["BN"], o["num_stages"], inner[-1]),
            tiles("thresholds", groups * near / splits, o["BN"], o["num_stages"], inner[0]),
        ]
    if kernel in SORTING:  # the loop over groups of positives that memory has room for: here one
        loops = [loop for loop in loops[0]["inner"] if counted(loop, "groups")][1:] or [UNREAD]
    if "NEAR" not in o or first >= mates:  # one walk, or none where a kernel finds nothing to do
        return [tiles("all", 0 if first >= mates else M / splits, o["BN"], o["num_stages"], loops[0])]
    near = near if given["x"].near else M
    apart = M - near if "neg" not in given or given["neg"].kinds else 0  # no far pair is positive
    far = tiles("far", apart / splits, o["BN"], o["num_stages"], loops[0])
    return sorted((far, tiles("near", near / splits, o["NEAR"], 1, loops[-1])), key=lambda t: -t.number * t.columns)


def turns_inside(loop: dict[str, Any], launch: Launch, work: Workload) -> list[float]:
    """Of the loops in that over tiles: they walk D, or an anchor's thresholds."""
    o, mates = launch.options, columns_of_a_label(work)
    last = len(loop["inner"]) - (o.get("SLAB", 1) if kernel_of(launch) in GRADIENTS else 0)
    thresholds = 1.0 if "K" not in o else mates if o.get("KIND") in ("nearest", "rank") else math.ceil(mates / o["K"])
    turns: list[float] = []
    for place, inner in enumerate(loop["inner"]):
        if o["PRECISION"] == "manhattan" and (place == 0 or place >= last):
            turns.append(min(work.D, o["BD"]) if place else work.D)
        elif inner["classes"].get("tensor"):
            turns.append(math.ceil(work.D / o["BD"]))
        else:
            turns.append(thresholds)
    return turns


def kernel_of(launch: Launch) -> str:
    name: str = launch.kernel.fn.__name__
    return name


def sides(launch: Launch) -> tuple[int, int]:
    """How many rows programs own, and how many they walk. Where `grad` has both sides, its grid is as long as the
    longer one needs; either has the same tiles, so those of the first count twice."""
    given = arguments(launch)
    swapped = kernel_of(launch) == "grad" and not given["outs"][0]
    return (given["M"], given["N"]) if swapped else (given["N"], given["M"])


def arguments(launch: Launch) -> dict[str, Any]:
    return dict(zip(launch.kernel.arg_names, launch.args, strict=False))


def columns_of_a_label(work: Workload) -> int:
    return ROWS_OF_A_CLASS if CATALOG[work.loss].named(Role.LABELS) else 1


def tensors_of(args: Any) -> list[torch.Tensor]:
    if isinstance(args, torch.Tensor):
        return [args]
    return [t for arg in args for t in tensors_of(arg)] if isinstance(args, tuple) else []


def floor_seconds(work: Workload, arch: str) -> float:
    """The fewest products at the tensor cores' rate; without products, the fewest bytes: read twice, written once."""
    gpu, itemsize = GPUS[arch], 4 if work.dtype == "fp32" else 2
    loss, classes = CATALOG[work.loss], work.classes * work.keywords.get("sub_centers", 1)
    if loss.products is None:
        numbers = {Role.ROWS: work.N * work.D, Role.CLASSES: classes * work.D, Role.LOGITS: work.N * classes}
        return 3 * sum(numbers.get(role, 0) for role in loss.tensors.values()) * itemsize / gpu.bandwidth
    if work.metric == "manhattan":
        return 0.0
    rate = gpu.fp32_flops if work.dtype == "fp32" else gpu.flops
    return loss.products * 2.0 * math.prod(loss.sides(work.N, classes)) * work.D / rate
