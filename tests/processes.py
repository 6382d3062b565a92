"""Processes in which tests call functions, as a group of torch.distributed. Starting them takes seconds, so they stay
for later tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: that of its import is the default of its functions

TIMEOUT = timedelta(seconds=60)  # of a group
GRACE = 3.0  # seconds that the others have to end when one process has failed, for which they may wait


class Process(NamedTuple):
    process: Any
    connection: Connection


RUNNING: list[Process] = []  # of this process; they end with it


def run(world: int, function: Callable[..., Any], *arguments: Any, limit: float = 240.0) -> list[Any]:
    """What a function of a module returns in each of `world` processes, which are a new Gloo group, by rank.

    limit: of the whole call, in seconds.

    Raises:
        AssertionError: with the traceback of every process that failed. Where one has died, or others still wait, all
            are killed, and the next call starts new ones.
    """
    while len(RUNNING) < world:
        RUNNING.append(started())
    call = pickle.dumps((function, arguments))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for rank, one in enumerate(RUNNING[:world]):
            group = dict(rank=rank, world_size=world, timeout=TIMEOUT)
            one.connection.send_bytes(pickle.dumps((f"file://{folder}/store", group, call)))
        answers, failures = collected(dict(enumerate(RUNNING[:world])), limit)
    if len(answers) + len(failures) < world or None in failures.values():
        stop()
    if failures or len(answers) < world:
        silent = [rank for rank in range(world) if rank not in answers and rank not in failures]
        told = {rank: text or "has died" for rank, text in failures.items()} | dict.fromkeys(
            silent, "was still waiting"
        )
        raise AssertionError("\n".join(f"rank {rank} of {world}: {text}" for rank, text in sorted(told.items())))
    return [answers[rank] for rank in range(world)]


def started() -> Process:
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=serve, args=(other,), daemon=True)
    process.start()
    other.close()
    return Process(process, own)


def stop() -> None:
    for one in RUNNING:
        one.process.kill()
        one.process.join()
        one.connection.close()
    RUNNING.clear()


def collected(waiting: dict[int, Process], limit: float) -> tuple[dict[int, Any], dict[int, str | None]]:
    """What was returned, and the tracebacks of failures, by rank; the traceback of a process that has died is None."""
    answers: dict[int, Any] = {}
    failures: dict[int, str | None] = {}
    until = time.monotonic() + limit
    while waiting and time.monotonic() < until:
        ready = wait([one.connection for one in waiting.values()], until - time.monotonic())
        for rank in [rank for rank, one in waiting.items() if one.connection in ready]:
            try:
                fine, answer = pickle.loads(waiting.pop(rank).connection.recv_bytes())
            except (EOFError, ConnectionError):
                fine, answer = False, None
            (answers if fine else failures)[rank] = answer
            if not fine:
                until = min(until, time.monotonic() + GRACE)
    return answers, failures


def serve(connection: Connection) -> None:
    """What a process does: it answers calls until the other end closes."""
    os.environ.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")  # Gloo is for CPUs; before kernels are imported
    torch.set_num_threads(1)
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        store, group, call = pickle.loads(request)
        dist.init_process_group("gloo", init_method=store, **group)
        try:
            dist.barrier()  # nobody leaves before all are connected: half a group would be in the way of the next
            function, arguments = pickle.loads(call)
            answer = pickle.dumps((True, function(*arguments)))
        except Exception:
            answer = pickle.dumps((False, traceback.format_exc()))
        dist.destroy_process_group()
        connection.send_bytes(answer)
