"""What a kernel could take at best: a model of one GPU of each architecture, from data sheets. Nothing is measured.

A kernel takes no less time than its matrix products at the tensor cores' rate, than its memory traffic, and than the
issue of its instructions, one a cycle for each of the four schedulers of a multiprocessor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..losses.catalog import CATALOG, Role
from .workloads import Workload

if TYPE_CHECKING:
    from ..backends.triton.launch import Launch  # which needs Triton


class GPU(NamedTuple):
    """One of an architecture, and what a multiprocessor of it has."""

    name: str
    threads: int  # of a warp
    flops: float  # of 16-bit matrix products with fp32 sums, a second
    fp32_flops: float  # of matrix products of fp32 grade: three in tf32, or fp32 itself
    bandwidth: float  # bytes/s of device memory
    multiprocessors: int
    clock: float  # Hz
    shared_bytes: int
    warps: int
    registers: int  # that all its threads share; they are given to warps in units of 256


GPUS = {
    "sm_80": GPU("A100 80GB", 32, 312e12, 52e12, 2.0e12, 108, 1.41e9, 164 << 10, 64, 1 << 16),
    "sm_90": GPU("H100", 32, 800e12, 133e12, 3.0e12, 132, 1.755e9, 228 << 10, 64, 1 << 16),
    "sm_100": GPU("B200", 32, 2250e12, 375e12, 8e12, 148, 1.85e9, 228 << 10, 64, 1 << 16),
    "gfx942": GPU("MI300X", 64, 1307e12, 163e12, 5.3e12, 304, 2.1e9, 64 << 10, 32, 1 << 17),
}


def occupancy(found: dict[str, Any], warps: int, arch: str) -> float:
    """Share of a multiprocessor's warps that its registers and shared memory leave room for."""
    gpu = GPUS[arch]
    by_registers = gpu.registers // (256 * math.ceil(max(found["registers"], 1) * gpu.threads / 256)) // warps
    shared = found["shared_bytes"] + 1024 * (gpu.threads == 32)  # 1 KiB is the system's
    by_shared = gpu.shared_bytes // max(shared, 1)
    return min(by_registers, by_shared, gpu.warps // warps) * warps / gpu.warps


def kernel_seconds(launch: Launch, found: dict[str, Any], D: int, arch: str) -> float:
    """The most of what the products, the memory and the instructions of a recorded launch take."""
    gpu, options = GPUS[arch], launch.options
    tensors = {id(t): t.nbytes for t in tensors_of(launch.args)}
    memory = sum(tensors.values()) / gpu.bandwidth
    if "BN" not in options:  # of rows or logits: nothing is computed twice
        return memory
    x, y = launch.args[:2]  # `tiles.Rows`
    N, M = x.labels.numel(), y.labels.numel()
    slabs = launch.grid[2] if len(launch.grid) > 2 else 0  # programs that share a row's gradient repeat its scores
    products = 2.0 * N * M * D * (slabs + 1) if slabs else 2.0 * N * M * D
    fp32 = x.rows.dtype == torch.float32
    rate = gpu.fp32_flops if fp32 else gpu.flops
    tensor = 0.0 if options["PRECISION"] == "manhattan" else products / rate
    tiles = launch.grid[0] * math.ceil(M / options["BN"]) * max(1, slabs)
    walked = 0 if options["CHUNKS"] else math.ceil(D / options["BD"])  # chunks, by a loop inside that over tiles
    inner = found.get("inner_instructions", 0)
    issued = found.get("tile_instructions", 0) + inner * max(0, walked - 1)
    issue = tiles * options["num_warps"] * issued / (4 * gpu.multiprocessors * gpu.clock)
    return max(tensor, memory, issue)


def tensors_of(args: Any) -> list[torch.Tensor]:
    if isinstance(args, torch.Tensor):
        return [args]
    return [t for arg in args for t in tensors_of(arg)] if isinstance(args, tuple) else []


def floor_seconds(work: Workload, arch: str) -> float:
    """The fewest products at the tensor cores' rate; without products, the fewest bytes: read twice, written once."""
    gpu, itemsize = GPUS[arch], 4 if work.dtype == "fp32" else 2
    loss, classes = CATALOG[work.loss], work.classes
    if loss.products is None:
        numbers = {Role.ROWS: work.N * work.D, Role.CLASSES: classes * work.D, Role.LOGITS: work.N * classes}
        return 3 * sum(numbers.get(role, 0) for role in loss.tensors.values()) * itemsize / gpu.bandwidth
    if work.metric == "manhattan":
        return 0.0
    rate = gpu.fp32_flops if work.dtype == "fp32" else gpu.flops
    return loss.products * 2.0 * math.prod(loss.sides(work.N, classes)) * work.D / rate
