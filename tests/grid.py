"""What the tests run over: the losses and their inputs, the plans of the engine, and covering grids."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedloss
from fusedloss.losses import catalog
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.options import rules_of

FULL = False  # whether this is `make test-all`
DRAWN: list[int] = []  # the seeds of the batches that property tests drew, until `tests/conftest.py` reports them


def in_full(*cases: Any) -> tuple[Any, ...]:
    """Cases that only `make test-all` runs; smaller cases cover the same code."""
    return cases if FULL else ()


def shapes(*of: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Numbers of rows, columns and dimensions. Since one metric walks the dimensions one by one, `make test` has only
    so many that there are several chunks, slabs and ragged ends."""
    return tuple((N, M, D if FULL else min(D, 37 if D > 64 else 19)) for N, M, D in of)


METRICS = ("euclidean", "sqeuclidean", "cosine", "manhattan")
LOSSES = [getattr(fusedloss, name) for name in fusedloss.__all__ if name.endswith("_loss")]
# (loss, name) of every number that may be a tensor and then receives its gradient
LEARNABLE = [
    (loss, p.name)
    for loss in LOSSES
    for p in inspect.signature(loss).parameters.values()
    if p.name in loss.__kwdefaults__ and p.annotation.startswith("float | Tensor")
]


def reductions(loss: Callable[..., Tensor]) -> tuple[str, ...]:
    """The reductions that a loss takes; none if all its rows together are one term."""
    rule = rules_of(loss).get("reduction")
    return () if rule is None else rule.keywords["allowed"]  # type: ignore[attr-defined]


REDUCED = [loss for loss in LOSSES if reductions(loss)]
DTYPES = {
    "triton": (torch.float32, torch.float16, torch.bfloat16),
    "blocked": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}

# A few rows make one tile of the default sizes. The other plans have several row blocks, column blocks, chunks of D and
# programs that share a gradient, with ragged edges on all of them, and each takes a path that only large inputs take.
TILE = dict(BM=16, BN=32, BD=16, num_warps=4, num_stages=1, held=32, near=32)
FEW = TILE | dict(BN=16, near=8)  # of so few columns that sorted rows have far tiles
SMALL = dict(SPLIT_TARGET=1, ROW_CHUNK=32, ENTRIES=4, POSITIVES=2, CLASS_TILE=64, CLASSES_APART=4, ELEMENTS=32)
SMALL |= dict(SORT_PAIRS_FROM=0, SUMMED=2, PARTS=2)
PLANS = {
    "default": (None, {}),
    "small": (TILE, SMALL),
    "held": (TILE | dict(held=128), SMALL),
    "split": (TILE, SMALL | dict(SPLIT_TARGET=1 << 20, SORT_PAIRS_FROM=1 << 29, SCANNED=8)),
    "sorted": (FEW, SMALL | dict(SORT_FROM=0)),
    "sorted split": (FEW, SMALL | dict(SORT_FROM=0, SPLIT_TARGET=16)),
    "tight": (TILE, SMALL | dict(WORKSPACE=512)),
}


def unreadable(patch: pytest.MonkeyPatch) -> None:
    """Within this block values may not be read, like those on a GPU."""
    for place in ("fusedloss.checks", "fusedloss.checks.tensors"):
        patch.setattr(f"{place}.readable", lambda *_: False)


@contextmanager
def running(backend: str, plan: str) -> Iterator[str]:
    """Run on a backend with a plan; yields the device for its tensors."""
    with pytest.MonkeyPatch.context() as patch, fusedloss.use_backend(backend):
        if backend == "blocked":
            if plan == "small":
                patch.setattr("fusedloss.backends.blocked.tiles.BLOCK", 16)
                patch.setattr("fusedloss.backends.blocked.logits.BLOCK", 64)
                patch.setattr("fusedloss.backends.blocked.logits.ELEMENTS", 64)
                patch.setattr("fusedloss.backends.blocked.rows.ELEMENTS", 128)
            yield "cpu"
            return
        pytest.importorskip("triton")
        from fusedloss.kernels import configs

        tile, numbers = PLANS[plan]
        changed = dict(numbers)
        if tile:
            changed |= {"choose": lambda *_: configs.Tile(**tile), "on_chip": lambda work, D, arch: tile["held"] >= D}
        for name, value in changed.items():
            patch.setattr(configs, name, value)
        yield "cuda" if torch.cuda.is_available() else "cpu"
        # What a test patches within the plan and takes back after it would put the plan into every later test.
        assert all(getattr(configs, name) is value for name, value in changed.items())


def covering(axes: Mapping[str, Sequence[Any]], strength: int) -> list[dict[str, Any]]:
    """Few cases in which every combination of values of any `strength` axes occurs."""
    wanted = [
        frozenset(zip(names, values, strict=True))
        for names in itertools.combinations(axes, strength)
        for values in itertools.product(*(axes[name] for name in names))
    ]
    found = []
    while wanted:
        case = dict(wanted[0])
        for name in axes:
            if name in case:
                continue
            covered = [sum(w <= (case | {name: v}).items() for w in wanted) for v in axes[name]]
            case[name] = axes[name][covered.index(max(covered))]
        found.append({name: case[name] for name in axes})
        wanted = [w for w in wanted if not w <= case.items()]
    return found


def cases(
    axes: Mapping[str, Sequence[Any]], *, blocked: int, triton: int, plans: Sequence[str] = ("default", "small")
) -> pytest.MarkDecorator:
    """Tests (backend, case): a covering grid for each backend, of the given strength, over the axes, dtypes and plans.

    A fault needs one option, or two together (a metric and a path, a dtype and a reduction): strength 2 finds it in
    some 30 cases where the full product has thousands, and is what `make test` has; `make test-all` has the triples too
    where the backend is fast enough for them.
    """
    params = []
    if not FULL:
        blocked, triton = min(blocked, 2), min(triton, 2)
    for backend, strength in (("blocked", blocked), ("triton", triton)):
        own_plans = plans if backend == "triton" else ("default", "small")
        for case in covering({**axes, "dtype": DTYPES[backend], "plan": own_plans}, strength):
            params.append(pytest.param(backend, case, id="-".join([backend, *map(named, case.values())])))
    return pytest.mark.parametrize(("backend", "case"), params)


def named(value: Any) -> str:
    """A value in the name of a test."""
    if isinstance(value, tuple) and any(map(callable, value)):
        return "+".join(map(named, value))
    return getattr(value, "__name__", str(value)).removeprefix("torch.").replace(" ", "")


def batch(N: int, D: int, *, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows in float64, of length about 1, and their labels; the last row is alone in its class."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * N + D)
    labels = torch.randint(classes, (N,), generator=generator)
    labels[-1:] = classes
    if D == 1:  # random points of a line are so close that 1 / d magnifies rounding; these are apart or equal
        return torch.randint(-8, 9, (N, 1), generator=generator).double() / 8, labels
    return torch.randn(N, D, dtype=torch.float64, generator=generator) / D**0.5, labels


# The references of a batch: only itself, other rows, other constant rows, or its own rows first or among them.
REFS = ("self", "refs", "constant", "first", "among")


def references(case: str, rows: Tensor, labels: Tensor, y: Tensor, y_labels: Tensor) -> dict[str, Any]:
    """The arguments for references y, by the name of the case in REFS."""
    if case == "self":
        return {}
    if case not in ("first", "among"):
        return dict(ref_embeddings=y, ref_labels=y_labels)
    offset = 3 if case == "among" else 0
    refs, ref_labels = (torch.cat([a[:offset], b, a[offset:]]) for a, b in ((y, rows), (y_labels, labels)))
    return dict(ref_embeddings=refs, ref_labels=ref_labels, ref_offset=offset)


IGNORED = (None, 1)  # the label whose rows are left out


def ignoring(label: int | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments for a loss that ignores a label of `IGNORED`; the rows with this label hold NaN."""
    if label is None:
        return arguments
    found = arguments | dict(ignore_index=label)
    for rows, labels in (("embeddings", "labels"), ("ref_embeddings", "ref_labels"), ("embeddings", "target")):
        if labels in arguments:
            found[rows] = arguments[rows].masked_fill((arguments[labels] == label)[:, None], torch.nan)
    return found


def middle(distances: Tensor) -> float:
    """A margin that half of the distances exceed, between two of them: at a kink the last bit decides."""
    ordered = distances.flatten().unique()
    return ordered[(len(ordered) - 1) // 2 :][:2].mean().float().item()


def taking(role: Role) -> list[Callable[..., Tensor]]:
    """The losses that take a tensor of a role."""
    return [loss.function for loss in CATALOG.values() if loss.named(role)]


IN_BATCH, WITH_CLASSES = taking(Role.REF_ROWS), taking(Role.CLASSES)
# Losses that compare every row with one other row and have no product of all pairs.
ROW_BY_ROW = [loss.function for loss in CATALOG.values() if loss.family in ("rows", "mined") and loss.products is None]
GIVEN_LOGITS, ELEMENTS = taking(Role.LOGITS), taking(Role.ANSWERS)


SAMPLE = [loss.function for loss in catalog.SAMPLE]


def metrics(loss: Callable[..., Any]) -> list[str]:
    """The names of METRICS that a loss takes."""
    rule: Any = rules_of(loss).get("metric")
    return [] if rule is None else [metric for metric in METRICS if metric in rule.keywords["allowed"]]


def in_front(losses: Sequence[Callable[..., Any]]) -> pytest.MarkDecorator:
    """Tests (backend, loss) of what all losses share; for Triton, whose interpreter is slow, one loss per kernel."""
    sample = losses if FULL else [loss for loss in losses if loss in SAMPLE]
    pairs = [*(("blocked", loss) for loss in losses), *(("triton", loss) for loss in sample)]
    return pytest.mark.parametrize(("backend", "loss"), pairs)


OPTIONAL = (Role.REF_ROWS, Role.REF_LABELS, Role.QUEUE, Role.HARD_NEGATIVES, Role.IDS, Role.KEY_BIAS)


def example(
    loss: Callable[..., Any], N: int = 9, D: int = 5, *, M: int = 7, refs: bool = False, sub_centers: int = 1
) -> dict[str, Any]:
    """Float32 tensors for a loss, by the names of its parameters, with M classes, or D if logits are given. With
    references, they include the tensors that a call may leave out."""
    tensors = CATALOG[loss.__name__].tensors if loss.__name__ in CATALOG else catalog.IN_BATCH  # `hardest_pairs`
    arguments = {}
    for seed, (name, role) in enumerate(tensors.items()):
        if role is Role.KEY_IDS or (role in OPTIONAL and not refs):
            continue
        others = (Role.REF_ROWS, Role.REF_LABELS, Role.QUEUE, Role.CLASSES)
        rows, labels = batch(M if role in others else N, D, classes=2, seed=seed)
        made = {
            **dict.fromkeys((Role.LABELS, Role.REF_LABELS, Role.CLASS, Role.GRADES), labels),
            **dict.fromkeys((Role.SIMILAR, Role.MAYBE_SIMILAR), labels % 2),
            Role.IDS: torch.arange(N) // 2,
            Role.HARD_NEGATIVES: torch.stack([rows.flip(0), rows.roll(2, 0)], 1).float(),
            Role.KEY_BIAS: rows[:, 0].float(),
            Role.ANSWERS: (rows > 0).long(),
            Role.SCALE: torch.tensor(2.0),
            Role.BIAS: torch.tensor(-1.0),
        }
        arguments[name] = made.get(role, rows.float())
        if role is Role.CLASSES and sub_centers > 1:
            arguments[name] = torch.stack([rows.float().roll(k, 0) for k in range(sub_centers)], 1)
    return arguments
