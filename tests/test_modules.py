"""Every function has an nn.Module twin with the same options and values, whose margin can be trained."""

import inspect

import pytest
import torch
from torch import nn

import fusedloss
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.modules import ClassLossModule
from tests.grid import LEARNABLE, LOSSES, WITH_CLASSES, example

MODULES = {cls.function: cls for cls in vars(fusedloss).values() if inspect.isclass(cls) and hasattr(cls, "function")}


def test_every_loss_has_a_module_of_its_name_and_options():
    assert MODULES.keys() == set(LOSSES)
    for loss, module in MODULES.items():
        assert module.__name__.lower() == loss.__name__.replace("_", "")
        assert module.__name__ in fusedloss.__all__
        around = (["num_classes", "dim"], ["device", "dtype"]) if loss in WITH_CLASSES else ([], [])
        assert list(inspect.signature(module).parameters) == [*around[0], *loss.__kwdefaults__, *around[1]]
        assert issubclass(module, nn.Module)


def with_its_rows(loss, arguments, **options):
    """A module of a loss, its classes taken from the arguments, and the arguments that remain."""
    owned = CATALOG[loss.__name__].named(Role.CLASSES)
    if not owned:
        return MODULES[loss](**options), arguments
    [rows] = owned
    module = MODULES[loss](*arguments[rows].shape, **options)
    module.load_state_dict({rows: arguments[rows]}, strict=False)
    return module, {name: v for name, v in arguments.items() if name != rows}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_module_equals_its_function(loss):
    arguments = example(loss, refs=True)
    options = {} if "margin" not in loss.__kwdefaults__ else dict(margin=0.7)
    want = loss(**arguments, reduction="sum", **options)
    module, arguments = with_its_rows(loss, arguments, reduction="sum", **options)
    assert torch.equal(module(*arguments.values()), want)
    assert torch.equal(module(**arguments), want)
    assert "reduction='sum'" in repr(module)


@pytest.mark.parametrize(("loss", "name"), LEARNABLE)
def test_a_parameter_given_as_a_number_is_trained_and_saved(backend, device, loss, name):
    arguments = {k: v.to(device) for k, v in example(loss, 23).items()}
    start = 0.1 if "cosine" in loss.__name__ else 0.9
    module, arguments = with_its_rows(loss, arguments, **{name: nn.Parameter(torch.tensor(start))})
    module.to(device)
    before = module(**arguments)
    before.backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module(**arguments) < before
    assert module.state_dict().keys() == {name, *CATALOG[loss.__name__].named(Role.CLASSES)}
    assert module.state_dict()[name] != torch.tensor(start)


def test_an_unknown_module_option_is_an_error_that_lists_the_options():
    with pytest.raises(TypeError, match="ContrastiveLoss has no option 'p'; it has margin, metric, similar, reduction"):
        fusedloss.ContrastiveLoss(p=2)


@pytest.mark.parametrize("module", MODULES.values())
def test_a_module_can_be_a_base_class(module):
    class Derived(module):
        def forward(self, *tensors, **named):
            return 2 * super().forward(*tensors, **named)

    arguments = example(module.function)
    of_base, arguments = with_its_rows(module.function, arguments)
    derived = Derived(*[7, 5][: 2 * isinstance(of_base, ClassLossModule)])
    derived.load_state_dict(of_base.state_dict())
    assert torch.equal(derived(**arguments), 2 * of_base(**arguments))
