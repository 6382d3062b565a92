"""Compile every kernel with its default tile for GPUs that are not there, and report what the compilers made of it.

    python -m bench.compile_report [--arch sm_90 ...] [--d 128 ...] [--json FILE]

Registers, spills, shared memory and tensor-core instructions come from the binary; nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

ARCHS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Work(NamedTuple):
    """How a public loss uses the engine."""

    loss: str  # on a tile
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    numbers: int
    metrics: tuple[str, ...]
    two_sided: bool = False  # both sides are anchors of a batch of pairs; otherwise it is a self batch
    learnable: bool = False  # with the gradient by the numbers
    lifted: bool = False
    classes: bool = False  # the other side are classes, which are no anchors
    bias: bool = False  # and have a bias


DISTANCES = ("euclidean", "cosine", "sqeuclidean", "manhattan")
SIMILARITIES = ("dot", "similarity")
SUM, LSE = ("sum",), ("lse",)
LOSSES = {
    "contrastive": Work("contrastive", SUM, SUM, 2, DISTANCES),
    "linear_contrastive": Work("linear_contrastive", SUM, SUM, 2, DISTANCES),
    "nt_xent": Work("softmax", SUM, LSE, 4, SIMILARITIES),
    "clip": Work("softmax", SUM, LSE, 4, SIMILARITIES, two_sided=True, learnable=True),
    "siglip": Work("sigmoid", SUM, SUM, 4, ("dot",), two_sided=True, learnable=True),
    "supcon": Work("softmax", ("sum", "lse", "sum"), LSE, 4, SIMILARITIES),
    "multi_similarity": Work("softmax", LSE, LSE, 4, SIMILARITIES),
    "circle": Work("circle", LSE, LSE, 4, SIMILARITIES),
    "generalized_lifted_structure": Work("softmax", LSE, LSE, 4, ("chord", "euclidean")),
    "lifted_structure": Work("contrastive", ("sum", "sum", "sum"), (), 2, ("chord", "euclidean"), lifted=True),
    "linear_cross_entropy": Work("softmax", SUM, ("lse", "sum"), 4, ("dot",), classes=True, bias=True),
    "arcface": Work("softmax", SUM, LSE, 4, ("similarity",), learnable=True, classes=True),
    "proxy_anchor": Work("softmax", LSE, LSE, 4, ("similarity",), classes=True),
}
TRIPLETS = {  # batch_all_triplet_loss, its soft form, and batch_semihard_triplet_loss
    "batch_all": ("all", False),
    "batch_all, soft": ("all", True),
    "batch_semihard": ("nearest", False),
}
ROWS_OF_LOGITS = {  # class indices or probabilities, with the sum of the logits, places of a sample
    "cross_entropy": (True, False, 1),
    "cross_entropy, smoothed": (True, True, 1),
    "cross_entropy, probabilities": (False, True, 1),
    "cross_entropy, images": (True, False, 4096),
}
ELEMENTS = ("binary_cross_entropy", "sigmoid_focal")
DEFAULTS = {"sm_90": ([128, 256, 512], list(DTYPES))}  # dimensions and formats
EVERY_LOSS = [*LOSSES, *TRIPLETS, *ROWS_OF_LOGITS, *ELEMENTS]
METRICS = (*DISTANCES, *SIMILARITIES, "chord")


class Case(NamedTuple):
    """One kernel of one loss as `fusedloss.launch` would launch it on one GPU."""

    kernel: str  # of the engine, of mining, of triplets or of rows, as in `cases`
    loss: str
    metric: str
    dtype: str
    D: int
    arch: str


def cases(arch: str, dims: list[int], dtypes: list[str], metrics: list[str], losses: list[str]) -> Iterator[Case]:
    for dtype in dtypes:
        for D in dims:
            for metric in metrics:
                for loss in losses:
                    if loss in TRIPLETS and metric in DISTANCES:
                        for kernel in ("triplets", "triplets_slopes", "triplets_grad"):
                            if kernel != "triplets_slopes" or loss != "batch_semihard":
                                yield Case(kernel, loss, metric, dtype, D, arch)
                    elif loss in LOSSES and metric in LOSSES[loss].metrics:
                        yield Case("fold", loss, metric, dtype, D, arch)
                        yield Case("grad", loss, metric, dtype, D, arch)
                        if LOSSES[loss].classes:
                            yield Case("class_grad", loss, metric, dtype, D, arch)
                if metric in DISTANCES:
                    yield Case("mine", "", metric, dtype, D, arch)
        for metric in (m for m in metrics if m != "chord"):  # these walk D in a loop, whatever it is
            for kernel in ("row_distances", "row_distances_grad", "gather_grad"):
                yield Case(kernel, "", metric, dtype, dims[0], arch)
        yield Case("prepare", "", "", dtype, dims[0], arch)
        for loss in (loss for loss in losses if loss in ROWS_OF_LOGITS):
            for kernel in ("fold_logits", "logits_grad"):
                yield from (Case(kernel, loss, "", dtype, C, arch) for C in (10, 100_000))
        for loss in (loss for loss in losses if loss in ELEMENTS):
            yield from (Case(kernel, loss, "", dtype, 1, arch) for kernel in ("fold_elements", "elements_grad"))


def launch_of(case: Case) -> Any:
    """The launch, on tensors without data, at a size that splits no columns."""
    from fusedloss.kernels import rows
    from fusedloss.launch import common, folds, mining, triplets
    from fusedloss.launch import rows as row_launches

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    common.architecture = lambda: case.arch  # a process compiles for one architecture after another
    N, D = 65_536, case.D
    x = empty(N, D, dtype=DTYPES[case.dtype])
    if case.kernel == "prepare":
        return common.prepare_launch(x, x, empty(N), "", False)
    if case.kernel in ("row_distances", "row_distances_grad"):
        outs = (empty(1, N),) if case.kernel == "row_distances" else (empty(2, N), x, x, x)
        return row_launches.row_launch(getattr(rows, case.kernel), (x, x, x), None, outs, case.metric, 0.0, 2)
    if case.kernel == "gather_grad":
        index = empty(2 * N, dtype=torch.int64)
        return row_launches.gather_launch(x, x, index, index, empty(4, N), empty(N, D), x, case.metric, True)

    if case.loss in ROWS_OF_LOGITS or case.loss in ELEMENTS:
        return logits_launch(case)
    precision = "manhattan" if case.metric == "manhattan" else "ieee"
    if precision == "ieee" and case.dtype == "fp32" and case.arch.startswith("sm_"):
        precision = "tf32x3"
    side = common.Side(x.t() if precision == "manhattan" else x, empty(N), empty(N, dtype=torch.int64))
    if case.kernel == "mine":
        metric = "sqeuclidean" if case.metric == "euclidean" else case.metric
        best, index = empty(1, 2, N), empty(1, 2, N, dtype=torch.int32)
        return mining.mine_launch(
            side, side, side.norms, best, index, D, metric, precision, "farthest", "nearest", True
        )
    if case.loss in TRIPLETS:
        return triplets_launch(triplets, case, side, precision)
    work = LOSSES[case.loss]
    count = len(work.pos) + len(work.neg)
    spec = folds.Spec(work.loss, case.metric, work.pos, work.neg, torch.full((work.numbers,), 0.5))
    side = side._replace(offsets=empty(N) if work.lifted else None)
    if work.classes:
        return class_launch(case, work, side, spec, precision)
    if case.kernel == "fold":
        columns = empty(common.cdiv(N, 16), count, N) if work.two_sided else None
        return folds.fold_launch(
            side, copy(side, work), empty(1, count, N), columns, D, spec, precision, not work.two_sided
        )
    side = side._replace(states=(empty(count, N), empty(count, N)))
    out, sums = empty(1, N, D, dtype=x.dtype), empty(1, 5, N)
    return folds.grad_launch(side, copy(side, work), out, sums, spec, precision, not work.two_sided, work.learnable)


def class_launch(case: Case, work: Work, side: Any, spec: Any, precision: str) -> Any:
    """Of embeddings and classes, as many of them."""
    from fusedloss.launch import folds

    (N, D), value = (len(side.labels), case.D), side.norms
    classes = side._replace(offsets=value if work.bias else None)
    count = len(work.pos) + len(work.neg)
    if case.kernel == "fold":
        return folds.fold_launch(side, classes, value.new_empty(1, count, N), None, D, spec, precision, False)
    states = value.new_empty(count, N, dtype=torch.float64)
    anchors = side._replace(states=(states, states))
    both = (classes, anchors) if case.kernel == "class_grad" else (anchors, classes)
    out = (value.new_empty(1, N, D, dtype=DTYPES[case.dtype]), value.new_empty(1, 5, N))
    return folds.grad_launch(*both, *out, spec, precision, False, work.learnable and case.kernel == "grad")


def logits_launch(case: Case) -> Any:
    """Of given logits, of D classes."""
    from fusedloss.kernels import logits
    from fusedloss.launch import logits as launches

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    kernel = getattr(logits, case.kernel)
    if case.loss in ELEMENTS:
        z, factors = empty(1 << 20, 64, dtype=DTYPES[case.dtype]), (None, empty(64))
        outs = (empty(1 << 26),) if case.kernel == "fold_elements" else (empty(()), z)
        return launches.element_launch(kernel, z, z, factors, [0.25, 2.0], outs, case.loss, True)
    indices, sums, P = ROWS_OF_LOGITS[case.loss]
    z = empty(65_536 // P, case.D, P, dtype=DTYPES[case.dtype])
    states, target = empty(3, 65_536, dtype=torch.float64), empty(65_536, dtype=torch.int64) if indices else z
    outs = (states,) if case.kernel == "fold_logits" else ((states, states), z)
    weight, splits = empty(case.D) if sums else None, 1 if case.kernel == "fold_logits" else None
    return launches.row_launch(kernel, z, target, weight, 0.1, outs, sums, splits)


def triplets_launch(triplets: Any, case: Case, side: Any, precision: str) -> Any:
    kind, soft = TRIPLETS[case.loss]
    N, D, margin = len(side.labels), case.D, torch.full((1,), 0.5)
    range_, value = side.labels.int(), side.norms
    batch = triplets.Batch(side, side, (range_, range_, range_), case.metric, precision)
    if case.kernel == "triplets":
        states = value.new_empty(1, 3, N, dtype=torch.float64)
        if kind == "nearest":
            return triplets.semihard_launch(batch, states[0], range_[None], margin, D, 0, N)
        return triplets.fold_launch(batch, (states,), margin, D, 0, N, kind, soft)
    if case.kernel == "triplets_slopes":
        return triplets.fold_launch(batch, (value[None], value[None, None]), margin, D, 0, 64, kind, soft)
    kept = (range_, range_) if kind == "nearest" else (value, value)
    anchors = triplets.Anchors(0, 64, 1, (range_, range_, value, *kept))
    out = value.new_empty(1, N, D)
    return triplets.grad_launch(batch, side, side, anchors, "self", out, range_, margin, kind, soft)


def copy(side: Any, work: Work) -> Any:
    """The other side: the same one in a self batch."""
    return side._replace() if work.two_sided else side


class AbsentGPU:
    """What Triton's JIT asks of a driver to compile; its caches go by device number, so one for each architecture."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.number, self.target = list(ARCHS).index(arch), GPUTarget(*ARCHS[arch])

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def compile_launch(launch: Any, arch: str) -> Any:
    from triton.runtime import driver

    driver.set_active(AbsentGPU(arch))
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)


def inspect(compiled: Any, arch: str) -> dict[str, Any]:
    """What the binary needs and which tensor-core instructions it has."""
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        spills = re.search(r"vgpr_spill_count:\s*(\d+)", text)
        registers = re.search(r"\.vgpr_count:\s*(\d+)", text)
        found = {"registers": int(registers[1]), "spills": int(spills[1]), "mfma": len(re.findall(r"\bv_mfma", text))}
    else:
        import triton

        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            usage, sass = (
                subprocess.run(
                    [tools / "cuobjdump", what, cubin.name], check=True, capture_output=True, text=True
                ).stdout
                for what in ("-res-usage", "-sass")
            )
        spills = len(re.findall(r"\b(?:LDL|STL)\b", sass))
        found = {"registers": int(re.search(r"REG:(\d+)", usage)[1]), "spills": spills}
        for name, pattern in (("hgmma", "HGMMA"), ("hmma", "HMMA"), ("utcmma", r"UTC\w*MMA")):
            found[name] = len(re.findall(rf"\b{pattern}\b", sass))
    return found | {"shared_bytes": compiled.metadata.shared}


def row(case: Case) -> dict[str, Any]:
    launch = launch_of(case)
    config = {k: launch.options[k] for k in ("BM", "BN", "BD", "num_warps", "num_stages") if k in launch.options}
    try:
        found = inspect(compile_launch(launch, case.arch), case.arch)
    except Exception as e:
        found = {"error": f"{type(e).__name__}: {str(e)[:300]}"}
    return case._asdict() | {"config": config} | found


def report(todo: list[Case]) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(row, todo))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHS), choices=list(ARCHS))
    parser.add_argument("--d", nargs="+", type=int, help="dimensions (128, 256 and 512 on sm_90, 128 elsewhere)")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(DTYPES), help="formats (all on sm_90, bf16 and fp32 elsewhere)"
    )
    parser.add_argument("--metric", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--loss", nargs="+", default=EVERY_LOSS, choices=EVERY_LOSS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    todo: list[Case] = []
    for arch in options.arch:
        dims, dtypes = DEFAULTS.get(arch, ([128], ["bf16", "fp32"]))
        todo += cases(arch, options.d or dims, options.dtype or dtypes, options.metric, options.loss)
    rows = report(todo)
    for r in rows:
        print(" ".join(f"{k}={v}" for k, v in r.items() if k != "config"), *r["config"].values())
    if options.json:
        options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")  # a row a line


if __name__ == "__main__":
    main()
