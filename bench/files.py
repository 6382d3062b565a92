"""Result files, and what a result depends on: `python -m bench.files cuda` prints it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PEERS = ("pytorch-metric-learning", "sentence-transformers", "cut-cross-entropy", "inf-cl", "liger-kernel", "memeff",
         "siglip-kernel")  # fmt: skip
VERSIONS = ("torch", "triton", "numpy", *PEERS)
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
SECTIONS = {
    "rows",
    "beside_dense",
    "timings",
    "accuracy",
    "group_memory",
    "drop_ins",
}  # of which a file that has a table has one


def meta(device: str) -> dict[str, Any]:
    """What a result depends on, and nothing that names the machine."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
        "cuda": torch.version.cuda,
        **(gpu() if device == "cuda" else {}),
        "commit": commit(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu() -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(0)
    return {
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": facts.total_memory,
        "multiprocessors": facts.multi_processor_count,
    }


def commit() -> str | None:
    """The commit, with "+" when files differ from it."""
    head = output("git", "rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if output("git", "status", "--porcelain", "--untracked-files=no") else "")


def output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def file_name(name: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200-2026-11-22.json" """
    plain = re.sub(r"\((r|tm)\)|cpu|processor|@.*", " ", name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f"{slug}-{datetime.datetime.now(datetime.timezone.utc).date()}.json"


def save(path: Path, results: dict[str, Any]) -> None:
    """Replace the file as a whole, so that it is complete whenever the program is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """A result file of `bench.cpu_table` ("rows"), `bench.dense` ("beside_dense"), `bench.gpu` ("timings"),
    `bench.accuracy`, `bench.group_memory` or `bench.drop_ins`."""
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(results, dict) or "meta" not in results or not SECTIONS & set(results):
        raise ValueError(f"{path}: no result file, which has 'meta' and one of {', '.join(sorted(SECTIONS))}")
    return results


def digest(results: dict[str, Any]) -> str:
    """A digest of the content of a file, whatever its line ends."""
    return hashlib.sha256(json.dumps(results).encode()).hexdigest()[:16]


def update(path: Path, **sections: Any) -> None:
    """Add or replace sections of a result file."""
    save(path, {**(json.loads(path.read_text()) if path.exists() else {}), **sections})


if __name__ == "__main__":
    print(json.dumps(meta(sys.argv[1])))
