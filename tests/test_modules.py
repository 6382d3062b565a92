"""Every function has an nn.Module twin with the same options and values, whose margin can be trained."""

import inspect

import pytest
import torch
from torch import nn

import fusedloss
from tests.grid import LEARNABLE, LOSSES, example

MODULES = {cls.function: cls for cls in vars(fusedloss).values() if inspect.isclass(cls) and hasattr(cls, "function")}


def test_every_loss_has_a_module_of_its_name_and_options():
    assert MODULES.keys() == set(LOSSES)
    for loss, module in MODULES.items():
        assert module.__name__.lower() == loss.__name__.replace("_", "")
        assert module.__name__ in fusedloss.__all__
        assert list(inspect.signature(module).parameters) == list(loss.__kwdefaults__)
        assert issubclass(module, nn.Module)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_module_equals_its_function(loss):
    arguments = example(loss, refs=True)
    options = {} if "margin" not in loss.__kwdefaults__ else dict(margin=0.7)
    module = MODULES[loss](reduction="sum", **options)
    want = loss(**arguments, reduction="sum", **options)
    assert torch.equal(module(*arguments.values()), want)
    assert torch.equal(module(**arguments), want)
    assert "reduction='sum'" in repr(module)


@pytest.mark.parametrize(("loss", "name"), LEARNABLE)
def test_a_parameter_given_as_a_number_is_trained_and_saved(backend, device, loss, name):
    arguments = {k: v.to(device) for k, v in example(loss, 23).items()}
    start = 0.1 if "cosine" in loss.__name__ else 0.9
    module = MODULES[loss](**{name: nn.Parameter(torch.tensor(start))}).to(device)
    before = module(**arguments)
    before.backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module(**arguments) < before
    assert module.state_dict().keys() == {name}
    assert module.state_dict()[name] != torch.tensor(start)


def test_an_unknown_module_option_is_an_error_that_lists_the_options():
    with pytest.raises(TypeError, match="ContrastiveLoss has no option 'p'; it has margin, metric, similar, reduction"):
        fusedloss.ContrastiveLoss(p=2)
