"""One GPU of each architecture, from data sheets, and how many programs of a kernel a multiprocessor of it holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class GPU(NamedTuple):
    """One of an architecture, and what a multiprocessor of it has."""

    name: str
    threads: int  # of a warp
    flops: float  # of 16-bit matrix products with fp32 sums, a second
    fp32_flops: float  # of matrix products of fp32 grade: three in tf32, or fp32 itself
    fp32_library: float  # of those of a library, which takes no tensor cores for them
    bandwidth: float  # bytes/s of device memory
    l2_bandwidth: float  # bytes/s; of the cache that rows come from; no data sheet has it: assumed
    multiprocessors: int
    clock: float  # Hz
    shared_bytes: int
    warps: int
    registers: int  # that all its threads share; they are given to warps in units of 256
    narrow: tuple[tuple[int, float], ...] = ()  # products of at most so many columns take so much longer


# A wgmma reads its 64 rows anew for every few columns; measured on an H200.
WGMMA = ((16, 2.2), (32, 1.35))
GPUS = {
    "sm_80": GPU("A100 80GB", 32, 312e12, 52e12, 19.5e12, 2.0e12, 5e12, 108, 1.41e9, 164 << 10, 64, 1 << 16),
    "sm_90": GPU("H100", 32, 800e12, 133e12, 67e12, 3.0e12, 7e12, 132, 1.755e9, 228 << 10, 64, 1 << 16, WGMMA),
    "sm_100": GPU("B200", 32, 2250e12, 375e12, 75e12, 8e12, 10e12, 148, 1.85e9, 228 << 10, 64, 1 << 16),
    "gfx942": GPU("MI300X", 64, 1307e12, 163e12, 163e12, 5.3e12, 17e12, 304, 2.1e9, 64 << 10, 32, 1 << 17),
}


def resident(found: dict[str, Any], warps: int, arch: str) -> int:
    """Programs that the registers and the shared memory of a multiprocessor have room for."""
    gpu = GPUS[arch]
    by_registers = gpu.registers // (256 * math.ceil(max(found["registers"], 1) * gpu.threads / 256)) // warps
    shared = found["shared_bytes"] + 1024 * (gpu.threads == 32)  # 1 KiB is the system's
    return int(min(by_registers, gpu.shared_bytes // max(shared, 1), gpu.warps // warps))


def occupancy(found: dict[str, Any], warps: int, arch: str) -> float:
    """Share of a multiprocessor's warps that its programs have."""
    return resident(found, warps, arch) * warps / GPUS[arch].warps
