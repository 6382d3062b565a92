"""Every loss once on a GPU, and again from a captured CUDA graph: a step of `bench.gpu`.

`python -m bench.gpu_losses RESULT.json` adds "graphs" to the file; with --once each loss runs once, for memcheck.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedloss.tools.workloads import LOSSES, Workload, arguments, step, workloads

from . import files

N, D, CLASSES = 1000, 96, 200  # no multiple of a tile


def works(dtypes: list[str]) -> list[Workload]:
    return list(workloads(list(LOSSES), [N], [D], dtypes, None, CLASSES))


def replayed(work: Workload) -> None:
    """Capture forward and backward, replay it on other rows, and compare with a run on these, bit for bit."""
    inputs = arguments(work, "cuda")
    run = step(work, "cuda", inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        for name, other in arguments(work, "cuda", seed=1).items():
            inputs[name].copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    different = [i for i, pair in enumerate(zip(captured, run(), strict=True)) if not same(*pair)]
    if different:
        raise AssertionError(f"a replay has other results than a run: {different} of {len(captured)}")


def same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.nan_to_num(), b.nan_to_num())) and bool(torch.equal(a.isnan(), b.isnan()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, nargs="?")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu runs without graphs")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for work in works(["bf16"] if args.once else ["bf16", "fp32"]):
        row: dict[str, Any] = {"loss": work.name, "dtype": work.dtype, "n": N, "d": D}
        rows.append(row)
        try:
            replayed(work) if args.device == "cuda" and not args.once else step(work, args.device)()
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        if args.result:
            files.update(args.result, graphs=rows)
    failed = [f"{row['loss']}, {row['dtype']}: {row['failed']}" for row in rows if "failed" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} losses passed")
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
