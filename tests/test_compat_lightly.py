"""`fusedloss.compat.lightly` beside the library itself: its options, its memory bank, a training script."""

from __future__ import annotations

import importlib
import itertools
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from .grid import running
from .libraries import assert_closer, assert_same
from .libraries import library as installed
from .processes import run

lightly = installed("lightly", "lightly")

from lightly import loss as theirs  # noqa: E402

from fusedloss.compat import fused_calls  # noqa: E402
from fusedloss.compat import library as compat_library  # noqa: E402
from fusedloss.compat import lightly as compat  # noqa: E402

ours = compat.loss
# DCLWLoss makes a tensor of a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")

D = 12


@pytest.fixture(autouse=True)
def counted_from_0() -> None:
    fused_calls(reset=True)


def distances(out0: Tensor, out1: Tensor) -> Tensor:
    """A weight function, with a gradient."""
    return (out0 - out1).square().sum(1)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "NTXentLoss": [
        {}, dict(temperature=0.1), dict(memory_bank_size=0), dict(memory_bank_size=(16, D)),
        dict(memory_bank_size=[5, D], temperature=0.2), dict(gather_distributed=True),
        dict(memory_bank_size=(16, D), gather_distributed=True),
    ],
    "DCLLoss": [
        {}, dict(temperature=0.5), dict(weight_fn=distances), dict(weight_fn=lambda *_: 2.0, gather_distributed=True),
    ],
    "DCLWLoss": [{}, dict(temperature=0.5, sigma=0.2), dict(gather_distributed=True)],
    "MACLLoss": [{}, dict(temperature=0.5, alpha=0.9, A_0=0.3)],
    "NegativeCosineSimilarity": [{}, dict(dim=-1)],
    "KoLeoLoss": [{}, dict(p=1.0), dict(eps=1e-4)],
}  # fmt: skip
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


def views(seed: int, dtype: torch.dtype = torch.float64, N: int = 7) -> tuple[Tensor, Tensor]:
    """Rows of any length, row i of both alike."""
    g = torch.Generator().manual_seed(seed)
    one, noise, length = (torch.randn(N, k, generator=g, dtype=torch.float64) for k in (D, D, 1))
    return (one * length.exp()).to(dtype), (one + 0.7 * noise).to(dtype)


def both(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> list[Any]:
    """The library's loss and ours, with the same bank."""
    made = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        made.append(getattr(module, name)(**options).to(dtype))
    return made


def case_id(part: Any) -> str:
    """A name that is the same in every process: that of a function, without its address."""
    if not isinstance(part, dict):
        return str(part)
    return "-".join(f"{name}={getattr(value, '__name__', value)}" for name, value in part.items())


def arguments(name: str, given: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return given[:1] if name == "KoLeoLoss" else given


def outcome(loss: Any, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The value of a loss, its gradients, and what its bank holds then."""
    leaves = [t.detach().clone().requires_grad_() for t in given]
    value = loss(*leaves)
    (1.5 * value).backward()
    gradients = {f"gradient {i}": leaf.grad for i, leaf in enumerate(leaves)}
    banks = {name: buffer.clone() for name, buffer in loss.named_buffers() if buffer.dim() == 2}
    return {"value": value.detach()} | gradients | banks


def fused() -> bool:
    calls = fused_calls(reset=True)
    return bool(calls) and all(call.fused for call in calls)


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_a_call_is_that_of_the_library(name, options):
    mine, its = both(name, **options)
    for seed in range(3):  # a bank is updated
        given = arguments(name, views(seed))
        assert_same(outcome(mine, given), outcome(its, given))
    assert fused()


def compare_rounded(
    name: str, options: dict[str, Any], dtype: torch.dtype, autocast: bool = False, seed: int = 0
) -> None:
    """In float32, or in bfloat16 with or without autocast, against the library with the same rows in float64."""
    kept = torch.float32 if autocast else dtype
    mine, its = both(name, kept, **options)
    exact = both(name, kept, **options)[1].double()  # with the same bank
    given = arguments(name, views(seed, kept))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, rounded = outcome(mine, given), outcome(its, given)
    assert_closer(found, rounded, outcome(exact, tuple(t.double() for t in given)), dtype, (name, options))


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_what_is_rounded_is_as_near_to_the_exact_value_as_in_the_library(name, options, dtype, autocast):
    compare_rounded(name, options, dtype, autocast)
    assert fused()


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_kernels(name, options):
    """The same on interpreted kernels."""
    with running("triton", "small"):
        compare_rounded(name, options, torch.float32)
    assert fused()


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_rows_of_zeros_and_of_next_to_no_length(name, options):
    given = views(0)
    for t in given:
        t[2] = 0
        if name not in ("NegativeCosineSimilarity", "KoLeoLoss"):
            t[4] *= 1e-10 / t[4].norm()
    mine, its = both(name, **options)
    found, wanted = outcome(mine, arguments(name, given)), outcome(its, arguments(name, given))
    assert_same(found, wanted)
    assert fused()


def test_a_bank_is_as_it_was_after_evaluation():
    mine, its = both("NTXentLoss", memory_bank_size=(16, D))
    before = mine.memory_bank.bank.clone()
    with torch.no_grad():
        torch.testing.assert_close(mine(*views(0)), its(*views(0)))
    assert torch.equal(mine.memory_bank.bank, before) and fused()


def test_a_temperature_that_is_learned():
    gradients = []
    for loss in both("NTXentLoss"):
        loss.temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss(*views(0)).backward()
        gradients.append(loss.temperature.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=0)


def test_one_sample():
    for name in OPTIONS:
        mine, its = both(name)
        given = arguments(name, views(0, N=1))
        torch.testing.assert_close(outcome(mine, given), outcome(its, given))


def test_cosines_of_more_dimensions():
    x, y = (torch.stack(views(seed)) for seed in (0, 1))
    for dim in (2, -1):
        mine, its = both("NegativeCosineSimilarity", dim=dim)
        assert_same(outcome(mine, (x, y)), outcome(its, (x, y)))
    assert fused()


REFUSED: list[tuple[str, dict[str, Any], tuple[Tensor, ...], str]] = [
    ("NTXentLoss", dict(temperature=-0.5), views(0), "temperature"),
    ("NTXentLoss", dict(temperature=-0.5, memory_bank_size=(16, D)), views(0), "temperature"),  # updated once
    ("NTXentLoss", {}, (views(0)[0], views(0, N=9)[1]), "out1 must have the shape"),
    ("NTXentLoss", {}, views(0, N=0), "without rows"),
    ("DCLLoss", dict(temperature=-0.5), views(0), "temperature"),
    ("MACLLoss", dict(alpha=1.0, A_0=1.0), (views(0)[0], -views(0)[0]), "temperature"),
    ("NegativeCosineSimilarity", dict(dim=0), views(0), "another dimension"),
    ("NegativeCosineSimilarity", dict(eps=1e-6), views(0), "eps"),
    ("NegativeCosineSimilarity", {}, (views(0)[0], views(0)[1][:1]), "two shapes"),
    ("NegativeCosineSimilarity", {}, views(0, N=0), "no rows"),
    ("KoLeoLoss", {}, views(0, N=1)[:1], "no other row"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "given", "why"), REFUSED)
def test_what_is_not_fused_is_the_librarys(name, options, given, why):
    mine, its = both(name, **options)
    try:
        wanted = outcome(its, given)
    except Exception as error:
        with pytest.raises(type(error)):
            outcome(mine, given)
    else:
        torch.testing.assert_close(outcome(mine, given), wanted, equal_nan=True, rtol=0, atol=0)
    (call,) = fused_calls()
    assert (call.loss, call.fused) == (name, False) and why in call.why


class Doubled(ours.DCLLoss):
    def _loss(self, *given: Tensor) -> Tensor:
        return 2 * super()._loss(*given)


def test_a_subclass_keeps_its_methods():
    torch.testing.assert_close(Doubled()(*views(0)), 2 * theirs.DCLLoss()(*views(0)))
    assert fused_calls() == [("Doubled", False, "_loss is overridden", 1)]


def test_the_constructors_are_the_librarys():
    with pytest.raises(ValueError, match="Illegal temperature"):
        ours.NTXentLoss(temperature=0)
    for name in OPTIONS:
        mine, its = both(name)
        assert isinstance(mine, type(its)) and type(mine).__name__ == name
        its.load_state_dict(mine.state_dict())
        assert getattr(importlib.import_module(f"fusedloss.compat.{type(its).__module__}"), name) is type(mine)


def test_all_else_is_the_librarys():
    assert ours.BarlowTwinsLoss is theirs.BarlowTwinsLoss
    assert compat.utils is importlib.import_module("lightly.utils")
    assert set(dir(theirs)) <= set(dir(ours))


SCRIPT = """
import torch
from torch import nn
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead

class SimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(16, 16, 12)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

torch.manual_seed(0)
model = SimCLR(nn.Sequential(nn.Flatten(), nn.Linear(48, 16))).double()
criterion = NTXentLoss(**options).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
history = []
for step in range(3):
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    x0, x1 = (x + 0.3 * torch.randn_like(x) for view in range(2))
    z0, z1 = model(x0), model(x1)
    loss = criterion(z0, z1)
    loss.backward()
    history += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize("options", [{}, dict(memory_bank_size=(20, 12), temperature=0.1)], ids=str)
def test_a_training_script_with_one_import_changed(options):
    histories = []
    for script in (SCRIPT, SCRIPT.replace("from lightly.loss import", "from fusedloss.compat.lightly.loss import")):
        names: dict[str, Any] = dict(options=options)
        exec(script, names)
        histories.append(names["history"])
    assert fused_calls() == [("NTXentLoss", True, "", 3)]
    torch.testing.assert_close(histories[1], histories[0], rtol=1e-10, atol=1e-10)


GATHERED = [
    ("NTXentLoss", dict(temperature=0.2)), ("NTXentLoss", dict(memory_bank_size=(16, D))),
    ("NTXentLoss", dict(memory_bank_size=(40, D))), ("DCLLoss", {}), ("DCLLoss", dict(weight_fn=distances)),
    ("DCLWLoss", {}),
]  # fmt: skip


def in_a_group() -> int:
    """Compare every loss that gathers, in this process of a group; returns how many were compared."""
    rank = torch.distributed.get_rank()
    fused_calls(reset=True)
    for (name, options), gather in itertools.product(GATHERED, (True, False)):
        mine, its = both(name, **options, gather_distributed=gather)
        for step in range(2):
            given = views(10 * step + rank)
            assert_same(outcome(mine, given), outcome(its, given), (name, options, gather))
        compare_rounded(name, options | dict(gather_distributed=gather), torch.float32, seed=rank)
    assert fused()
    return len(GATHERED)


@pytest.mark.parametrize("world", [2, 3])
def test_gathered_over_a_group(world):
    assert run(world, in_a_group) == [len(GATHERED)] * world


def test_the_extra_is_named_where_the_library_is_absent_or_old(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fusedloss.compat.lightly")]:
        monkeypatch.delitem(sys.modules, name)
    load = partial(importlib.import_module, "fusedloss.compat.lightly")
    with monkeypatch.context() as old:
        old.setattr(compat_library, "version", lambda package: "1.5.20")
        with pytest.raises(ImportError, match=r"lightly>=1.5.21, found 1.5.20: pip install 'fusedloss\[lightly\]'"):
            load()
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(ImportError, match=r"cannot be imported .*: pip install 'fusedloss\[lightly\]'"):
        load()
