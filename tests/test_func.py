"""The eager front: every loss is made of explicit autograd Functions, through which torch.func works."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import fusedloss
from fusedloss.ops.direct import Direct
from fusedloss.ops.registration import OPERATIONS
from tests.grid import GIVEN_LOGITS, LOSSES, REDUCED, example, in_front

FUNCTIONS = {Direct.__name__} | {operation.function.__name__ for operation in OPERATIONS.values()}


def of_rows(loss, device, **options):
    """A loss as a function of its floating arguments, and these."""
    arguments = {name: v.to(device) for name, v in example(loss).items()}
    floating = {name: v for name, v in arguments.items() if v.is_floating_point()}
    others = {name: v for name, v in arguments.items() if name not in floating} | options
    return lambda *rows: loss(**dict(zip(floating, rows, strict=True)), **others), [*floating.values()]


def gradients(function, rows):
    """The gradient by autograd."""
    leaves = [v.clone().requires_grad_() for v in rows]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


def equal(found, want):
    return all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@in_front(LOSSES)
def test_the_graph_of_a_loss_holds_its_functions_and_no_custom_op(backend, device, loss):
    function, rows = of_rows(loss, device)
    value = function(*[v.requires_grad_() for v in rows])  # which holds the graph
    names, found = set(), [value.grad_fn]
    while found:
        node = found.pop()
        names.add(type(node).__name__.removesuffix("Backward"))
        found += [below for below, _ in node.next_functions if below is not None]
    assert names & FUNCTIONS
    assert not any("GeneratedBackward" in name for name in names)


@in_front(LOSSES)
def test_grad_and_vjp_equal_autograd(backend, device, loss):
    function, rows = of_rows(loss, device)
    """But for rounding: an eager call may close a loss in a kernel, or have its gradient from the forward."""
    want, every = gradients(function, rows), tuple(range(len(rows)))
    for found in (grad(function, every)(*rows), vjp(function, *rows)[1](torch.ones_like(function(*rows)))):
        torch.testing.assert_close(found, want, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(vjp(function, *rows)[0], function(*rows), rtol=1e-6, atol=1e-7)


@in_front(LOSSES)
def test_vmap_of_a_gradient_is_that_of_each(backend, device, loss):
    function, rows = of_rows(loss, device)
    batches = [[v, v.flip(0) if v.dim() else v / 2, v * 0.75] for v in rows]
    every = tuple(range(len(rows)))
    found = vmap(grad(function, every))(*map(torch.stack, batches))
    for i, each in enumerate(zip(*batches, strict=True)):
        for a, b in zip(found, gradients(function, each), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)


def test_vmap_over_labels_too_and_along_any_dimension(device, backend):
    x, labels = torch.randn(9, 3, 5, device=device), torch.randint(3, (4, 9), device=device)
    rows = x[:, :1].expand(9, 4, 5)
    found = vmap(fusedloss.supcon_loss, in_dims=(1, 0))(rows, labels)
    assert equal(found, [fusedloss.supcon_loss(rows[:, i], labels[i]) for i in range(4)])
    twice = torch.stack([x, 2 * x])  # [2, 9, 3, 5]
    within = vmap(vmap(lambda x: fusedloss.supcon_loss(x, labels[0]), in_dims=1))(twice)
    assert equal(within[0], [fusedloss.supcon_loss(x[:, i], labels[0]) for i in range(3)])


@pytest.mark.parametrize("loss", REDUCED)
def test_jacobians_equal_gradients_row_by_row(loss):
    function, rows = of_rows(loss, "cpu", reduction="none")
    found = jacrev(function)(*rows)
    leaf = rows[0].clone().requires_grad_()
    values = function(leaf, *rows[1:]).flatten()
    want = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values])
    torch.testing.assert_close(found.flatten(0, -3), want, rtol=1e-5, atol=1e-6)


FORWARD = {
    "jvp": lambda function, rows: jvp(function, tuple(rows), tuple(map(torch.ones_like, rows))),
    "jacfwd": lambda function, rows: jacfwd(function)(*rows),
    "dual": lambda function, rows: dual(function, rows),
}


def dual(function, rows):
    with forward_ad.dual_level():
        return function(*(forward_ad.make_dual(v, torch.ones_like(v)) for v in rows))


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("loss", LOSSES)
def test_forward_mode_is_an_error(loss, mode):
    with pytest.raises(RuntimeError, match=r"have a backward only: forward-mode derivatives .* use torch\.func\.vjp"):
        FORWARD[mode](*of_rows(loss, "cpu"))


@in_front(LOSSES)
def test_a_double_backward_is_an_error(backend, device, loss):
    function, rows = of_rows(loss, device)
    leaves = [v.requires_grad_() for v in rows]
    (found,) = torch.autograd.grad(function(*leaves), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once: double backward is not implemented"):
        found.sum().backward()


@pytest.mark.parametrize("loss", GIVEN_LOGITS)
def test_a_vmapped_backward_overwrites_no_logits(loss):
    function, (z, *others) = of_rows(loss, "cpu", reduction="none", overwrite_logits=True)
    leaf = z.clone().requires_grad_()
    value = function(2 * leaf, *others)
    (found,) = torch.autograd.grad(value, leaf, torch.stack([torch.ones_like(value)] * 2), is_grads_batched=True)
    assert torch.equal(found[0], found[1])


def test_an_eager_step_imports_no_compiler():
    code = (
        "import sys, torch, fusedloss\n"
        "x = torch.randn(9, 5, requires_grad=True)\n"
        "fusedloss.supcon_loss(x, torch.arange(9) % 3).backward()\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'triton', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
