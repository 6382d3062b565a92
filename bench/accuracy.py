"""How exact the losses are beside eager PyTorch: `python -m bench.accuracy [--out FILE] [--losses ...]`.

It runs every loss in float32, float16 and bfloat16, by both backends (Triton in its interpreter without a GPU), for
rows of several lengths and far from the origin. The errors of the value and of the gradients (the largest one) are
against float64 on the same rounded inputs, relative to the largest entry. Beside them are the errors of the loss in
dense PyTorch (`fusedloss.reference`) in the same dtype, the largest over several orders of its sums. Losses that have a
reduction are sums over the batch, so that float16 holds their gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedloss import reference, use_backend
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.tools.console import progress
from fusedloss.tools.workloads import DTYPES, Workload, arguments
from tests.compare import ATOL, differentiate, distance, rounding

from . import files, tables
from .regimes import ROWS, Regime, forms, holds, placed

N, D, CLASSES = 48, 64, 20
REGIMES = {
    "length 1": Regime(),
    "1e-3": Regime(1e-3),
    "1e-6": Regime(1e-6),
    "1e3": Regime(1e3),
    "offset": Regime(0.1 * D**0.5, 1000.0),  # 100 + 0.1 randn
}
BACKENDS = ("triton", "blocked")
FACTOR = 1.5  # the tests allow this times eager's error, and a rounding

Results = dict[str, Any]


def measured(loss: str) -> list[Results]:
    """The errors of a loss: a row for each dtype, and each regime that the dtype can hold."""
    torch.set_num_threads(1)
    # The interpreter computes every lane, including masked ones.
    warnings.filterwarnings("ignore", ".* encountered in", RuntimeWarning)
    return [row for dtype in DTYPES for name in REGIMES if (row := errors(loss, dtype, name)) is not None]


def errors(loss: str, kind: str, regime: str) -> Results | None:
    """The errors of the value and of the gradients, None if not finite; no row if the dtype cannot hold the regime."""
    entry, dtype = CATALOG[loss], DTYPES[kind]
    given = arguments(Workload(loss, N, D, "fp32", classes=CLASSES), "cpu")
    inputs: dict[str, Any] = placed(given, entry.tensors, REGIMES[regime])
    inputs = {name: t.to(dtype) if t.is_floating_point() and t.dim() else t.detach() for name, t in inputs.items()}
    rows = [name for name in inputs if entry.tensors[name] in ROWS]
    if "reduction" in entry.function.__kwdefaults__:
        inputs["reduction"] = "sum"
    dense, constant = getattr(reference, loss), entry.named(Role.ANSWERS)

    def outcome(function: Callable[..., Tensor], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        return differentiate(function, inputs, dtype, device, constant)

    exact = outcome(dense, torch.float64, "cpu")
    if not holds(dtype, REGIMES[regime], inputs, exact):
        return None
    atol = ATOL[torch.float32], ATOL[torch.float32] + 2 * rounding(dtype)  # of a product's weights, and of the sum
    row: Results = dict(loss=loss, dtype=kind, regime=regime, atol=[float(f"{more:.3g}") for more in atol])
    for name, baseline in (("eager", dtype), ("eager in float32", torch.float32)):
        found = [relative(outcome(form, baseline, native("triton")), exact) for form in forms(dense, rows)]
        row[name] = [max(errors) if None not in errors else None for errors in zip(*found, strict=True)]
    for backend in BACKENDS:
        with use_backend(backend):
            row[backend] = relative(outcome(entry.function, dtype, native(backend)), exact)
    return row


def native(backend: str) -> str:
    """The device on which a backend runs."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def relative(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> list[float | None]:
    """The errors of the value and of the gradients, the largest one, each relative to its largest entry."""
    each = {}
    for name, want in exact.items():
        size = float(want.abs().max()) or 1.0
        each[name] = distance(found[name], want, math.inf) / size
    value, gradients = each.pop("value"), list(each.values())
    worst = max(gradients) if all(map(math.isfinite, gradients)) else math.nan
    return [float(f"{error:.3g}") if math.isfinite(error) else None for error in (value, worst)]


def worse(row: Results, backend: str) -> bool:
    """Whether a backend's error is larger than the tests allow; an error of eager's that is not finite allows any."""
    for baseline in ("eager", "eager in float32"):
        for ours, eager, atol in zip(row[backend], row[baseline], row["atol"], strict=True):
            if ours is None or (eager is not None and ours > FACTOR * eager + atol):
                return True
    return False


# --------------------------------------------------------------------------------------------------------- the page


COLUMNS = ["loss", *REGIMES]
MARK = "**!** "


def number(error: float | None) -> str:
    """0.0000123 -> 1e-5"""
    if error is None:
        return "inf"
    mantissa, _, exponent = f"{error:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if error else "0"


def cell(row: Results | None, backend: str) -> str:
    if row is None:
        return "-"
    pairs = (f"{number(ours)} ({number(eager)})" for ours, eager in zip(row[backend], row["eager"], strict=True))
    return (MARK if worse(row, backend) else "") + ", ".join(pairs)


def section(name: str, results: Results) -> Iterator[str]:
    """The Markdown of a result file: a table for each backend and dtype."""
    meta, rows = results["meta"], {(row["loss"], row["dtype"], row["regime"]): row for row in results["accuracy"]}
    losses = list(dict.fromkeys(row["loss"] for row in results["accuracy"]))
    marked = (f"{sum(worse(row, of) for row in rows.values())} of {len(rows)} by the {of} backend" for of in BACKENDS)
    yield (
        f"**{meta['device']}**: {results['n']} rows of {results['d']} dimensions, torch {meta['torch']}, triton "
        f"{meta['triton']} ({meta['date'][:10]}; `{name}`).\nMarked are {' and '.join(marked)}.\n"
    )
    for backend in BACKENDS:
        for kind in DTYPES:
            yield f"### {kind}, {backend} backend ({results['backends'][backend]})\n"
            cells = [[f"`{loss}`", *(cell(rows.get((loss, kind, of)), backend) for of in REGIMES)] for loss in losses]
            yield tables.markdown(COLUMNS, cells) + "\n"


def default_path() -> Path:
    device = files.device_name("cuda") if torch.cuda.is_available() else ""
    return files.ROOT / "bench" / "results" / files.file_name(f"accuracy {device}")


def main(*given: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file (bench/results/accuracy-DATE.json)")
    parser.add_argument("--losses", nargs="+", choices=list(CATALOG), default=list(CATALOG), help="losses (all)")
    args = parser.parse_args(given or None)
    gpu = torch.cuda.is_available()
    if not gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    rows: list[Results] = []
    with ProcessPoolExecutor(1 if gpu else os.cpu_count(), get_context("spawn")) as pool, progress("losses") as advance:
        for done, found in enumerate(pool.map(measured, args.losses), 1):
            rows += found
            advance(done, len(args.losses))
    backends = {"triton": "native" if gpu else "interpreted", "blocked": "PyTorch on the CPU"}
    sizes = dict(n=N, d=D, classes=CLASSES)
    out = args.out or default_path()
    files.save(out, {"meta": files.meta("cuda" if gpu else "cpu"), **sizes, "backends": backends, "accuracy": rows})
    print(out, *(summary(rows, backend) for backend in BACKENDS), sep="\n")


def summary(rows: Sequence[Results], backend: str) -> str:
    off = [f"{row['loss']} {row['dtype']} {row['regime']}: {json.dumps(row[backend])} beside {json.dumps(row['eager'])}"
           for row in rows if worse(row, backend)]  # fmt: skip
    return "\n  ".join([f"{backend}: {len(off)} of {len(rows)} cases are worse than eager PyTorch", *off])


if __name__ == "__main__":
    main()
