"""Blocks of rows in parallel, each with single-threaded operators.

A parallel operator ends when its last thread ends, and a step has dozens of operators. If another process uses one of
the cores, every operator waits for it (a step at N = 4,096 took 4 to 15 times as long, 2 cores, 2026-11). Here threads
wait for each other only a few times per step. Additions are in the order of a single thread, so results do not depend
on the number of threads.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...checks import Batch

INLINE = 1 << 16  # up to so many elements our threads take longer than PyTorch's (N = 256: 1.6 times as long)
T = TypeVar("T")
Body = Callable[..., T]

here = threading.local()  # `here.workers`: the workers to which the thread belongs


class Workers:
    """Threads in which operators are single-threaded, which is a setting per thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.executor = ThreadPoolExecutor(count, "fusedloss", self.start)
        all_started = threading.Barrier(count)
        for one in [self.executor.submit(all_started.wait) for _ in range(count)]:
            one.result()
        torch.set_num_threads(count)  # for this thread and for new ones

    def start(self) -> None:
        here.workers = self
        torch.set_grad_enabled(False)
        torch.get_num_threads()  # the first call sets it
        torch.set_num_threads(1)


_started: dict[int, Workers] = {}  # by the number of threads
_starting = threading.Lock()


def _forget() -> None:
    """Forget all workers in a forked process, which has none of their threads."""
    global _starting
    _started.clear()
    _starting = threading.Lock()
    vars(here).clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def workers(count: int) -> Workers:
    with _starting:
        if count not in _started:
            _started[count] = Workers(count)
        return _started[count]


def elements(of: Batch | Tensor) -> int:
    """The number of elements of the largest tensor in a computation, counting the scores as one tensor."""
    if isinstance(of, Tensor):
        return of.numel()
    (N, D), M = of.x.shape, of.y_labels.shape[0]
    return max(N * M, N * D, M * D)


def single_threaded(of: Callable[[Any], Batch | Tensor]) -> Callable[[Body[T]], Body[T]]:
    """Makes a function of a record run with single-threaded operators on a CPU; `of` finds its input in the record.

    Small inputs, and calls from a thread with only one core, are computed in the calling thread, with the same results.
    """

    def decorated(body: Body[T]) -> Body[T]:
        @functools.wraps(body)
        def run(record: Any, *others: Any) -> T:
            found = of(record)
            x = found if isinstance(found, Tensor) else found.x
            if x.device.type != "cpu" or elements(found) <= INLINE or (count := torch.get_num_threads()) == 1:
                return body(record, *others)
            return workers(count).executor.submit(body, record, *others).result()

        return run

    return decorated


NOTHING = nullcontext()


class Failed(Exception):
    """Raised in a task when another task has failed."""


class Tasks:
    """Runs tasks 0, 1, ... in this order on the workers of this thread, or one by one in the thread if it has none.

    meeting: whether tasks add to the same places.
    """

    def __init__(self, meeting: bool = True) -> None:
        self.team: Workers | None = getattr(here, "workers", None)
        self.meeting = meeting
        self.error: BaseException | None = None
        if self.team is not None:
            self.changed = threading.Condition()
            self.passed: Counter[int] = Counter()  # how many tasks are done with a place

    def run(self, count: int, task: Callable[[int], None]) -> None:
        team = self.team
        if team is None or count < 2:
            for i in range(count):
                task(i)
            return
        numbers = iter(range(count))

        def work() -> None:
            while True:
                with self.changed:
                    i = next(numbers, None) if self.error is None else None
                if i is None:
                    return
                try:
                    task(i)
                except BaseException as error:
                    with self.changed:
                        self.error = self.error or error
                        self.changed.notify_all()

        others = [team.executor.submit(work) for _ in range(min(team.count, count) - 1)]
        work()
        for other in others:
            if not other.cancel():  # it began; the other workers may be busy with other calls
                other.result()
        if self.error is not None:
            raise self.error

    def turn(self, place: int, number: int) -> AbstractContextManager[None]:
        """A block in which task `number` of those that use a place works on it, after all earlier ones."""
        return self.waiting(place, number) if self.meeting and self.team is not None else NOTHING

    @contextmanager
    def waiting(self, place: int, number: int) -> Iterator[None]:
        # Tasks are taken in order, so the earlier ones are running: none waits for a task that has no thread yet.
        with self.changed:
            while self.passed[place] < number:
                if self.error is not None:
                    raise Failed
                self.changed.wait()
        yield
        with self.changed:
            self.passed[place] += 1
            self.changed.notify_all()


def spread(count: int, task: Callable[[int], None]) -> None:
    """Run tasks that do not add to the same places."""
    Tasks().run(count, task)
