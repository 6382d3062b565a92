"""Benchmarks of forward + backward, in one group per (loss, N, D, dtype): `make bench`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from fusedloss.tools import measure

from .workloads import CASES, Oracle, data, in_batch, loss_of, saved_bytes


@pytest.mark.filterwarnings("default")  # the peers' warnings are theirs
def test_in_batch(case: str, implementation: str, n: int, d: int, device: str, dtype: str, benchmark: Any) -> None:
    loss, inputs = loss_of(CASES[case], implementation), data(CASES[case], n, d, device, dtype)
    error = oracle(case, n, d, device, dtype).check(loss)

    arguments: dict[str, Any] = dict(case=case, implementation=implementation, n=n, d=d, device=device, dtype=dtype)
    benchmark.group = f"{case}: N={n} D={d} {dtype} {device}"
    benchmark.extra_info |= {
        "peak_bytes": peak_bytes(arguments),
        "saved_bytes": saved_bytes(loss, *inputs),
        **{f"{name}_error": value for name, value in error._asdict().items()},
    }
    run = measure.training_step(loss, *inputs)
    benchmark.pedantic(finished, args=(run,), warmup_rounds=1, rounds=5)


@lru_cache(maxsize=1)  # the members of a group follow each other
def oracle(case: str, n: int, d: int, device: str, dtype: str) -> Oracle:
    return Oracle(CASES[case], n, d, device, dtype)


def finished(run: measure.Run) -> None:
    run()
    measure.synchronize()


def peak_bytes(arguments: dict[str, Any]) -> int | None:
    """The peak in this process on CUDA, whose allocator keeps count, or in a fresh process on a CPU."""
    if arguments["device"] == "cuda":
        return measure.measure_here(in_batch, repeats=1, **arguments).peak_bytes
    maker = "in_batch"
    if arguments["implementation"] == "torch.compile":
        maker, arguments = "in_batch_of_rows", {"rows" if k == "n" else k: v for k, v in arguments.items()}
    found = measure.measure(f"bench.workloads:{maker}", repeats=1, **arguments)
    return found and found.peak_bytes
