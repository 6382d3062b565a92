"""Every loss is as exact as eager, whatever the lengths of its rows and wherever they are; and NaN shows."""

from typing import Any, NamedTuple

import pytest
import torch

import fusedloss
from bench.regimes import ROWS, Regime, forms, holds, placed
from fusedloss import reference
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.options import rules_of
from tests.compare import check, differentiate
from tests.grid import DTYPES, FULL, LOSSES, SAMPLE, covering, example, in_front, middle, named, running

REGIMES = {f"length {length:g}": Regime(length) for length in (1e-6, 1e-3, 1.0, 1e3, 1e6)}
REGIMES |= {f"offset {spreads:g}": Regime(1.0, spreads) for spreads in (10.0, 1000.0)}
N, D = 9, 7
WEIGHTS = 2  # as in test_in_batch


class Case(NamedTuple):
    """A loss in a regime, and in a dtype, with options that change the score."""

    loss: Any
    regime: Regime
    dtype: torch.dtype
    refs: bool
    options: dict[str, Any]

    @property
    def roles(self):
        return CATALOG[self.loss.__name__].tensors

    @property
    def constant(self):
        """Numbers far from the origin are constants: their gradient is a sum of scores that cancel to the last bit."""
        far = self.regime.offset**2 * torch.finfo(self.dtype).eps > 0.1
        numbers = (Role.SCALE, Role.BIAS) if far and not self.of_distances else ()
        return [name for name, role in self.roles.items() if role in (Role.ANSWERS, *numbers)]

    @property
    def of_distances(self):
        """Whether the loss does not depend on where the origin lies."""
        metric, lifted = self.options.get("metric"), "lifted" in self.loss.__name__
        return metric in ("euclidean", "sqeuclidean") or (lifted and not self.options["normalize"])

    def arguments(self):
        found = placed(example(self.loss, N, D, refs=self.refs), self.roles, self.regime)
        found = {name: t.to(self.dtype) if t.is_floating_point() and t.dim() else t for name, t in found.items()}
        if "neg_margin" in rules_of(self.loss) and "metric" in self.options:  # half of the negatives are nearer
            d = reference.pairwise_distance(*2 * [found["embeddings"].double()], self.options["metric"])
            found["neg_margin"] = middle(d)
        if CATALOG[self.loss.__name__].family == "ranking":  # which is flat where all scores are far apart
            of = self.options.get("metric", "cosine")
            s = reference.common.similarities(*2 * [found["embeddings"].double()], of)
            found["temperature"] = 0.2 * float(s.abs().max())
        return found | self.options

    def forms(self):
        """The dense loss in several orders. For distances in float32 and float64 the rows are moved to the origin, so
        that their distance from it adds no error."""
        names = [name for name, role in self.roles.items() if role in ROWS and (self.refs or not role.optional)]
        moved = self.of_distances and self.dtype.itemsize > 2
        shift = self.regime.offset * self.regime.length / D**0.5 if moved else 0.0
        return forms(getattr(reference, self.loss.__name__), names, shift)


def scores(loss):
    """The options that change a loss's score, and the values they may have."""
    rules = rules_of(loss)
    metric = {"metric": rules["metric"].keywords["allowed"]} if "metric" in rules else {}
    return metric | ({"normalize": (True, False)} if "normalize" in rules else {})


def cases():
    """Every regime with every dtype, score and kind of references, of every loss."""
    for backend, losses in (("blocked", LOSSES), ("triton", LOSSES if FULL else SAMPLE)):
        for loss in losses:
            optional = any(role.optional for role in CATALOG[loss.__name__].tensors.values())
            axes = dict(regime=[*REGIMES], dtype=DTYPES[backend], refs=(False, True) if optional else (False,))
            for case in covering(axes | scores(loss), 2):
                name = "-".join([backend, loss.__name__, *map(named, case.values())])
                regime, dtype, refs = (case.pop(axis) for axis in axes)
                yield pytest.param(backend, Case(loss, REGIMES[regime], dtype, refs, case), id=name)


@pytest.mark.parametrize(("backend", "case"), [*cases()])
def test_rows_of_any_length_and_place_are_as_exact_as_eager(backend, case):
    """Every case is checked, unless the dtype cannot hold it, or float64 would be compared with itself: far from the
    origin its own error shows, except for distances, whose exact values are taken from rows around the origin."""
    if case.dtype == torch.float64 and case.regime.offset and not case.of_distances:
        return
    arguments, (oracle, *others) = case.arguments(), case.forms()
    exact = differentiate(oracle, arguments, torch.float64, "cpu", case.constant)
    if not holds(case.dtype, case.regime, arguments, exact):
        return
    # In the gradient of a product the rounding of the weights is magnified by how far the rows are from the origin.
    magnified = max(1.0, case.regime.offset) if case.loss is fusedloss.linear_cross_entropy_loss else 1.0
    with running(backend, "small") as device:
        given = dict(oracle=oracle, forms=others, constant=case.constant, roundings=WEIGHTS * magnified)
        check(case.loss, arguments, case.dtype, device, **given)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@in_front(LOSSES)
def test_what_is_nan_in_float64_is_no_plausible_number(backend, device, loss, bad):
    """NaN shows in the value and in every entry of a gradient, in every dtype; for given rows, in those of the last."""
    for dtype in DTYPES[backend]:
        case = Case(loss, Regime(), dtype, False, {})
        arguments = {name: v.clone() for name, v in case.arguments().items() if isinstance(v, torch.Tensor)}
        next(v for v in arguments.values() if v.is_floating_point())[0, 2] = bad
        want = differentiate(getattr(reference, loss.__name__), arguments, torch.float64, "cpu", case.constant)
        found = differentiate(loss, arguments, dtype, device, case.constant)
        for name, exact in want.items():
            assert not found[name].cpu()[exact.isnan()].isfinite().any(), f"{name} in {dtype}"
