"""What compilers make of every loss's kernels, for GPUs that are not there: `python -m fusedloss report`.

Losses are called on the device "meta", the launches of their forward and backward are recorded, and compiled as they
are. Registers, spills, shared memory and what the loops issue come from the binaries; nothing is run.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..backends import use_backend
from ..backends.triton import tuning
from ..backends.triton.launch import Launch, Product, Recorded, recording
from ..kernels import configs
from .compiling import Source, compile_all, source, target, triton_version
from .console import progress, show
from .footprint import Footprint, footprint
from .gpus import GPUS, occupancy, resident
from .roofline import Parts, added, floor_seconds, kernel_parts, product_parts, walked
from .sass import summary
from .workloads import Workload, step, workloads

TENSOR = {"sm_80": "hmma", "sm_90": "hgmma", "sm_100": "utcmma", "gfx942": "mfma"}  # its tensor-core instruction
CONFIG = ("BM", "BN", "NEAR", "BD", "BC", "BE", "BP", "BLOCK", "num_warps", "num_stages", "maxnreg")


class Compiled(NamedTuple):
    """A launch of a workload for an architecture."""

    work: Workload
    metric: str  # its option, or the name of its scores
    arch: str
    launches: list[Launch]  # that are compiled alike
    source: Source
    default: bool  # its tile is the default one

    @property
    def launch(self) -> Launch:
        return self.launches[0]

    @property
    def job(self) -> tuple[Source, Any]:
        return self.source, target(self.arch)


def launches(work: Workload, arch: str) -> Recorded:
    """Those of a forward and backward."""
    with use_backend("triton"), tuning.defaults(), recording(arch) as recorded:
        step(work, "meta")()
    return recorded


def distinct(work: Workload, arch: str, candidates: bool) -> Iterable[Compiled]:
    """The launches of a workload that differ in what is compiled, with their default tiles or every candidate."""
    kept: dict[Source, Compiled] = {}
    recorded = launches(work, arch)
    scores = (getattr(launch.options.get("SCORE"), "__name__", "") for launch in recorded)
    metric = work.metric or max(scores, default="")

    def add(recorded: list[Launch], default: bool) -> None:
        for launch in recorded:
            code = source(launch)
            alike = kept.setdefault(code, Compiled(work, metric, arch, [], code, default))
            if alike.default == default:
                alike.launches.append(launch)

    add(recorded, True)
    for key in {launch.key for launch in recorded if candidates and launch.key}:
        tile = configs.choose(key.work, work.D, arch)
        for other in (*configs.shapes(tile), *configs.depths(tile, key.work.kernel, key.D)):
            with tuning.trying(key, other):
                add([launch for launch in launches(work, arch) if launch.key == key], False)
    return kept.values()


def row(compiled: Compiled, found: dict[str, Any], step: Footprint) -> dict[str, Any]:
    work, options = compiled.work, compiled.launch.options
    name = f"{compiled.source.kernel.name} {compiled.launch.role}".rstrip()
    return {
        "loss": work.name, "metric": compiled.metric, "kernel": name, "arch": compiled.arch, "dtype": work.dtype,
        "D": work.D, "N": work.N, "config": {k: options[k] for k in CONFIG if k in options},
        "default": compiled.default, "registers": None, "spills": None, "shared_bytes": None, "hgmma": 0, "hmma": 0,
        **{name: value for name, value in found.items() if name not in ("hash", "loops")},
        **({} if "error" in found else modelled(compiled, found)),
        "floor_us": round(floor_seconds(work, compiled.arch) * 1e6, 1), "step": step._asdict(),
        "triton": triton_version(),
    }  # fmt: skip


def library_row(like: dict[str, Any], products: Sequence[Product]) -> dict[str, Any]:
    """The same for PyTorch's products of a step, all together; nothing of them is compiled here."""
    parts = added(product_parts(product, like["arch"]) for product in products)
    nothing = dict.fromkeys((*TENSOR.values(), "registers", "spills", "shared_bytes"), 0)
    return like | nothing | timed(parts) | {
        "kernel": "addmm", "config": {}, "default": True, "programs": 1, "occupancy": 1.0, "issued": None, "loops": {},
        **dict.fromkeys(("loop_spills", "loop_groups", "loop_waits")),
    }  # fmt: skip


def timed(parts: Parts) -> dict[str, Any]:
    return {
        "parts_us": {name: round(seconds * 1e6, 1) for name, seconds in parts.parts.items()},
        "bound": parts.bound, "roofline_us": round(parts.total * 1e6, 1),
    }  # fmt: skip


def modelled(compiled: Compiled, found: dict[str, Any]) -> dict[str, Any]:
    """What the model makes of a launch; and its loops, of which the one that most pairs are in has names of its own."""
    launch, work, arch = compiled.launch, compiled.work, compiled.arch
    parts = added(kernel_parts(one, found, work, arch) for one in compiled.launches)
    tiles = walked(launch, found, work)
    read = [t for t in tiles if t.loop["classes"]]
    main = summary(read[0].loop) if read else {}
    return {
        "programs": resident(found, launch.options["num_warps"], arch),
        "occupancy": round(occupancy(found, launch.options["num_warps"], arch), 3),
        "issued": round(read[0].a_pair(launch.options, arch), 1) if read else None,
        **{f"loop_{name}": main.get(name) for name in ("spills", "groups", "waits")},
        "loops": {t.name: summary(t.loop) for t in read},
    } | timed(parts)  # fmt: skip


def report(works: Sequence[Workload], archs: Sequence[str], candidates: bool = False) -> list[dict[str, Any]]:
    """A row for each kernel of each workload on each architecture."""
    todo = [c for arch in archs for work in works for c in distinct(work, arch, candidates)]
    with progress("compiling") as advance:
        done = compile_all((c.job for c in todo), advance)
    steps = {(work, arch): footprint(work, arch) for arch in archs for work in works}
    rows: list[dict[str, Any]] = []
    for which, of_step in itertools.groupby(todo, key=lambda c: (c.work, c.arch)):
        rows += [row(c, done[c.job], steps[which]) for c in of_step]
        if products := launches(*which).products:
            rows.append(library_row(rows[-1], products))
    return rows


SHARED = ("loss", "metric", "kernel", "arch", "dtype", "D")
TILES = {"BM": "BM", "BN": "BN", "BD": "BD", "NEAR": "near", "num_warps": "warps", "num_stages": "stages",
         "maxnreg": "maxnreg"}  # fmt: skip
COLUMNS = (*SHARED, *TILES.values(), "blocks", "registers", "spills", "shared", "tensor")
NOTE = (
    "BM: rows of a program, BN: columns of a tile, BD: dimensions of a chunk, near: columns of a tile where labels may "
    "be equal, maxnreg: most registers of a thread, blocks: other sizes. As compiled: registers of a thread, spills "
    "(instructions), shared memory of a program, tensor-core instructions. addmm: products of PyTorch's library."
)
MODEL = (*SHARED, "programs", "issued", *(f"{part} ms" for part in Parts._fields[:-1]), "bound", "roofline")
MODEL_NOTE = (
    "programs: at once on a multiprocessor, issued: instructions a pair in the main loop. The times are what products, "
    "L2 cache, instructions, waits and memory would take alone; bound: which of them decides."
)
SUMS = ("loss", "metric", "arch", "dtype", "D", "N", "launches", "PyTorch's", "peak", "GEMM floor", "roofline",
        "of the floor")  # fmt: skip
SUMS_NOTE = (
    "launches: of our kernels, PyTorch's: of its operators, peak: memory beside the inputs, GEMM floor: the fewest "
    "matrix products at full speed, of the floor: floor / roofline."
)


def shared(r: dict[str, Any]) -> list[str]:
    return [str(r[name] or "-") for name in SHARED]


def cells(r: dict[str, Any]) -> list[str]:
    config = dict(r["config"])
    tile = [str(config.pop(name, "-")) for name in TILES]
    own = [*shared(r), *tile, " ".join(f"{name}={size}" for name, size in config.items()) or "-"]
    if "error" in r:
        return [*own, *["-"] * (len(COLUMNS) - len(own) - 1), f"failed {r['error'][:40]}"]
    return [*own, str(r["registers"]), str(r["spills"]), f"{r['shared_bytes'] / 1024:.0f} KiB",
            str(r.get(TENSOR[r["arch"]], 0))]  # fmt: skip


def model_cells(r: dict[str, Any]) -> list[str]:
    parts = [f"{us / 1e3:.3g}" for us in r["parts_us"].values()]
    return [*shared(r), str(r["programs"]), str(r["issued"] or "-"), *parts, r["bound"], milliseconds(r["roofline_us"])]


def sums(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    """For every loss, its launches and memory, and the model's time with default tiles against the floor."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in rows:
        if r["default"] and "error" not in r:
            groups.setdefault(tuple(r[k] for k in SUMS[:6]), []).append(r)
    lines = []
    for group, members in groups.items():
        floor, time = members[0]["floor_us"], sum(m["roofline_us"] for m in members)
        share = f"{floor / time:.0%}" if floor and time else "-"
        step = members[0]["step"]
        counts = [f"{step['kernels']:,}", str(step["operators"]), f"{step['peak_bytes'] / 2**20:,.1f} MiB"]
        lines.append([*(str(value or "-") for value in group), *counts, milliseconds(floor), milliseconds(time), share])
    return lines


def show_used(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> None:
    """A table without the columns that no row uses."""
    used = [i for i in range(len(columns)) if any(row[i] != "-" for row in rows)]
    show(title, [columns[i] for i in used], [[row[i] for i in used] for row in rows], note)


def milliseconds(us: float) -> str:
    return f"{us / 1e3:.3g} ms"


def run(arch: Sequence[str], all: bool, file: Path | None, **which: Any) -> None:
    """The command: prints the tables, writes the rows."""
    rows = report(list(workloads(**which)), arch, all)
    if file:
        file.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")  # a row a line
    show_used("kernels, as compiled", COLUMNS, [cells(r) for r in rows], NOTE)
    models = ", ".join(f"{name}: {GPUS[name].name}" for name in arch)
    found = [model_cells(r) for r in rows if "error" not in r]
    show_used(f"model of a kernel (data sheets: {models}); nothing is measured", MODEL, found, MODEL_NOTE)
    title = "model of a step: forward and backward with default tiles; nothing is measured"
    show_used(title, SUMS, sums(rows), SUMS_NOTE)
    failed = sum("error" in r for r in rows if r["default"])
    if failed:
        sys.exit(f"{failed} kernels do not compile")
