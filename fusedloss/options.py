"""Options are declared once, beside each loss: `@options(margin=learnable(), metric=one_of(*METRICS))`.

A rule takes an option's name and value, and returns the value as the loss takes it, or raises a ValueError or a
TypeError. The decorator applies the rules in every call, modules apply them when they are built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from difflib import get_close_matches
from types import CodeType
from typing import Any, TypeVar

from . import checks, groups

Rule = Callable[[str, Any], Any]
Function = TypeVar("Function", bound=Callable[..., Any])

flag: Rule = checks.flag
tensor: Rule = checks.tensor


def number(**bounds: Any) -> Rule:
    """A finite number, at least 0 unless there are other bounds, see `checks.number`."""
    return functools.partial(checks.number, **bounds)


def learnable(**bounds: Any) -> Rule:
    """A `number`, or a floating tensor of one element, which receives its gradient."""
    return functools.partial(checks.number, learnable=True, **bounds)


def learnables(**bounds: Any) -> Rule:
    """A `learnable`, or a floating tensor of several numbers, which receive their gradients, see `checks.several`."""
    return functools.partial(checks.several, **bounds)


def integer(low: int = 0, high: int | None = None) -> Rule:
    return functools.partial(checks.index, low=low, high=high)


label: Rule = integer(low=-(2**63))


def one_of(*allowed: object) -> Rule:
    return functools.partial(checks.one_of, allowed=allowed)


def ranks(name: str, value: Any) -> tuple[int, ...]:
    """At least one int; all of them distinct and at least 1."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    found = tuple(checks.index(name, k, low=1) for k in value)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name} must be distinct ints, one at least, got {value!r}")
    return found


def optional(rule: Rule) -> Rule:
    """None, or what the rule takes."""
    return functools.partial(_optional, rule=rule)


def _optional(name: str, value: object, rule: Rule) -> Any:
    return None if value is None else rule(name, value)


def options(**rules: Rule) -> Callable[[Function], Function]:
    """Check what a call gives by the rules. Defaults are not checked: a test shows that each follows its rule."""

    def decorate(function: Function) -> Function:
        takes = Arguments(inspect.signature(function))

        @functools.wraps(function)
        def checked(*given: Any, **named: Any) -> Any:
            arguments = takes.bind(function.__name__, given, named)
            group = groups.current()
            for name in arguments:
                if name in rules:
                    value = rules[name](name, arguments[name])
                    arguments[name] = value if group is None else group.option(value)
            return function(**arguments)

        checked.__code__ = own_code(checked, function.__name__)  # type: ignore[attr-defined]
        vars(checked)["rules"] = rules
        defaults = {p.name: p.default for p in takes.parameters if p.default is not p.empty}
        by_name = {p.name for p in takes.parameters if p.kind is p.KEYWORD_ONLY or p.name in rules}
        checked.__kwdefaults__ = {k: v for k, v in defaults.items() if k in by_name}  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def own_code(function: Callable[..., Any], name: str) -> CodeType:
    """A copy of a function's code: torch.compile keeps only a few graphs per code object, not per function."""
    return function.__code__.replace(co_name=name)


def rules_of(loss: Callable[..., Any]) -> Mapping[str, Rule]:
    """The rules that `options` gave to a loss."""
    return vars(loss)["rules"]


class Arguments:
    """What a call takes, by a signature without *args and **kwargs, with errors that help with wrong names."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.parameters = signature.parameters.values()
        self.names = [*signature.parameters]
        self.by_place = [p.name for p in self.parameters if p.kind is not p.KEYWORD_ONLY]
        self.required = [p.name for p in self.parameters if p.default is p.empty]

    def bind(
        self, owner: str, given: Sequence[Any], named: Mapping[str, Any], known: Container[str] = ()
    ) -> dict[str, Any]:
        """The arguments of a call to `owner`, by name. Arguments that are `known` may be missing."""
        if len(given) > len(self.by_place):
            raise TypeError(f"{owner}: {self._too_many(owner, given)}")
        arguments = dict(zip(self.by_place, given, strict=False))
        for name, value in named.items():
            if name not in self.names:
                raise TypeError(f"{owner}: {self._unknown(name)}")
            if name in arguments:
                raise TypeError(f"{owner}: {name} must be given once, got it by place and by name")
            arguments[name] = value
        missing = [name for name in self.required if name not in arguments and name not in known]
        if missing:
            raise TypeError(f"{owner}: {' and '.join(missing)} must be given, got {', '.join(arguments) or 'nothing'}")
        return arguments

    def _too_many(self, owner: str, given: Sequence[Any]) -> str:
        taken = len(self.by_place)
        text = f"takes {', '.join(self.by_place) or 'nothing'} by place, got {len(given)} arguments."
        if taken == len(self.names) or not all(isinstance(value, bool | int | float | str) for value in given[taken:]):
            return text
        options = [f"{name}={value!r}" for name, value in zip(self.names[taken:], given[taken:], strict=False)]
        return f"{text} Options have names: {owner}({', '.join([*self.by_place, *options])})"

    def _unknown(self, name: str) -> str:
        ours = [own for own in OTHER_NAMES.get(name, ()) if own in self.names]
        close = get_close_matches(name, self.names, 1)
        hint = f", which is {ours[0]} here." if ours else f", did you mean {close[0]}?" if close else "."
        return f"no argument {name!r}{hint} It takes {', '.join(self.names)}"


# Names of arguments in other libraries, and the names that they may have here.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # pytorch-metric-learning
    "distance": ("metric",),
    "embedding_size": ("dim",),
    "normalize": ("metric",),
    "normalize_embeddings": ("normalize", "metric"),
    "ref_emb": ("ref_embeddings",),
    "smooth_loss": ("soft_margin",),
    "softmax_scale": ("scale",),
    "triplets_per_anchor": ("triplets",),
    "type_of_triplets": ("triplets",),
    "reducer": ("reduction",),
    # torch
    "distance_function": ("metric",),
    "in_features": ("dim",),
    "input": ("logits", "embeddings"),
    "input1": ("x1",),
    "input2": ("x2",),
    "out_features": ("num_classes",),
    "p": ("metric",),
    "reduce": ("reduction",),
    "size_average": ("reduction",),
    # sentence-transformers, TensorFlow Addons
    "distance_metric": ("metric",),
    "similarity_fct": ("metric",),
    "soft": ("soft_margin",),
    "triplet_margin": ("margin",),
    # open_clip, lightly, MoCo
    "image_features": ("image",),
    "text_features": ("text",),
    "logit_scale": ("scale",),
    "queue": ("negatives",),
    # papers and their code
    "embedding_dim": ("dim",),
    "feat_dim": ("dim",),
    "features": ("embeddings",),
    "labels": ("target",),
    "label": ("labels", "target"),
    "m": ("margin",),
    "n_classes": ("num_classes",),
    "num_class": ("num_classes",),
    "s": ("scale",),
    "t": ("temperature",),
    "target": ("labels",),
    "tau": ("temperature",),
    "temp": ("temperature",),
    "anneal": ("temperature",),
    "k_temperatures": ("k_temperature",),
    "k_vals": ("k",),
}
