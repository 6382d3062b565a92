"""The threads of the blocked backend: they change neither results nor settings, and errors come out of them."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fusedloss
from fusedloss.backends.blocked import parallel
from tests.grid import example, running

# A loss of every family, and what adds to rows and columns in its own way.
CASES = [
    ("pairwise_contrastive_loss", {}),
    ("pairwise_contrastive_loss", dict(metric="cosine", power=1, reduction="active")),
    ("supcon_loss", {}),
    ("circle_loss", {}),
    ("lifted_structure_loss", {}),
    ("pairwise_nt_xent_loss", {}),
    ("margin_loss", {}),
    ("decoupled_contrastive_loss", {}),
    ("info_nce_loss", {}),
    ("smooth_ap_loss", {}),
    ("clip_loss", {}),
    ("siglip_loss", {}),
    ("linear_cross_entropy_loss", dict(label_smoothing=0.1)),
    ("arcface_loss", {}),
    ("batch_hard_triplet_loss", dict(negatives="semihard")),
    ("batch_semihard_triplet_loss", {}),
    ("batch_all_triplet_loss", {}),
    ("batch_all_triplet_loss", dict(soft_margin=True)),
    ("triplet_margin_loss", dict(swap=True)),
    ("center_loss", {}),
    ("cross_entropy_loss", dict(label_smoothing=0.1)),
    ("binary_cross_entropy_loss", {}),
    ("sigmoid_focal_loss", {}),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small tiles, so that a batch of a few rows has several, in threads; the number of threads is restored."""
    before = torch.get_num_threads()
    monkeypatch.setattr(parallel, "INLINE", 0)
    with running("blocked", "small"):
        yield
    torch.set_num_threads(before)


def outputs(name, options, refs=False, seed=0):
    arguments = example(getattr(fusedloss, name), 61, 23, M=67, refs=refs)
    for i, (key, value) in enumerate(arguments.items()):
        if value.is_floating_point():
            arguments[key] = (value + 0.01 * (seed + i)).requires_grad_()
    value = getattr(fusedloss, name)(**arguments, **options)
    value.backward()
    return [value.detach(), *(v.grad for v in arguments.values() if v.grad is not None)]


def same(found, want):
    return len(found) == len(want) and all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("refs", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(name, options, refs):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(outputs(name, options, refs))
        assert torch.get_num_threads() == threads
    assert same(found[1], found[0]) and same(found[2], found[0])


@pytest.mark.parametrize("refs", [(), (torch.ones(9, 4), torch.arange(9) % 2)])
def test_numbers_that_are_learned_do_not_depend_on_the_number_of_threads(refs):
    x, labels = torch.randn(61, 4, generator=torch.Generator().manual_seed(0)), torch.arange(61) % 7
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        temperature = torch.tensor(0.3, requires_grad=True)
        fusedloss.supcon_loss(x, labels, *refs, temperature=temperature).backward()
        found.append([temperature.grad])
    assert same(*found)


def test_additions_are_in_the_order_of_the_tasks():
    torch.set_num_threads(3)
    order = []

    def body(_):
        tasks = parallel.Tasks()

        def task(i):
            with tasks.turn(0, i):
                order.append(i)

        tasks.run(50, task)

    parallel.single_threaded(lambda x: x)(body)(torch.ones(1))
    assert order == list(range(50))


def test_an_error_in_a_task_reaches_the_caller_and_ends_the_others():
    torch.set_num_threads(3)

    def body(_):
        tasks = parallel.Tasks()

        def task(i):
            if i == 2:
                raise ZeroDivisionError("task 2")
            with tasks.turn(0, i):
                pass

        tasks.run(20, task)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="task 2"):
            parallel.single_threaded(lambda x: x)(body)(torch.ones(1))
    assert outputs(*CASES[0])


def test_several_threads_may_call_at_once():
    torch.set_num_threads(2)
    want = [outputs(*CASES[0], seed=i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            found = list(pool.map(lambda i: outputs(*CASES[0], seed=i), range(6)))
            assert all(same(a, b) for a, b in zip(found, want, strict=True))


def in_worker(function):
    return parallel.single_threaded(lambda x: x)(lambda _: function())(torch.ones(1))


def test_operators_of_the_workers_are_single_threaded_and_record_no_graph():
    torch.set_num_threads(2)
    assert in_worker(torch.get_num_threads) == 1
    assert in_worker(threading.current_thread) is not threading.current_thread()
    assert not in_worker(torch.is_grad_enabled) and torch.is_grad_enabled()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert in_worker(threading.current_thread) is threading.current_thread()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_values_without_a_graph_are_the_same(name, options, mode):
    torch.set_num_threads(2)
    want = outputs(name, options)[0]
    with mode():
        arguments = example(getattr(fusedloss, name), 61, 23, M=67)
        given = {k: v + 0.01 * i if v.is_floating_point() else v for i, (k, v) in enumerate(arguments.items())}
        found = getattr(fusedloss, name)(**given, **options)
    assert torch.equal(found, want) and torch.is_grad_enabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    torch.set_num_threads(2)
    want = outputs(*CASES[0])
    assert parallel.workers(2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fresh = not parallel._started
            with torch.no_grad():
                x, labels = torch.ones(61, 4), torch.arange(61) % 7
                fusedloss.pairwise_contrastive_loss(x, labels)
            code = 0 if fresh and parallel._started else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same(outputs(*CASES[0]), want)
