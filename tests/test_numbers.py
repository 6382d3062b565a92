"""Numbers that may be tensors: they are as exact as floats in every dtype, have the same bounds, and do not change the
dtype of the loss."""

import inspect

import pytest
import torch

import fusedloss
from tests.compare import is_rows
from tests.grid import FULL, LOSSES, REDUCED, SAMPLE, example

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBERS = [
    (loss, p.name)
    for loss in LOSSES
    for p in inspect.signature(loss).parameters.values()
    if p.annotation.startswith("float | Tensor")
]
FRONT = [("blocked", *of) for of in NUMBERS] + [("triton", *of) for of in NUMBERS if FULL or of[0] in SAMPLE]


def differentiated(loss, arguments, name, number):
    """The loss, its gradient by the first rows, and by the number if it is a tensor."""
    arguments = {**arguments, name: number}
    wanted = [next(v for v in arguments.values() if is_rows(v)).requires_grad_()]
    wanted += [number.requires_grad_()] if isinstance(number, torch.Tensor) else []
    value = loss(**arguments)
    return value, *torch.autograd.grad(value, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize(("backend", "loss", "name"), FRONT)
def test_a_number_of_any_dtype_is_as_exact_as_a_float(backend, device, loss, name, shape, dtype):
    wide = torch.float64 if backend == "blocked" else torch.float32
    tolerance = dict(rtol=1e-12, atol=1e-15) if wide == torch.float64 else dict(rtol=2e-6, atol=1e-7)
    arguments = {k: v.to(device, wide if is_rows(v) else v.dtype) for k, v in example(loss).items()}
    number = torch.full(shape, 0.3, dtype=dtype, device=device)
    found, by_rows, by_number = differentiated(loss, arguments, name, number)
    want, want_by_rows = differentiated(loss, arguments, name, number.item())
    assert found.dtype == wide and by_number.dtype == dtype and by_number.shape == shape
    torch.testing.assert_close((found, by_rows), (want, want_by_rows), **tolerance)
    *_, exact = differentiated(loss, arguments, name, number.detach().double())
    torch.testing.assert_close(by_number, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("backend", "loss", "name"), FRONT)
def test_a_number_does_not_change_the_dtype_of_a_loss(backend, device, loss, name, dtype):
    arguments = {k: v.to(device) for k, v in example(loss).items()}
    arguments |= {name: torch.tensor(0.3, dtype=dtype, device=device)}
    for options in ({}, dict(reduction="none")) if loss in REDUCED else ({},):
        assert loss(**arguments, **options).dtype == torch.float32


def test_a_temperature_is_not_rounded_as_its_inverse(backend, device):
    x, y = (torch.eye(8, device=device), torch.eye(8, device=device).roll(1, 0))
    temperature = torch.tensor(0.03, dtype=torch.bfloat16, device=device)
    loss = fusedloss.info_nce_loss(x, y, temperature=temperature)
    assert loss.item() == pytest.approx(1 / temperature.item(), rel=1e-6)  # bfloat16 has 33.25 for 33.3008


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize(("loss", "name"), NUMBERS)
def test_on_a_cpu_the_value_of_a_tensor_is_held_to_what_a_floats_is(loss, name, shape, dtype):
    wrong = [torch.nan, torch.inf] + ([] if name.startswith("logit_") else [-2.0])
    for value in wrong + ([0.0] if name in ("temperature", "alpha", "scale") else []):
        messages = []
        for number in (value, torch.full(shape, value, dtype=dtype).requires_grad_()):
            with pytest.raises(ValueError, match=f"^{name} must be finite and .*, got {value}") as caught:
                loss(**(example(loss) | {name: number}))
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize(("loss", "name"), NUMBERS)
def test_compiled_code_does_not_read_a_number(loss, name):
    torch._dynamo.reset()
    arguments = example(loss) | {name: torch.tensor(0.3, dtype=torch.bfloat16)}
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(**arguments)
    torch.testing.assert_close(found, loss(**arguments), rtol=1e-6, atol=1e-7)
