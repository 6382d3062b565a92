"""Launches of compiled kernels, for a GPU that is not there: `python -m tests.kept_launches` prints what was launched.

Every launch is started twice by `kept.start` and once by Triton, and a driver that starts nothing writes down what it
is given. `tests/test_kept.py` runs this in a process of its own, since kernels are interpreted elsewhere.
"""

import hashlib
import json
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver, jit

from bench.host_time import Driver, Launcher, cells, measured
from fusedloss import backends
from fusedloss.backends.triton import kept
from fusedloss.backends.triton.launch import Launch
from fusedloss.tools.compiling import target
from fusedloss.tools.workloads import Workload, step

LOG = []  # what the driver was given


class Writer(Launcher):
    def __init__(self, src, metadata):
        self.compiled = metadata.hash  # of the types and alignments too, which code of some kernels does not depend on

    def __call__(self, *given):
        x, y, z, stream, function, metadata, seen, enter, leave, *args = given
        LOG.append((self.compiled, (x, y, z), stream, metadata, hashlib.sha256(function).hexdigest(), args))
        for hook in (enter, leave):  # as the real one calls them
            if hook is not None:
                hook(seen)


class Recorder(Driver):
    launcher_cls = Writer


@contextmanager
def counted():
    """How often Triton's own launch runs in a block."""
    runs, run = [], jit.JITFunction.run

    def counting(self, *args, **options):
        runs.append(self)
        return run(self, *args, **options)

    with patch.object(jit.JITFunction, "run", counting):
        yield runs


def compared(kernel, grid, args, options):
    """What a launch by `kept` has in common with one by Triton."""
    with counted() as runs:
        kept.start(kernel, grid, args, options)
    hit, mine = not runs, LOG.pop()
    kernel[grid](*args, **options)
    theirs = LOG.pop()
    given = [log[-1][: len(args)] for log in (mine, theirs)]
    constants = [log[-1][len(args) :] for log in (mine, theirs)]
    same_arguments = [*map(id, given[0])] == [*map(id, given[1])] == [*map(id, args)] and constants[0] == constants[1]
    return {"hit": hit, "same": mine[:-1] == theirs[:-1] and same_arguments, "binary": mine[0]}


class Rows(NamedTuple):
    rows: Any
    first: Any = ()
    second: Any = ()


class Given(NamedTuple):
    numbers: Any
    pointers: Any = ()


@triton.jit
def added(value, number):
    return value + number


@triton.jit
def scaled(value, number):
    return value * number


@triton.jit(do_not_specialize=["n"])
def kernel(x, given, out, n, m, PIECE: tl.constexpr, BM: tl.constexpr, TWICE: tl.constexpr = False):
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    value = tl.load(x.rows + r * m, mask=r < n).to(tl.float32)
    for k in tl.static_range(len(x.first)):
        value += tl.load(x.first[k] + r, mask=r < n)
    for k in tl.static_range(len(x.second)):
        value *= tl.load(x.second[k] + r, mask=r < n)
    for k in tl.static_range(len(given.numbers)):
        value = PIECE(value, given.numbers[k])
    for k in tl.static_range(len(given.pointers)):
        value = PIECE(value, tl.load(given.pointers[k]))
    if TWICE:
        value *= 2
    tl.store(out + r, value, mask=r < n)


def cases():
    """Launches by name, each of which differs from the first in one thing that can select another binary."""
    t, out = torch.zeros(64), torch.zeros(64)
    base = dict(x=Rows(t), given=Given((0.5,)), out=out, n=48, m=16)
    options = dict(PIECE=added, BM=64, num_warps=4)

    def case(args=None, **other):
        return tuple((base | (args or {})).values()), options | other

    return {
        "base": case(),
        "dtype": case(dict(x=Rows(t.bfloat16()))),
        "dtype of the output": case(dict(out=out.half())),
        "alignment": case(dict(x=Rows(t[1:]))),
        "alignment of the output": case(dict(out=out[1:])),
        "m not divisible": case(dict(m=17)),
        "m is 1": case(dict(m=1)),
        "m is int64": case(dict(m=1 << 32)),
        "numbers on the device": case(dict(given=Given((), (torch.zeros(()),)))),
        "a number that is an integer": case(dict(given=Given((2,)))),
        "two numbers": case(dict(given=Given((0.5, 0.25)))),
        "a tuple in the first place": case(dict(x=Rows(t, (t, t)))),
        "a tuple in the second place": case(dict(x=Rows(t, (), (t, t)))),
        "tuples in both": case(dict(x=Rows(t, (t,), (t,)))),
        "function": case(PIECE=scaled),
        "block": case(BM=32),
        "default": case(TWICE=True),
        "warps": case(num_warps=8),
        # The same binary:
        "n is 1": case(dict(n=1)),
        "n not divisible": case(dict(n=47)),
        "values": case(dict(x=Rows(t + 1), given=Given((0.125,)), m=32)),
        "order of the options": (case()[0], dict(reversed(options.items()))),
    }


def selected():
    """For every case: is it the second time a hit, and what Triton launches? After all cases were launched once."""
    every = [(name, arch, *case) for arch in ("sm_90", "sm_80") for name, case in cases().items()]
    found = {}
    for again in (False, True):
        for name, arch, args, options in every:
            driver.set_active(Recorder(target(arch)))
            found[f"{name}, {arch}"] = compared(kernel, (3, 2) if again else (1,), args, options)
    return found


def steps():
    """The launches of losses in a second step, when all batches were seen once."""
    works = [Workload(loss, N, 64, dtype) for loss, N, dtype in STEPS]
    launches, first = [], Launch.run
    with patch.object(backends, "TRITON_DEVICES", ("cpu",)):
        for work in works:
            step(work, "cpu")()

        def run(self):
            if 0 not in self.grid:
                found = compared(self.kernel, self.grid, self.args, self.options)
                launches.append({"kernel": self.kernel.fn.__name__, **found})

        with patch.object(Launch, "run", run):
            for work in works:
                step(work, "cpu")()
    assert Launch.run is first
    return launches


def table():
    """The cells of a row of `bench.host_time`."""
    with patch.object(backends, "TRITON_DEVICES", ("cpu",)):
        row = measured("pairwise_contrastive_loss", 64, rounds=1)
    return [min(row["step"].values()) > 0, *cells(row)]


STEPS = (
    ("pairwise_contrastive_loss", 64, "bf16"),
    ("pairwise_contrastive_loss", 61, "bf16"),
    ("pairwise_contrastive_loss", 1, "bf16"),
    ("cross_entropy_loss", 16, "bf16"),
    ("cross_entropy_loss", 17, "bf16"),
    ("batch_hard_triplet_loss", 33, "bf16"),
)


def hooks():
    """What happens to a kept launch when something looks at launches, or changes what is compiled."""
    args, options = cases()["base"]
    found = {"at rest": kept.watched(kernel)}
    found["each"] = []
    for where, name, value in (
        (knobs.runtime, "debug", True),
        (knobs.runtime, "add_stages_inspection_hook", lambda *_: ("", "")),
        (knobs.compilation, "instrumentation_mode", "x"),
        (kernel, "debug", True),
        (kernel, "pre_run_hooks", [print]),
    ):
        with patch.object(where, name, value):
            found["each"].append(kept.watched(kernel))
    for name in ("launch_enter_hook", "launch_exit_hook"):
        called = []
        for hook in (called.append, knobs.HookChain()):
            if isinstance(hook, knobs.HookChain):
                hook.add(called.append)
            with patch.object(knobs.runtime, name, hook):
                kept.start(kernel, (1,), args, options)
        found[name] = len(called)
    with patch.object(knobs.runtime, "jit_cache_hook", lambda **_: True):  # Triton compiles nothing, and returns None
        kept.start(kernel, (1,), args, options | dict(BM=128))
    found["compiled elsewhere"] = compared(kernel, (1,), args, options | dict(BM=128))["hit"]
    with counted() as runs, patch.object(kept, "specialize", None):
        kept.start(kernel, (1,), args, options)
    found["another Triton"] = len(runs)
    return found


def main() -> None:
    found = {"selected": selected()}
    driver.set_active(Recorder(target("sm_90")))
    print(json.dumps(found | {"hooks": hooks(), "steps": steps(), "table": table()}))


if __name__ == "__main__":
    main()
