"""Every function has an nn.Module twin with the same options and values, which behaves as torch's modules do."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import fusedloss
from fusedloss.loss_module import ClassLossModule
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.options import OTHER_NAMES
from tests.grid import LEARNABLE, LOSSES, REDUCED, SAMPLE, WITH_CLASSES, example

MODULES = {cls.function: cls for cls in vars(fusedloss).values() if inspect.isclass(cls) and hasattr(cls, "function")}
OF_LOGITS = [fusedloss.ClipLoss, fusedloss.SigLipLoss]


def test_every_loss_has_a_module_of_its_name_and_options():
    assert MODULES.keys() == set(LOSSES)
    for loss, module in MODULES.items():
        assert module.__name__.lower() == loss.__name__.replace("_", "")
        assert module.__name__ in fusedloss.__all__
        around = (["num_classes", "dim"], ["device", "dtype"]) if loss in WITH_CLASSES else ([], [])
        numbers = [*CATALOG[loss.__name__].named(Role.SCALE), *CATALOG[loss.__name__].named(Role.BIAS)]
        options = [name for name in loss.__kwdefaults__ if name not in CATALOG[loss.__name__].tensors]
        wanted = [*around[0], *numbers, *options, *around[1]]
        assert list(inspect.signature(module).parameters) == wanted
        assert issubclass(module, nn.Module)


def sizes(module):
    """The arguments that the constructor needs, for `example`."""
    return (7, 5) if issubclass(module, ClassLossModule) else ()


def with_its_rows(loss, arguments, **options):
    """A module of a loss, its classes taken from the arguments, and the arguments that remain."""
    owned = CATALOG[loss.__name__].named(Role.CLASSES)
    if not owned:
        return MODULES[loss](**options), arguments
    [rows] = owned
    module = MODULES[loss](*arguments[rows].shape, **options)
    module.load_state_dict({rows: arguments[rows]}, strict=False)
    return module, {name: v for name, v in arguments.items() if name != rows}


def tensors_of(module):
    """Tensors for a call of a module."""
    owned = CATALOG[module.function.__name__].named(Role.CLASSES)
    return {name: v for name, v in example(module.function).items() if name not in owned}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_module_equals_its_function(loss):
    arguments = example(loss, refs=True)
    options = dict(margin=0.7, scale=3.0, reduction="sum")
    options = {name: value for name, value in options.items() if name in loss.__kwdefaults__}
    want = loss(**arguments, **options)
    module, arguments = with_its_rows(loss, arguments, **options)
    named = {name: arguments[name] for name in arguments if name in loss.__kwdefaults__}
    assert torch.equal(module(*[v for name, v in arguments.items() if name not in named], **named), want)
    assert torch.equal(module(**arguments), want)
    assert all(f"{name}={value!r}" in repr(module) for name, value in options.items())


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize(("loss", "name"), [of for of in LEARNABLE if of != (fusedloss.clip_loss, "logit_bias")])
def test_a_parameter_given_as_a_number_is_trained_and_saved(backend, device, loss, name, shape):
    arguments = {k: v.to(device) for k, v in example(loss, 23).items()}
    start = 0.1 if "cosine" in loss.__name__ else 0.9
    module, arguments = with_its_rows(loss, arguments, **{name: nn.Parameter(torch.full(shape, start))})
    module.to(device)
    before = module(**arguments)
    before.backward()
    slope = getattr(module, name).grad
    assert slope.shape == shape
    torch.optim.SGD(module.parameters(), lr=min(0.1, 0.1 / slope.abs().item())).step()  # the number stays in its bounds
    assert module(**arguments) < before
    assert module.state_dict().keys() == {name, *CATALOG[loss.__name__].named(Role.CLASSES)}
    assert module.state_dict()[name] != torch.tensor(start)


# ------------------------------------------------------------------------------------------------ what torch does to it


@pytest.mark.parametrize("module", [MODULES[loss] for loss in REDUCED])
def test_a_module_can_be_a_base_class(module):
    class Derived(module):
        weight_of_it = 2

        def __init__(self, *given):
            super().__init__(*given, reduction="sum")
            self.calls = 0

        def forward(self, *tensors, **named):
            self.calls += 1
            return self.weight_of_it * super().forward(*tensors, **named)

    class Again(Derived):
        weight_of_it = 3
        reduction = "mean"  # its constructor still says "sum"

    class Mean(module):
        reduction = "none"

    assert list(inspect.signature(Again).parameters) == ["given"]
    of_base = module(*sizes(module), reduction="sum")
    arguments = tensors_of(module)
    want = of_base(**arguments)
    for cls, factor in ((Derived, 2), (Again, 3)):
        derived = cls(*sizes(module))
        derived.load_state_dict(of_base.state_dict())
        assert torch.equal(derived(**arguments), factor * want) and derived.calls == 1
    assert Mean(*sizes(module)).reduction == "none"
    assert Mean(*sizes(module), reduction="sum").reduction == "sum"
    assert repr(of_base).startswith(module.__name__)


@pytest.mark.parametrize("module", MODULES.values())
def test_a_module_is_copied_pickled_and_saved(module, tmp_path):
    first, arguments = module(*sizes(module)), tensors_of(module)
    want = first(**arguments)
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert torch.equal(other(**arguments), want)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    other = module(*sizes(module))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(**arguments), want)


@pytest.mark.parametrize("module", [MODULES[loss] for loss in WITH_CLASSES])
@pytest.mark.parametrize("parametrize", [weight_norm, orthogonal])
def test_the_rows_of_classes_can_be_parametrized(module, parametrize):
    made, arguments = module(*sizes(module)), tensors_of(module)
    parametrize(made, module.rows)
    made(**arguments).backward()
    assert all(p.grad is not None for p in made.parameters())
    assert made.num_classes == 7 and repr(made).startswith(f"Parametrized{module.__name__}(\n  7, 5, ")


@pytest.mark.parametrize("loss", SAMPLE)
def test_a_module_can_be_compiled(loss):
    made = MODULES[loss](*sizes(MODULES[loss]))
    arguments = tensors_of(MODULES[loss])
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**arguments), made(**arguments))


@pytest.fixture(scope="module")
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("module", MODULES.values())
def test_a_module_can_be_fully_sharded(module, one_process):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    loss, arguments = module.function, tensors_of(module)
    learnable = {name: nn.Parameter(torch.full((1,), 0.4)) for of, name in LEARNABLE if of is loss}
    made = module(*sizes(module), **learnable)
    want = copy.deepcopy(made)(**arguments)
    fsdp.fully_shard(made, mesh=mesh)
    value = made(**arguments)
    assert torch.equal(value, want)
    if learnable or sizes(module):
        value.backward()
        assert all(p.grad is not None for p in made.parameters())
    assert isinstance(repr(made), str)


@pytest.mark.parametrize("module", MODULES.values())
def test_a_module_can_be_made_on_the_device_meta(module):
    learnable = {name: nn.Parameter(torch.ones(1, device="meta")) for of, name in LEARNABLE if of is module.function}
    with torch.device("meta"):
        made = module(*sizes(module), **learnable).half()
    for name in learnable:
        assert f"{name}=Parameter(shape=(1,))" in repr(made)
    assert all(p.is_meta and p.dtype == torch.half for p in made.parameters())


def test_rows_and_bias_made_without_values_begin_as_others_do():
    made = fusedloss.LinearCrossEntropyLoss(7, 5, bias=True, device="meta").to_empty(device="cpu")
    made.bias.data.fill_(torch.nan)
    made.reset_parameters()
    assert not made.bias.count_nonzero() and made.weight.isfinite().all()


def test_an_option_is_shown_as_it_is():
    margin = nn.Parameter(torch.tensor(0.25))
    assert "margin=Parameter(0.25)" in repr(fusedloss.ContrastiveLoss(margin=margin))
    assert "margin=Tensor(0.25)" in repr(fusedloss.ContrastiveLoss(margin=torch.tensor(0.25)))
    assert "margin=Parameter(0.25)" in repr(fusedloss.ContrastiveLoss(margin=margin).to(torch.bfloat16))
    assert "weight=Tensor(shape=(3,))" in repr(fusedloss.CrossEntropyLoss(weight=torch.ones(3)))
    assert "bias=Parameter(shape=(7,))" in repr(fusedloss.LinearCrossEntropyLoss(7, 5, bias=True))


# -------------------------------------------------------------------------------------- scale and bias of all logits


@pytest.mark.parametrize("module", OF_LOGITS)
def test_a_scale_and_a_bias_may_be_the_module_s_own(module):
    x, y = example(module.function)["image"], example(module.function)["text"]
    want = module.function(x, y, logit_scale=3.0, logit_bias=-2.0)
    fixed = module(logit_scale=3.0, logit_bias=np.float32(-2))
    assert torch.equal(fixed(x, y), want) and not [*fixed.parameters()]
    assert torch.equal(fixed(x, y, 4.0), module.function(x, y, logit_scale=4.0, logit_bias=-2.0))
    assert torch.equal(fixed(x, y, logit_scale=4.0), fixed(x, y, 4.0))
    own = module(logit_scale=nn.Parameter(torch.tensor(3.0)), logit_bias=nn.Parameter(torch.tensor(-2.0)))
    assert torch.equal(own(x, y).detach(), want)
    own(x, y).backward()
    assert own.logit_scale.grad != 0 and own.logit_bias.grad is not None
    assert own.state_dict().keys() == {"logit_scale", "logit_bias"}
    with pytest.raises(TypeError, match=rf"{module.__name__}.forward: logit_scale must be given, here or as "):
        module(logit_bias=1.0)(x, y)


# ------------------------------------------------------------------------------------------------------------- errors


ERRORS = [
    (lambda: fusedloss.NTXentLoss(temperature=-1), "NTXentLoss: temperature must be finite and above 0.0, got -1"),
    (lambda: fusedloss.NTXentLoss(reduction="avg"),
     "NTXentLoss: reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    (lambda: fusedloss.NTXentLoss(0.07), "NTXentLoss: takes nothing by place, got 1 arguments. "
     "Options have names: NTXentLoss(temperature=0.07)"),
    (lambda: fusedloss.NTXentLoss(temprature=0.1),
     "NTXentLoss: no argument 'temprature', did you mean temperature? It takes temperature, reduction"),
    (lambda: fusedloss.NTXentLoss(zzz=0.1), "NTXentLoss: no argument 'zzz'. It takes temperature, reduction"),
    (lambda: fusedloss.ArcFaceLoss(), "ArcFaceLoss: num_classes and dim must be given, got nothing"),
    (lambda: fusedloss.ArcFaceLoss(embedding_size=6), "ArcFaceLoss: no argument 'embedding_size', which is dim here. "
     "It takes num_classes, dim, margin, scale, ignore_index, class_weight, label_smoothing, sub_centers, reduction, "
     "device, dtype"),
    (lambda: fusedloss.ArcFaceLoss(3, 2, 0.5), "ArcFaceLoss: takes num_classes, dim by place, got 3 arguments. "
     "Options have names: ArcFaceLoss(num_classes, dim, margin=0.5)"),
    (lambda: fusedloss.ArcFaceLoss(0, 2), "ArcFaceLoss: num_classes must be at least 1, got 0"),
    (lambda: fusedloss.ArcFaceLoss(3, 2.0), "ArcFaceLoss: dim must be an int, got float"),
    (lambda: fusedloss.CrossEntropyLoss(weight=[1.0]), "CrossEntropyLoss: weight must be a tensor, got list"),
    (lambda: fusedloss.LinearCrossEntropyLoss(3, 2, bias="yes"),
     "LinearCrossEntropyLoss: bias must be a tensor, got str"),
    (lambda: fusedloss.SigLipLoss(logit_scale="1"), "SigLipLoss: logit_scale must be a number, got str"),
    (lambda: fusedloss.NTXentLoss()(torch.ones(2, 2)), "NTXentLoss.forward: z2 must be given, got z1"),
    (lambda: fusedloss.NTXentLoss()(*torch.ones(3, 2, 2)),
     "NTXentLoss.forward: takes z1, z2 by place, got 3 arguments."),
    (lambda: fusedloss.NTXentLoss()(*torch.ones(2, 2, 2), 0.1), "NTXentLoss.forward: takes z1, z2 by place, got 3 "
     "arguments. Options have names: NTXentLoss.forward(z1, z2, temperature=0.1)"),
    (lambda: fusedloss.NTXentLoss()(*torch.ones(2, 2, 2), z1=1),
     "NTXentLoss.forward: z1 must be given once, got it by place and by name"),
    (lambda: fusedloss.ProxyNCALoss(3, 2)(torch.ones(2, 2), torch.arange(2), proxies=1),
     "ProxyNCALoss.forward: no argument 'proxies'. It takes embeddings, target, scale, ignore_index, reduction"),
    (lambda: fusedloss.nt_xent_loss(*torch.ones(2, 2, 2), tau=1),
     "nt_xent_loss: no argument 'tau', which is temperature here. It takes z1, z2, temperature, reduction"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "said"), ERRORS, ids=[said[:60] for _, said in ERRORS])
def test_an_error_names_the_class_and_says_what_to_do(call, said):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == said


@pytest.mark.parametrize("module", MODULES.values())
def test_every_option_is_checked_when_a_module_is_built(module):
    for name in module.options:
        with pytest.raises((TypeError, ValueError), match=f"^{module.__name__}: {name} must be .*got"):
            module(*sizes(module), **{name: object()})


def test_every_other_name_is_of_an_argument():
    known = {name for loss in MODULES.values() for name in (*loss.built.names, *loss.called.names)}
    assert {own for names in OTHER_NAMES.values() for own in names} <= known
