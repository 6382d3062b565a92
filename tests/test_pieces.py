"""The pieces of losses are written once, as device code; the CPU's own forms are equal, and wrong uses are errors."""

import itertools

import pytest
import torch

import fusedloss
from fusedloss import backends, ops
from fusedloss.backends.blocked import losses
from fusedloss.backends.request import PIECES
from fusedloss.checks import Batch
from tests.grid import batch, running

DTYPES = (torch.float32, torch.float64)


def terms_of(form, name, s, numbers, positive):
    """For every term, its value, whether it is a constant, and its derivatives by the numbers and by the scores."""
    found = []
    values = [term.value().clone() for term in form(s.clone(), numbers, positive)]
    for value, term in zip(values, form(s.clone(), numbers, positive), strict=True):
        parts = [value]
        if term.by_s is not None:
            parts += [taken(by, s) for by in term.by_numbers()]
            parts.append(taken(term.by_s(), s))
        found.append(parts)
    return found


def taken(part, s):
    """A copy of a derivative; its tile is then overwritten, as the backward does."""
    kept = torch.as_tensor(part, dtype=None if isinstance(part, torch.Tensor) else s.dtype).expand(s.shape).clone()
    if isinstance(part, torch.Tensor) and part.shape == s.shape:
        part.fill_(torch.nan)
    return kept


def scores(dtype):
    """Scores, many of them on a kink of some loss, and some not finite."""
    edges = [-torch.inf, -3.0, -0.4, 0.0, 0.4, 0.6, 1.0, 1.4, 3.0, 1e4, torch.inf, torch.nan]
    return torch.cat([torch.tensor(edges), torch.linspace(-2, 2, 52)]).to(dtype).view(8, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "positive"), list(itertools.product(losses.FASTER, (True, False))))
def test_a_faster_form_is_equal_to_the_device_code(name, positive, dtype):
    numbers = [0.4, 3.0][: len(PIECES[name].numbers)]
    s = scores(dtype)
    own, device = (
        terms_of(form, name, s, numbers, positive) for form in (losses.FASTER[name], losses.written_once(name))
    )
    assert [len(parts) for parts in own] == [len(parts) for parts in device]
    for (value, *derivatives), (want, *wanted) in zip(own, device, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-6, atol=0, equal_nan=True)
        for a, b in zip(derivatives, wanted, strict=True):  # those of a NaN do not matter
            torch.testing.assert_close(a[~s.isnan()], b[~s.isnan()], rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("name", PIECES)
def test_a_piece_has_the_terms_numbers_and_derivatives_that_its_row_says(name, positive):
    piece = PIECES[name]
    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in [0.3, 2.0][: len(piece.numbers)]]
    s = torch.linspace(-1.9, 2.1, 64, dtype=torch.float64).view(8, 8).requires_grad_()
    assert len(list(losses.LOSSES[name](s, numbers, positive))) == piece.terms
    for value, *derivatives in terms_of(losses.written_once(name), name, s, numbers, positive):
        if not derivatives:
            continue
        *by_numbers, by_s = derivatives
        if name != "circle":  # whose weight is a constant to the derivative
            wanted = torch.autograd.grad(value.sum(), [s, *numbers], retain_graph=True, allow_unused=True)
            torch.testing.assert_close(by_s, wanted[0])
            for by, want in zip(by_numbers, wanted[1:], strict=True):
                torch.testing.assert_close(by.sum(), want)


def test_the_device_code_does_not_depend_on_the_default_dtype():
    s = scores(torch.float32)
    want = terms_of(losses.written_once("contrastive"), "contrastive", s, [0.4], True)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = terms_of(losses.written_once("contrastive"), "contrastive", s, [0.4], True)
    finally:
        torch.set_default_dtype(before)
    for a, b in zip(itertools.chain(*found), itertools.chain(*want), strict=True):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def rows(device):
    x, labels = (t.to(device) for t in batch(9, 5, classes=2))
    return Batch(x.float(), None, labels, labels, 0)


WRONG = [
    ("circle", ops.of("lse", "lse", margin=0.4, gamma=2.0), "circle has 1 terms, each to be folded as one of"),
    ("softmax", ops.of("sum", "sum", "sum", "sum", scale=1.0), "softmax has 3 terms"),
    ("softmax", ops.of("max", scale=1.0), "softmax has 3 terms"),
]


@pytest.mark.parametrize(("loss", "folded", "said"), WRONG)
def test_more_folds_than_terms_or_others_are_an_error_on_both_backends(backend, device, loss, folded, said):
    for kinds in (dict(pos=folded), dict(neg=folded)):
        with pytest.raises(ValueError, match=said):
            ops.fold(rows(device), loss, "euclidean", **kinds)


@pytest.mark.parametrize("numbers", [{}, {"margin": 1.0}, {"bias": 1.0}, {"scale": 1.0, "base": 0.5}], ids=str)
def test_numbers_are_given_by_their_names(backend, device, numbers):
    with pytest.raises(ValueError, match="softmax takes the numbers scale, bias, got"):
        ops.fold(rows(device), "softmax", "dot", pos=ops.of("sum", **numbers))


def test_a_choice_of_backend_is_of_its_thread():
    from concurrent.futures import ThreadPoolExecutor

    x = torch.ones(1)
    with ThreadPoolExecutor(1) as pool, running("triton", "default"):
        assert backends.resolve_backend(x) == "triton"
        assert pool.submit(backends.resolve_backend, x).result() == "blocked"
        fusedloss.set_backend("triton")
        try:
            assert pool.submit(backends.resolve_backend, x).result() == "triton"
        finally:
            fusedloss.set_backend("auto")
