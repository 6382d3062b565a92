"""One command for a machine with a GPU and no network: `python -m bench.gpu OUT`.

Device and versions, the test suite natively, first timings of the in-batch losses, the demo: each in a process of its
own with its own time limit, about 9 minutes in all. OUT/DEVICE-DATE.json is complete after every step and every timing,
so that a kill keeps what was measured. The exit status is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import report
from .gpu_timings import CEILINGS, MEMBERS, SIZES

LIMITS = {"device": 30, "tests": 210, "timings": 170, "demo": 110}  # seconds
GRACE = 10
DEMO_NEEDS = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "rich": "rich"}


class Outcome(NamedTuple):
    status: str  # passed, failed or skipped
    seconds: float
    detail: str  # why, or the end of the output


def run(step: str, module: str, *arguments: str) -> Outcome:
    """Run a module natively, whatever the environment says of Triton's interpreter; at the limit end all it started."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # a process group, to be ended as a whole; not a session, which would outlive whoever ends this program
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=report.ROOT, env=environment, stdout=log, stderr=log, preexec_fn=os.setpgrp,
        )  # fmt: skip
        try:
            code = process.wait(LIMITS[step])
            why = f"exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            why = f"past its limit of {LIMITS[step]} s"
            os.killpg(process.pid, signal.SIGINT)  # pytest then reports the tests that ran
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        output = log.read()[-4000:].strip()
    return Outcome("failed" if why else "passed", round(time.perf_counter() - start, 1), f"{output}\n{why}".strip())


def tests(out: Path, result: Path) -> Outcome:
    xml = out / "tests.xml"
    xml.unlink(missing_ok=True)
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    outcome = run("tests", "pytest", "tests", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}", *workers)
    if xml.exists():
        report.update(result, tests=summary(ET.parse(xml).getroot()))
    return outcome


def summary(root: ET.Element) -> dict[str, Any]:
    """Counts of a junit file, and the names of what failed."""
    suites = list(root.iter("testsuite"))
    kinds = ("tests", "failures", "errors", "skipped")
    failed = [case for case in root.iter("testcase") if {"failure", "error"} & {child.tag for child in case}]
    return {
        **{kind: sum(int(suite.get(kind, 0)) for suite in suites) for kind in kinds},
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed[:50]],
    }


def demo(out: Path) -> Outcome:
    missing = [name for name, module in DEMO_NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        return Outcome("skipped", 0.0, f"not installed: {', '.join(missing)}")
    return run("demo", "fusedloss", "demo", "--out", str(out / "demo"))


COLUMNS = ["case", "dtype", "D", "N", *MEMBERS, "faster", "of GEMM floor", "peak", "reference's"]


def cells(row: dict[str, Any]) -> list[str]:
    ours, dense = (row.get(member, {"failed": "not measured"}) for member in MEMBERS)
    times = ["failed" if "failed" in ours else report.seconds(ours["seconds"]),
             dense.get("failed", "")[:40] or report.seconds(dense["seconds"])]  # fmt: skip
    both = "seconds" in ours and "seconds" in dense
    return [
        row["case"],
        row["dtype"],
        str(row["d"]),
        f"{row['n']:,}",
        *times,
        f"{dense['seconds'] / ours['seconds']:.1f}x" if both else "-",
        f"{ours['of_gemm_floor']:.1%}" if "of_gemm_floor" in ours else "-",
        *(report.size(m["peak_bytes"]) if "peak_bytes" in m else "-" for m in (ours, dense)),
    ]


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

    found = run("device", "bench.report", args.device)
    meta = json.loads(found.detail.splitlines()[-1]) if found.status == "passed" else {"device": args.device}
    result = out / report.file_name(meta["device"])
    outcomes = {"device": found}
    report.save(result, {"meta": meta})
    steps = {
        "tests": partial(tests, out, result),
        "timings": partial(
            run, "timings", "bench.gpu_timings", str(result), "--device", args.device, "--sizes", *args.sizes
        ),
        "demo": partial(demo, out),
    }
    for name in args.steps:
        print(f"{name} (at most {LIMITS[name]} s)", flush=True)
        try:
            outcomes[name] = steps[name]()
        except Exception as error:
            outcomes[name] = Outcome("failed", 0.0, f"{type(error).__name__}: {error}")
        print(outcomes[name].status, flush=True)
        report.update(result, steps={step: outcome._asdict() for step, outcome in outcomes.items()})

    final = json.loads(result.read_text())
    for name, outcome in outcomes.items():
        if outcome.status != "passed":
            print(f"\n{name} {outcome.status}:\n{outcome.detail}")
    if "timings" in final:
        report.show(f"{meta['device']}: forward + backward", COLUMNS, [cells(row) for row in final["timings"]])
    report.show("steps", ["step", "status", "seconds"], [[n, o.status, f"{o.seconds}"] for n, o in outcomes.items()])
    print(result)
    sys.exit(any(outcome.status == "failed" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
