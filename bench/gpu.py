"""One command for a machine with a GPU and no network: `python -m bench.gpu OUT`.

The steps are: device and versions; every loss, captured in a CUDA graph and replayed; the tests of the kernels
natively; timings against dense PyTorch and the peers that are installed; tuned tiles of a few shapes; every loss under
compute-sanitizer, if it is installed; plots; the demo. Each step is a process with its own time limit, and all of them
end within 9 minutes.
OUT/DEVICE-DATE.json is complete after every step and every timing, so that a kill keeps what was measured. The exit
status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fusedloss.tools.console import show

from . import files, gpu_table
from .cpu_table import OURS
from .gpu_timings import CEILINGS, SIZES

# Time limits of the steps in seconds, the most informative ones first; none goes on past the end of all.
LIMITS = {
    "device": 20, "graphs": 60, "tests": 150, "timings": 140, "tune": 80, "memcheck": 60, "plots": 20, "demo": 60,
}  # fmt: skip
END = 520
TUNED_LOSSES = ("pairwise_contrastive_loss", "supcon_loss", "batch_hard_triplet_loss")
TUNED = ("--loss", *TUNED_LOSSES, "--n", "16384", "--d", "256", "--dtype", "bf16")
GRACE = 10
STARTED = time.perf_counter()
DEMO_NEEDS = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "rich": "rich"}


class Outcome(NamedTuple):
    status: str  # passed, failed, skipped, or stopped at its limit with nothing wrong so far
    seconds: float
    detail: str  # why, or the end of the output


def run(step: str, module: str, *arguments: str, under: Sequence[str] = (), **variables: str) -> Outcome:
    """Run a module without Triton's interpreter, whatever the environment says; at the limit end all it started."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    start = time.perf_counter()
    limit = min(LIMITS[step], STARTED + END - start)
    if limit < GRACE:
        return Outcome("skipped", 0.0, "no time is left")
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # a process group, to be ended as a whole; not a session, which would outlive whoever ends this program
        process = subprocess.Popen(
            [*under, sys.executable, "-m", module, *arguments],
            cwd=files.ROOT, env=environment, stdout=log, stderr=log, preexec_fn=os.setpgrp,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            why = f"exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            code, why = None, f"past its limit of {limit:.0f} s"
            os.killpg(process.pid, signal.SIGINT)  # pytest then reports the tests that ran
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        output = log.read()[-4000:].strip()
    status = "stopped" if code is None else "failed" if code else "passed"
    return Outcome(status, round(time.perf_counter() - start, 1), f"{output}\n{why}".strip())


def sound(step: str, results: dict[str, Any]) -> bool:
    """Whether everything that a step had done when it was stopped is right; only lists can be incomplete."""
    if step == "tests":
        return bool(results.get("tests")) and not results["tests"]["failed"]
    rows = results.get("timings", []) if step == "timings" else []
    return bool(rows) and not any("failed" in row[OURS] for row in rows)


def tests(out: Path, result: Path) -> Outcome:
    """The tests of the kernels; those of degenerate batches, which are many and small, come last."""
    xml = out / "tests.xml"
    xml.unlink(missing_ok=True)
    workers = ["-n", str(min(16, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    paths = sorted((files.ROOT / "tests").glob("test_*.py"), key=lambda path: ("degenerate" in path.name, path.name))
    names = [str(path.relative_to(files.ROOT)) for path in paths]
    outcome = run(
        "tests",
        "pytest",
        *names,
        "-k",
        "triton",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        f"--junitxml={xml}",
        *workers,
    )
    if xml.exists():
        files.update(result, tests=summary(ET.parse(xml).getroot()))
    return outcome


def summary(root: ET.Element) -> dict[str, Any]:
    """The counts in a junit file, and the names of the failed tests."""
    suites = list(root.iter("testsuite"))
    kinds = ("tests", "failures", "errors", "skipped")
    failed = [case for case in root.iter("testcase") if {"failure", "error"} & {child.tag for child in case}]
    return {
        **{kind: sum(int(suite.get(kind, 0)) for suite in suites) for kind in kinds},
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed[:50]],
    }


def tune(out: Path, result: Path) -> Outcome:
    """Tune a few shapes into a separate cache, so that neither the timings nor the user's cache are affected."""
    with tempfile.TemporaryDirectory() as cache:
        outcome = run("tune", "fusedloss", "tune", *TUNED, FUSEDLOSS_CACHE_DIR=cache)
        for found in Path(cache).glob("*.json"):
            files.update(result, tuned=json.loads(found.read_text()))
    return outcome


def memcheck() -> Outcome:
    """Every loss once under a memory checker, each tensor in an allocation of its own."""
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        return Outcome("skipped", 0.0, "compute-sanitizer is not installed")
    under = (checker, "--tool", "memcheck", "--error-exitcode", "9")
    return run("memcheck", "bench.gpu_losses", "--once", under=under, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def plots(out: Path, result: Path) -> Outcome:
    """The plots, and the tables that a README would have."""
    page = out / "report.md"
    page.write_text("<!-- results -->\n<!-- /results -->\n")
    arguments = (str(result), "--plots", str(out / "plots"), "--page", str(page))
    return missing_of("matplotlib") or run("plots", "bench.report", *arguments)


def demo(out: Path) -> Outcome:
    return missing_of(*DEMO_NEEDS) or run("demo", "fusedloss", "demo", "--out", str(out / "demo"))


def missing_of(*packages: str) -> Outcome | None:
    names = [name for name in packages if importlib.util.find_spec(DEMO_NEEDS[name]) is None]
    return Outcome("skipped", 0.0, f"not installed: {', '.join(names)}") if names else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the result file and the demo's pictures")
    parser.add_argument("--device", choices=list(CEILINGS), default="cuda", help="cpu tries the program without a GPU")
    parser.add_argument("--sizes", nargs="+", default=[str(n) for n in SIZES], help="batch sizes of the timings")
    parser.add_argument("--steps", nargs="+", choices=list(LIMITS)[1:], default=list(LIMITS)[1:], help="which (all)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False: no GPU, or a PyTorch built without CUDA")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a step under way ends with this program
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    found = run("device", "bench.files", args.device)
    meta = json.loads(found.detail.splitlines()[-1]) if found.status == "passed" else {"device": args.device}
    result = out / files.file_name(meta["device"])
    outcomes = {"device": found}
    files.save(result, {"meta": meta})
    steps = {
        "graphs": partial(run, "graphs", "bench.gpu_losses", str(result), "--device", args.device),
        "tests": partial(tests, out, result),
        "timings": partial(
            run, "timings", "bench.gpu_timings", str(result), "--device", args.device, "--sizes", *args.sizes
        ),
        "tune": partial(tune, out, result),
        "memcheck": memcheck,
        "plots": partial(plots, out, result),
        "demo": partial(demo, out),
    }
    for name in args.steps:
        print(f"{name} (at most {LIMITS[name]} s)", flush=True)
        try:
            outcomes[name] = steps[name]()
        except Exception as error:
            outcomes[name] = Outcome("failed", 0.0, f"{type(error).__name__}: {error}")
        if outcomes[name].status == "stopped" and not sound(name, json.loads(result.read_text())):
            outcomes[name] = outcomes[name]._replace(status="failed")
        print(outcomes[name].status, flush=True)
        files.update(result, steps={step: outcome._asdict() for step, outcome in outcomes.items()})

    final = json.loads(result.read_text())
    for name, outcome in outcomes.items():
        if outcome.status != "passed":
            print(f"\n{name} {outcome.status}:\n{outcome.detail}")
    if "timings" in final:
        others = gpu_table.others_of(final["timings"])
        rows = [gpu_table.cells(row, others) for row in final["timings"]]
        show(f"{meta['device']}: forward + backward", gpu_table.columns(others), rows)
    show("steps", ["step", "status", "seconds"], [[n, o.status, f"{o.seconds}"] for n, o in outcomes.items()])
    print(result)
    sys.exit(any(outcome.status == "failed" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
