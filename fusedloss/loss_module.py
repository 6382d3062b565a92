"""What the modules of all losses have in common: the constructor takes a function's options, `forward` its tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import checks
from .losses.catalog import CATALOG, Role
from .options import Arguments, Rule, integer, own_code, rules_of


class LossModule(nn.Module):
    """A loss function with its options, as a module.

    An option that is an `nn.Parameter` (a margin) is trained and saved with the module; any other tensor (the weights
    of classes) is saved and moved with it. A class attribute with the name of an option is its default in that class.
    A scale or bias of all logits, which the function takes as a tensor, may be an option of the module too.
    """

    function: ClassVar[Callable[..., Any]]
    options: ClassVar[dict[str, Any]]  # names and defaults
    own_numbers: ClassVar[list[str]]  # tensors of the function that are options of the module
    built: ClassVar[Arguments]  # what the constructor takes
    called: ClassVar[Arguments]  # what `forward` takes

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if function is None:  # a subclass of a loss's module keeps its signature, without a new constructor
            if "__init__" in vars(cls):
                _, *own = inspect.signature(cls.__init__).parameters.values()
                cls.__signature__ = Signature(own)  # type: ignore[attr-defined]
            return
        tensors = CATALOG[function.__name__].tensors
        parameters = inspect.signature(function).parameters.values()
        cls.function = staticmethod(function)
        forward = cls.forward
        cls.forward = FunctionType(  # type: ignore[method-assign]
            own_code(forward, "forward"), forward.__globals__, "forward", closure=forward.__closure__
        )
        cls.own_numbers = [name for name, role in tensors.items() if role in (Role.SCALE, Role.BIAS)]
        options = [
            p.replace(kind=p.KEYWORD_ONLY, default=None, annotation=f"{p.annotation} | None")
            for p in parameters
            if p.name in cls.own_numbers
        ]
        options += [p for p in parameters if p.name not in tensors]
        cls.options = {p.name: p.default for p in options}
        called = (p if p.name in tensors else p.replace(kind=p.KEYWORD_ONLY) for p in parameters)
        cls.called = Arguments(Signature([p for p in called if tensors.get(p.name) is not Role.CLASSES]))
        cls.__signature__ = Signature(cls.constructor(options))  # type: ignore[attr-defined]
        cls.built = Arguments(cls.__signature__)  # type: ignore[attr-defined]
        cls.__doc__ = f"`{function.__name__}` as a module.\n\n{inspect.getdoc(function)}"

    @classmethod
    def constructor(cls, options: list[Parameter]) -> list[Parameter]:
        """The parameters of a constructor that takes these options."""
        return options

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()
        arguments = self.built.bind(type(self).__name__, given, named)
        rules = rules_of(self.function)
        for name, default in self.options.items():
            value = arguments.get(name, getattr(type(self), name, default))
            if value is not default:
                value = self._checked(rules[name], name, value)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def _checked(self, rule: Rule, name: str, value: Any) -> Any:
        """The value as the rule returns it, or the tensor itself; an error also names the class."""
        try:
            found = rule(name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from None
        return value if isinstance(value, Tensor) else found

    def _arguments(self, tensors: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the function: the options, overridden by what the call gives."""
        owner = type(self).__name__
        given = self.called.bind(f"{owner}.forward", tensors, named, known=self.own_numbers)
        arguments = {name: getattr(self, name) for name in self.options} | given
        for name in self.own_numbers:
            if arguments[name] is None:
                raise TypeError(f"{owner}.forward: {name} must be given, here or as {owner}({name}=...), got None")
        return arguments

    def forward(self, *tensors: Any, **named: Any) -> Any:
        return self.function(**self._arguments(tensors, named))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={shown(getattr(self, name))}" for name in self.options)


def shown(value: object) -> str:
    """An option in a module's `repr`: for a tensor its kind and shape, or its only number if that can be read."""
    if not isinstance(value, Tensor):
        return repr(value)
    kind = "Parameter" if isinstance(value, nn.Parameter) else "Tensor"
    if value.numel() == 1 and checks.readable(value):
        return f"{kind}({value.item():.4g})"
    return f"{kind}(shape={tuple(value.shape)})"


class ClassLossModule(LossModule):
    """A loss of embeddings and one row per class, [num_classes, dim], which the module owns and trains.

    The parameter keeps its dtype: embeddings of another dtype are compared with a copy in that dtype.
    """

    rows: ClassVar[str]  # the parameter's name

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(function, **kwargs)
        if function is None:
            return
        [cls.rows] = CATALOG[function.__name__].named(Role.CLASSES)
        own_rows = f"`{cls.rows}` is its parameter, [num_classes, dim], whose rows begin with length about 1."
        if "sub_centers" in cls.options:
            own_rows += " With `sub_centers` it is [num_classes, sub_centers, dim]."
        if "bias" in cls.options:
            own_rows += " With `bias=True` it has a parameter `bias` too, [num_classes], which begins with 0."
        cls.__doc__ = (cls.__doc__ or "").replace(" as a module.", f" as a module. {own_rows}", 1)

    @classmethod
    def constructor(cls, options: list[Parameter]) -> list[Parameter]:
        num_classes, dim, *device_and_dtype = inspect.signature(rows_of_classes).parameters.values()
        own = (p.replace(annotation=f"bool | {p.annotation}") if p.name == "bias" else p for p in options)
        return [num_classes, dim, *own, *device_and_dtype]

    def __init__(self, *given: Any, **named: Any) -> None:
        bias = named.get("bias")
        if isinstance(bias, bool):
            named["bias"] = None
        super().__init__(*given, **named)
        arguments = self.built.bind(type(self).__name__, given, named)
        self.num_classes, self.dim = (
            self._checked(integer(low=1), name, arguments[name]) for name in ("num_classes", "dim")
        )
        made = {name: arguments.get(name) for name in ("device", "dtype")}
        rows, centers = rows_of_classes(self.num_classes, self.dim, **made), vars(self).get("sub_centers", 1)
        if centers > 1:
            rows = rows.new_empty(self.num_classes, centers, self.dim)
        setattr(self, self.rows, nn.Parameter(rows))
        self.begins_with_bias = bias is True
        if self.begins_with_bias:
            self.bias = nn.Parameter(torch.empty(self.num_classes, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(getattr(self, self.rows), std=self.dim**-0.5)
        if self.begins_with_bias:
            nn.init.zeros_(self.bias)

    def _arguments(self, tensors: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        arguments = super()._arguments(tensors, named)
        embeddings, rows = arguments["embeddings"], getattr(self, self.rows)
        if isinstance(embeddings, Tensor):  # under autocast the loss itself chooses the dtype
            autocast = checks.autocast(embeddings.device)
            rows = rows.to(torch.promote_types(rows.dtype, embeddings.dtype) if autocast else embeddings.dtype)
        return arguments | {self.rows: rows}

    def extra_repr(self) -> str:
        return f"{self.num_classes}, {self.dim}, {super().extra_repr()}"


def rows_of_classes(
    num_classes: int, dim: int, *, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Memory for one row per class. The constructor of a `ClassLossModule` takes this function's parameters too."""
    return torch.empty(num_classes, dim, device=device, dtype=dtype)
