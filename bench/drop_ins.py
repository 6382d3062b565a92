"""Libraries beside their drop-ins: `python -m bench.drop_ins [--out FILE] [--page docs/drop_ins.md]`.

Each loss is a script, which is run as it is and with its import changed to that of `fusedloss.compat`. Every number
comes from a fresh process. The two take turns, the first one alternating, and a ratio is the median of the rounds'
ratios. If the library cannot run N = 4,096 within `LIMIT` more bytes and `TIMEOUT`, both are timed at the largest N
that it can run, and the drop-in alone at 4,096.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusedloss.compat import fused_calls
from fusedloss.tools.console import show
from fusedloss.tools.measure import WARM_ROWS, batch, extra_memory, limit_memory, out_of_memory, timed
from tests.libraries import complete_torchvision

from . import files, tables

N, D = 4096, 128
LIMIT = 16 * 2**30
TIMEOUT = 40.0  # seconds for a whole process
ENOUGH = 2.0  # after so many seconds of timed runs a process stops before it has done all
ALIKE = 1e-3  # the largest relative difference of a drop-in's value, and of its gradient's norm, from the library's
LIBRARY, DROP_IN = "library", "drop-in"
PACKAGES = {  # by the name of the module that a script imports
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sentence_transformers": "sentence-transformers",
    "open_clip": "open_clip_torch",
    "lightly": "lightly",
}
Results = dict[str, Any]


class Case(NamedTuple):
    """A loss of a library: a script that defines a function `loss` of the given tensors, which have N rows each."""

    library: str
    name: str
    script: str
    given: Callable[[int, int], tuple[Tensor, ...]]  # makes the tensors from N and the number of classes
    classes: int = 32
    rows: int = N  # the most rows with which the library runs


# ----------------------------------------------------------------------------------------------------------- scripts


def labelled(n: int, classes: int) -> tuple[Tensor, ...]:
    return batch(n, D, classes, "cpu", "float32")


def two(n: int, classes: int) -> tuple[Tensor, ...]:
    """Two unit rows of each of n things, whose cosine is about a half."""
    x, noise = (batch(n, D, classes, "cpu", "float32", seed=seed)[0].detach() for seed in range(2))
    return x.requires_grad_(), nn.functional.normalize(x.detach() + 2 * noise).requires_grad_()


def graded(n: int, classes: int) -> tuple[Tensor, ...]:
    return *two(n, classes), torch.rand(n, generator=torch.Generator().manual_seed(0))


def metric_learning(name: str, made: str, **more: Any) -> Case:
    """A loss of pytorch-metric-learning, by the code that makes it."""
    script = f"from pytorch_metric_learning import losses, miners\n{made}"
    return Case("pytorch_metric_learning", name, script, labelled, **more)


def mined(name: str, loss: str, miner: str, **more: Any) -> Case:
    made = f"of, mine = losses.{loss}(), miners.{miner}()\nloss = lambda x, labels: of(x, labels, mine(x, labels))"
    return metric_learning(f"{name}, {miner}", made, **more)


def sentence_transformers(name: str, given: Callable[[int, int], tuple[Tensor, ...]] = labelled, **more: Any) -> Case:
    """A loss of sentence-transformers, which takes the features of a model; here they are the embeddings."""
    script = f"""from sentence_transformers import losses
from torch import nn
of = losses.{name}(nn.Identity())
loss = lambda *given: of([{{"sentence_embedding": x}} for x in given if x.dim() == 2], given[-1])"""
    return Case("sentence_transformers", name, script, given, **more)


def towers(name: str, scale: str) -> Case:
    """A loss of open_clip, with what it takes after the features."""
    script = f"from open_clip.loss import {name}\nof = {name}()\nloss = lambda image, text: of(image, text, {scale})"
    return Case("open_clip", name, script, two)


MEMORY = """import torch

torch.manual_seed(0)
memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 128, memory_size=16_384)
memory.embedding_memory.normal_()
memory.label_memory.random_(32)
memory.has_been_filled = True


def loss(embeddings, labels):
    memory.queue_idx = 0  # every time in the same place: no row is in the memory twice
    return memory(embeddings, labels)"""
CASES = [
    metric_learning("ContrastiveLoss", "loss = losses.ContrastiveLoss()"),
    metric_learning("TripletMarginLoss", "loss = losses.TripletMarginLoss()", rows=1024),
    mined("TripletMarginLoss", "TripletMarginLoss", "BatchHardMiner"),
    mined("MultiSimilarityLoss", "MultiSimilarityLoss", "MultiSimilarityMiner"),
    metric_learning("NTXentLoss", "loss = losses.NTXentLoss()", classes=256, rows=512),
    metric_learning("SupConLoss", "loss = losses.SupConLoss()"),
    metric_learning("MultiSimilarityLoss", "loss = losses.MultiSimilarityLoss()"),
    metric_learning("CircleLoss", "loss = losses.CircleLoss()"),
    metric_learning("ArcFaceLoss", "loss = losses.ArcFaceLoss(10_000, 128)", classes=10_000),
    metric_learning("ProxyAnchorLoss", "loss = losses.ProxyAnchorLoss(10_000, 128)", classes=10_000),
    metric_learning("CrossBatchMemory(ContrastiveLoss), 16,384 rows", MEMORY, rows=1024),
    sentence_transformers("BatchHardTripletLoss"),
    sentence_transformers("BatchAllTripletLoss", rows=1024),
    sentence_transformers("BatchSemiHardTripletLoss"),
    sentence_transformers("MultipleNegativesRankingLoss", two),
    sentence_transformers("CoSENTLoss", graded),
    towers("ClipLoss", "20.0"),
    towers("SigLipLoss", "10.0, -10.0"),
    *(Case("lightly", of, f"from lightly.loss import {of}\nloss = {of}()", two) for of in ("NTXentLoss", "DCLLoss")),
]


def script_of(case: Case, who: str) -> str:
    return case.script if who == LIBRARY else case.script.replace("from ", "from fusedloss.compat.", 1)


# --------------------------------------------------------------------------------------------------------- processes


def measured_here(case: Case, who: str, n: int, repeats: int) -> Results:
    """Forward and backward of a script in this process: time, peak memory, results, and which calls were not fused."""
    torch.manual_seed(0)
    names: Results = {}
    exec(script_of(case, who), names)
    parameters = [p for v in names.values() if isinstance(v, nn.Module) for p in v.parameters()]
    found: Results = {}

    def step(given: tuple[Tensor, ...]) -> None:
        value = names["loss"](*given)
        gradients = torch.autograd.grad(value, [*(t for t in given if t.requires_grad), *parameters])
        found.update(value=value.item(), norm=float(nn.utils.get_total_norm(gradients)))

    step(case.given(min(n, WARM_ROWS), case.classes))  # lets libraries start their threads
    given = case.given(n, case.classes)
    fused_calls(reset=True)
    limit_memory(LIMIT)
    memory = extra_memory()
    step(given)
    calls = [f"{call.loss}: {call.why}" for call in fused_calls() if not call.fused]
    found |= {"peak_bytes": memory.peak(), "not_fused": calls}
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH:
        seconds.append(timed(lambda: step(given)))
    return found | {"seconds": median(seconds)}


def child(results: Connection, *given: Any) -> None:
    try:
        results.send(measured_here(*given))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        asked = re.search(r"allocate (\d+) bytes", str(error))
        results.send({"failed": "memory", "asked_bytes": int(asked[1]) if asked else None})


def measured(case: Case, who: str, n: int, repeats: int) -> Results:
    """`measured_here` in a new process, forked from this one, which has only imported the libraries."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(its, case, who, n, repeats))
    process.start()
    its.close()
    try:
        return mine.recv() if mine.poll(TIMEOUT) else {"failed": "time"}
    except EOFError:
        process.join()
        if process.exitcode == -9:  # SIGKILL, which is how Linux ends a process for lack of memory
            return {"failed": "memory", "asked_bytes": None}
        raise RuntimeError(f"{case.library}, {case.name}, {who}, N = {n} failed") from None
    finally:
        process.kill()
        process.join()


def compared(case: Case, n: int, rounds: int, repeats: int) -> Results:
    """Both with n rows; a RuntimeError if they do not compute the same."""
    runs: dict[str, list[Results]] = {LIBRARY: [], DROP_IN: []}
    for turn in range(rounds):
        for who in [*runs][:: 1 if turn % 2 == 0 else -1]:
            if not any("failed" in run for run in runs[who]):
                runs[who].append(measured(case, who, n, repeats))
    row = {"module": case.library, "loss": case.name, "n": n, "d": D, "classes": case.classes}
    row |= {who: summary(of) for who, of in runs.items()}
    theirs, ours = row[LIBRARY], row[DROP_IN]
    if "failed" in theirs or "failed" in ours:
        return row
    for of in ("value", "norm"):
        if not abs(ours[of] - theirs[of]) <= ALIKE * max(abs(theirs[of]), abs(ours[of])):
            raise RuntimeError(f"{case.library}, {case.name}, N = {n}: {of} {theirs[of]}, of the drop-in {ours[of]}")
    for ratio, of in (("time_ratio", "seconds"), ("peak_ratio", "peak_bytes")):
        row[ratio] = median(b[of] / a[of] for a, b in zip(runs[LIBRARY], runs[DROP_IN], strict=True))
    return row


def summary(runs: list[Results]) -> Results:
    """A failure, or the medians of time and memory with the other results of the last run."""
    if "failed" in runs[-1]:
        return runs[-1]
    return runs[-1] | {of: median(run[of] for run in runs) for of in ("seconds", "peak_bytes")}


# ---------------------------------------------------------------------------------------------------------- the page

COLUMNS = ["loss", "N", "library", "drop-in", "ratio", "library's peak", "drop-in's", "ratio", "fused"]


def cells(row: Results) -> list[str]:
    theirs, ours = row[LIBRARY], row[DROP_IN]
    ratios = [tables.ratio(row[of]) if of in row else "-" for of in ("time_ratio", "peak_ratio")]
    fused = "-" if "failed" in ours else "; ".join(ours["not_fused"]) or "yes"
    (time, peak), (own_time, own_peak) = shown(theirs), shown(ours)
    return [row["loss"], f"{row['n']:,}", time, own_time, ratios[0], peak, own_peak, ratios[1], fused]


def shown(found: Results) -> tuple[str, str]:
    """The time and the peak as they are printed."""
    if found.get("failed") == "time":
        return f"> {TIMEOUT:.0f} s", "-"
    if "failed" in found:
        return "-", f"> {tables.size(max(LIMIT, found['asked_bytes'] or 0))}"
    return tables.seconds(found["seconds"]), tables.size(found["peak_bytes"])


def section(name: str, results: Results) -> Iterator[str]:
    """The Markdown of a result file."""
    meta = results["meta"]
    yield (
        f"**{meta['device']}, {meta['cores']} cores**: forward + backward, D = {D}, float32, torch {meta['torch']} "
        f"({meta['date'][:10]}; `{name}`).\n"
    )
    for library, package in PACKAGES.items():
        rows = [cells(row) for row in results["drop_ins"] if row["module"] == library]
        if rows:
            yield f"{package} {meta[package]}:\n"
            yield tables.markdown(COLUMNS, rows) + "\n"


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description="libraries beside their drop-ins on this CPU")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--page", type=Path, help="the file that has the markers, which is then written")
    parser.add_argument("--libraries", nargs="+", choices=list(PACKAGES), default=list(PACKAGES), help="(all)")
    parser.add_argument("--losses", nargs="+", help="names of losses (all)")
    parser.add_argument("--rows", type=int, default=N, help=f"N ({N:,}), and the most with which a library runs")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each (2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a process at most (3)")
    args = parser.parse_args(arguments)
    if args.page and not args.out:
        parser.error("--page is written from the file of --out")
    cases = [c for c in CASES if c.library in args.libraries and (not args.losses or c.name in args.losses)]
    complete_torchvision()
    for library in {case.library: None for case in cases}:
        importlib.import_module(f"fusedloss.compat.{library}")
    results: Results = {"meta": files.meta("cpu") | {p: files.version(p) for p in PACKAGES.values()}, "drop_ins": []}
    for case in cases:
        for n in sorted({min(case.rows, args.rows), args.rows}):
            results["drop_ins"].append(compared(case, n, args.rounds, args.repeats))
            print(case.library, *cells(results["drop_ins"][-1]), sep=" | ", flush=True)
            if args.out:
                files.save(args.out, results)
    rows = [[row["module"], *cells(row)] for row in results["drop_ins"]]
    show(f"forward + backward, D={D}, float32", ["of", *COLUMNS], rows)
    if args.page:
        subprocess.run([sys.executable, "-m", "bench.report", args.out, "--page", args.page], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
