"""What surrounds a call has no influence on it: the default device and dtype, other threads, a task's backend."""

import asyncio
import threading

import pytest
import torch

import fusedloss
from fusedloss import backends
from tests.compare import differentiate
from tests.grid import LOSSES, SAMPLE, example, in_front, running

DEFAULTS = {
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
}


class default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)


@pytest.mark.parametrize("default", DEFAULTS)
@in_front([*LOSSES, fusedloss.hardest_pairs])
def test_no_default_has_influence(backend, device, loss, default):
    arguments = {name: v.to(device) for name, v in example(loss, refs=True).items()}
    rows = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]

    def outcomes():
        value = loss(**arguments)
        if isinstance(value, torch.Tensor):
            return [value, *torch.autograd.grad(value, rows, torch.ones_like(value))]
        return [*value]

    want = outcomes()
    with DEFAULTS[default]():
        found = outcomes()
    for a, b in zip(found, want, strict=True):
        assert a.device == b.device and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("default", DEFAULTS)
def test_no_default_has_influence_on_a_memory_bank(default):
    bank, other = (fusedloss.MemoryBank(fusedloss.SupConLoss(), 12, 5, device="cpu") for _ in range(2))
    for seed in range(3):
        arguments = example(fusedloss.supcon_loss, 8 + seed)
        want = other(**arguments)
        with DEFAULTS[default]():
            assert torch.equal(bank(**arguments), want)


def test_two_threads_have_their_own_backends(monkeypatch):
    pytest.importorskip("triton")
    arguments, used, errors = example(fusedloss.supcon_loss), {}, []
    module, both = backends.module, threading.Barrier(2)

    def spy(name):
        used[threading.current_thread().name].append(name)
        return module(name)

    monkeypatch.setattr(backends, "module", spy)

    def work(name):
        used[name] = []
        try:
            with fusedloss.use_backend(name):
                both.wait()  # both are inside their blocks
                differentiate(fusedloss.supcon_loss, arguments, torch.float32, device, ())
                both.wait()
        except Exception as error:  # a thread's own error would only be printed
            errors.append(error)
            both.abort()

    with running("triton", "default") as device:
        threads = [threading.Thread(target=work, args=(name,), name=name) for name in ("triton", "blocked")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert {name: set(names) for name, names in used.items()} == {"triton": {"triton"}, "blocked": {"blocked"}}


def test_two_tasks_have_their_own_backends():
    async def work(name, other):
        with fusedloss.use_backend(name):
            await asyncio.sleep(0.01)
            return backends.resolve_backend(torch.ones(1, device="meta"))

    async def both():
        return await asyncio.gather(work("triton", "blocked"), work("blocked", "triton"))

    pytest.importorskip("triton")
    assert asyncio.run(both()) == ["triton", "blocked"]


def test_a_thread_begins_with_the_backend_of_all():
    found = []
    with fusedloss.use_backend("triton"):
        thread = threading.Thread(target=lambda: found.append(backends.resolve_backend(torch.ones(1))))
        thread.start()
        thread.join()
    assert found == ["blocked"]


@pytest.mark.parametrize("loss", SAMPLE)
def test_gradients_can_be_computed_in_another_thread(loss):
    arguments = example(loss)
    rows = [v.requires_grad_() for v in arguments.values() if v.is_floating_point()]
    value, found = loss(**arguments), []
    thread = threading.Thread(target=lambda: found.append(torch.autograd.grad(value, rows, retain_graph=True)))
    thread.start()
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found[0], torch.autograd.grad(value, rows), strict=True))
