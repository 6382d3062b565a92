"""The gradient by the queries that comes with the forward: as exact as that of two passes, and where it is taken."""

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import fusedloss
from fusedloss import ops
from fusedloss.checks import SIMILARITIES, Batch
from fusedloss.losses import closings
from tests.compare import check
from tests.grid import batch, running

pytest.importorskip("triton")

from fusedloss.backends.triton.launch import Launch, recording

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N, M, D = 19, 27, 19  # ragged, with several tiles, far ones among them, and two chunks of dimensions


@contextmanager
def counted():
    """How often each kernel runs in a block."""
    found, run = Counter(), Launch.run

    def noted(launch):
        found[launch.kernel.fn.__name__] += 1
        run(launch)

    with mock.patch.object(Launch, "run", noted):
        yield found


def in_two_passes():
    return mock.patch("fusedloss.backends.triton.closings.attended", lambda *_: None)


def towers(seed=0):
    x, y = batch(N, D, seed=seed)[0], batch(M, D, seed=seed + 1)[0]
    y[3 : 3 + N] += 0.5 * x
    return x, y


def rows_of(t, dtype=torch.float32, device="cpu"):
    return t.detach().to(device, dtype, copy=True).requires_grad_()


def info_nce(query, key, key_bias=None, **options):
    return fusedloss.info_nce_loss(query, key, temperature=0.2, offset=3, key_bias=key_bias, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", SIMILARITIES)
def test_it_is_as_exact_as_eager(metric, dtype):
    """With both towers trained and the bias of the keys, whose gradients are those of the other pass."""
    x, y = towers()
    with running("triton", "sorted") as device, counted() as kernels:
        check(
            lambda **given: info_nce(metric=metric, **given),
            dict(query=x, key=y, key_bias=0.3 * y[:, 0]),
            dtype, device, roundings=3, constant=["key_bias"] if dtype == torch.float32 else [],
            oracle=lambda **given: fusedloss.reference.info_nce_loss(temperature=0.2, offset=3, metric=metric, **given),
        )  # fmt: skip
    first = "fold" if metric == "manhattan" else "attend"  # the sum of |x - y| is no matrix product
    assert kernels["grad"] == kernels[first] == 1 and kernels["fold"] + kernels["attend"] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_no_less_exact_than_two_passes(dtype):
    """For the learned temperature too, which the pass over the keys has, and for a gradient from outside."""
    x, y = towers()

    def gradients(dtype, device):
        given = rows_of(x.to(dtype), device=device, dtype=dtype), rows_of(y, dtype, device)
        temperature = torch.tensor(0.1, device=device, requires_grad=True)
        loss = fusedloss.info_nce_loss(*given, temperature=temperature, offset=3)
        return [t.double().cpu() for t in torch.autograd.grad(1024 * loss, [*given, temperature])]

    with running("triton", "sorted") as device:
        with counted() as kernels:
            one = gradients(dtype, device)
        with in_two_passes():
            two = gradients(dtype, device)
    assert kernels["attend"] == kernels["grad"] == 1
    with running("blocked", "default"):
        x, y = x.to(dtype), y.to(dtype)
        exact = gradients(torch.float64, "cpu")
    for found, before, want in zip(one, two, exact, strict=True):
        errors = [float((t - want).norm() / want.norm()) for t in (found, before)]
        assert errors[0] <= 1.25 * errors[1] + 1e-7, errors


LABELS = {
    "one class": lambda n: torch.zeros(n, dtype=torch.int64),  # several positives, and no negatives
    "all different": torch.arange,
    "none in common": lambda n: torch.arange(n) - 1000 * (n == N),
    "few classes": lambda n: torch.arange(n) * 5 // n,
    "unsorted": lambda n: torch.arange(n) * 7 % 5,
}


@pytest.mark.parametrize("kind", LABELS)
def test_rows_may_have_any_number_of_positives_and_negatives(kind):
    """Rows without negatives cost nothing and have no gradient, unlike rows without a positive."""
    x, y = towers()
    labels, y_labels = (LABELS[kind](n) for n in (N, M))
    known = kind != "unsorted"
    folds = dict(pos=ops.of("sum", scale=3.0), neg=ops.of("lse", scale=3.0))

    def found(device, dtype):
        own, other = rows_of(x, dtype, device), y.to(device, dtype)
        of = Batch(own, other, labels.to(device), y_labels.to(device), None, x_sorted=known, y_sorted=known)
        loss = closings.closed(of, "softmax", "euclidean", closings.gap, "mean", N, **folds)
        return [loss, *torch.autograd.grad(loss, own)]

    with running("triton", "sorted") as device, counted() as kernels:
        one = found(device, torch.float32)
    assert kernels["attend"] == 1 and not kernels["grad"], "only the queries are trained: no other pass"
    with running("blocked", "default"):
        exact = found("cpu", torch.float64)
    for a, want in zip(one, exact, strict=True):
        torch.testing.assert_close(a.double().cpu(), want, rtol=2e-6, atol=2e-7)
    assert kind != "one class" or not one[1].count_nonzero()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_shows(dtype):
    x, y = (t.float() for t in towers())
    with running("triton", "sorted") as device:
        for rows in (x, y):
            good = rows[4].clone()
            rows[4] = torch.nan
            query, key = rows_of(x, dtype, device), rows_of(y, dtype, device)
            loss = fusedloss.info_nce_loss(query, key, reduction="sum")
            (dx,) = torch.autograd.grad(loss, query)
            rows[4] = good
            assert loss.isnan()
            shown = dx.isnan().all(1)
            assert shown.all() if rows is y else shown.tolist() == [row == 4 for row in range(N)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_and_hopeless_or_perfect_rows_are_finite(dtype):
    """Logits go up to 20,000; there every slope is 0 or 1, and the gradient is that of the nearest negative alone."""
    x, y = torch.zeros(N, D), torch.zeros(N, D)
    x[:, 0] = y[:, 0] = 8.0 * torch.arange(N)
    with running("triton", "sorted") as device, counted() as kernels:
        query, key = rows_of(x, dtype, device), rows_of(y, dtype, device)
        loss = fusedloss.n_pair_loss(query, key)
        dx, dy = torch.autograd.grad(loss, (query, key))
    assert kernels["attend"] == 1 and dy.isfinite().all()
    with running("blocked", "default"):
        query = rows_of(x, torch.float64)
        (want,) = torch.autograd.grad(fusedloss.n_pair_loss(query, y.double()), query)
    torch.testing.assert_close(dx.double().cpu(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def launched(loss, rows=32_768, dimensions=128, *, keys=True, dtype=torch.bfloat16, **options):
    """The kernels of a step, recorded for an absent GPU."""
    query = torch.empty(rows, dimensions, dtype=dtype, device="meta", requires_grad=True)
    key = torch.empty_like(query).requires_grad_(keys)
    with recording("sm_90") as launches, fusedloss.use_backend("triton"):
        loss(query, key, **options).sum().backward()
    return [launch.kernel.fn.__name__ for launch in launches if launch.kernel.fn.__name__ in ("fold", "attend", "grad")]


def test_where_it_is_taken():
    learned = torch.ones((), device="meta", requires_grad=True)
    info_nce, n_pair = fusedloss.info_nce_loss, fusedloss.n_pair_loss
    for loss in (info_nce, n_pair):
        assert launched(loss, keys=False) == ["attend"]
        assert launched(loss) == ["attend", "grad"]
        assert launched(loss, reduction="sum", dimensions=256) == ["attend", "grad"]
        assert launched(loss, rows=1024) == ["fold", "grad"], "the rows alone do not fill the device"
        assert "attend" not in launched(loss, dimensions=512), "no program has a row's whole gradient"
    assert launched(info_nce, temperature=learned) == ["attend", "grad"]
    assert launched(info_nce, temperature=learned, keys=False) == ["fold", "grad"]
    assert launched(info_nce, reduction="none") == ["fold", "grad"]
    assert "attend" not in launched(info_nce, symmetric=True)
    assert "attend" not in launched(info_nce, dtype=torch.float32, metric="manhattan")
