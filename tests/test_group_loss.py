"""GroupLoss: in every process the loss of the whole batch, and gradients whose mean is that of one process with it."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import fusedloss
from fusedloss import reference
from fusedloss.distributed import GroupLoss
from fusedloss.distributed.agreement import AS_MANY
from fusedloss.losses.catalog import CATALOG, IN_BATCH, Role
from fusedloss.options import rules_of
from tests import grid
from tests.compare import ATOL, accumulated, distance, rounding
from tests.grid import LEARNABLE, covering, example, ignoring, reductions, running
from tests.processes import run

MODES = ("gather", "ring")
SHARED = [row.function for row in CATALOG.values() if row.products is not None and not row.named(Role.CLASSES)]

# How many rows each process has: some, none, all of them.
SIZES = ((4, 4), (7, 3), (0, 6), (0, 0), (3, 3, 3), (7, 0, 5), (1, 9, 2), (8, 0, 0))
# Labels of all classes everywhere; rows of the first process that have no positive; one class for each process.
LABELS = ("mixed", "alone", "own")
# Moderate numbers, as in test_structured, that are above and below some of the pairs.
NUMBERS: dict[str, dict[str, Any]] = {
    "pairwise_contrastive_loss": dict(pos_margin=0.3, neg_margin=2.0),
    "margin_loss": dict(margin=0.3, beta=1.3),
    "batch_hard_triplet_loss": dict(margin=0.5),
    "batch_semihard_triplet_loss": dict(margin=1.0),
    "batch_all_triplet_loss": dict(margin=0.5),
    "multi_similarity_loss": dict(alpha=1.5, beta=4.0, base=0.3),
    "circle_loss": dict(margin=0.4, gamma=3.0),
    "generalized_lifted_structure_loss": dict(neg_margin=1.5, pos_margin=0.2),
    "lifted_structure_loss": dict(neg_margin=1.5, pos_margin=0.2),
    "recall_at_k_loss": dict(k=(1, 2, 4), temperature=0.2),
    "clip_loss": dict(logit_bias=-0.5),
}
# Beside the variants of the catalog: what else is exchanged, or is known by another place.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "margin_loss": (dict(beta=(torch.arange(32) % 3 / 2 + 0.5).tolist()),),
    "batch_hard_triplet_loss": (dict(soft_margin=True, positives="easiest"), dict(negatives="easiest")),
    "batch_all_triplet_loss": (dict(triplets="hard"), dict(triplets="easy")),
    "info_nce_loss": (dict(in_batch_negatives=False),),
    "decoupled_contrastive_loss": (dict(sigma=0.5),),
    "n_pair_loss": (dict(l2_reg=0.1),),
    "generalized_lifted_structure_loss": (dict(normalize=False),),
    "lifted_structure_loss": (dict(normalize=False),),
}


def learned(loss: Any) -> tuple[str, ...]:
    return tuple(name for of, name in LEARNABLE if of is loss and name in loss.__kwdefaults__)


def base(loss: Any) -> dict[str, Any]:
    """Options of a loss: the numbers of NUMBERS, and otherwise a temperature of 0.5."""
    return NUMBERS.get(loss.__name__, {"temperature": 0.5} if "temperature" in loss.__kwdefaults__ else {})


def optional(loss: Any) -> list[tuple[str, ...]]:
    """Which of the optional tensors are given: none, each one, or all."""
    row = CATALOG[loss.__name__]
    of = {role: row.named(role) for role in row.tensors.values() if role.optional}
    pairs = ((Role.REF_ROWS, Role.REF_LABELS), (Role.IDS,), (Role.IDS, Role.KEY_IDS))
    each = [[*itertools.chain(*(of[role] for role in pair))] for pair in pairs if all(role in of for role in pair)]
    each += [of[role] for role in (Role.QUEUE, Role.HARD_NEGATIVES, Role.KEY_BIAS) if role in of]
    if loss is fusedloss.lifted_structure_loss:
        return [()]
    every = [name for name, role in row.tensors.items() if role.optional]
    return [(), *map(tuple, each), *([tuple(every)] if len(each) > 1 else [])]


def cases_of(loss: Any, strength: int = 2) -> list[dict[str, Any]]:
    """A covering grid of a loss: who has which rows, and everything that it takes."""
    rules = rules_of(loss)
    variants = [{}, *CATALOG[loss.__name__].variants, *VARIANTS.get(loss.__name__, ())]
    axes: dict[str, Any] = {
        "sizes": SIZES,
        "labels": LABELS if CATALOG[loss.__name__].named(Role.LABELS) else ("mixed",),
        "reduction": reductions(loss) or (None,),
        "metric": rules["metric"].keywords["allowed"] if "metric" in rules else (None,),
        "ignored": (None, 1, 2) if "ignore_index" in rules else (None,),
        "given": optional(loss),
        "learned": ((), learned(loss)) if learned(loss) else ((),),
        "variant": range(len(variants)),
        "mode": MODES,
    }
    found = []
    for case in covering(axes, strength):
        given = {name: case[name] for name in ("reduction", "metric") if case[name]}
        options = base(loss) | given | variants[case.pop("variant")]
        if not options.get("in_batch_negatives", True) and not {"negatives", "hard_negatives"} & {*case["given"]}:
            continue
        found.append(dict(loss=loss.__name__, options=options) | case)
    return found


def whole(case: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The tensors of the whole batch, and the numbers that are learned."""
    loss, N = getattr(fusedloss, case["loss"]), sum(case["sizes"])
    roles = CATALOG[case["loss"]].tensors if case["loss"] in CATALOG else IN_BATCH
    given = case["given"]
    tensors = example(loss, N, 5, refs=bool(given))
    tensors |= {"key_ids": tensors["ids"]} if "key_ids" in given else {}
    tensors = {name: t for name, t in tensors.items() if name in given or not roles[name].optional}
    if "labels" in tensors and case.get("labels", "mixed") != "mixed":
        rank = torch.arange(len(case["sizes"])).repeat_interleave(torch.tensor(case["sizes"]))
        alone = tensors["labels"].where(rank > 0, 10 + torch.arange(N))
        tensors["labels"] = alone if case["labels"] == "alone" else rank
    tensors = ignoring(case.get("ignored"), tensors)
    for name, value in case["options"].items():
        tensors[name] = torch.tensor(value) if name in case.get("learned", ()) or isinstance(value, list) else value
    for name, t in tensors.items():
        if isinstance(t, Tensor) and t.is_floating_point():
            tensors[name] = t.to(accumulated(dtype) if name in case["options"] or not t.dim() else dtype)
    return tensors


def own(case: Mapping[str, Any], tensors: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The tensors of one process: its rows of every tensor of rows."""
    return {name: t[part(case, rank)] if of_rows(case, name) else t for name, t in tensors.items()}


def of_rows(case: Mapping[str, Any], name: str) -> bool:
    roles = CATALOG[case["loss"]].tensors if case["loss"] in CATALOG else IN_BATCH
    return roles.get(name) in itertools.chain(*AS_MANY)


def part(case: Mapping[str, Any], rank: int) -> slice:
    first = sum(case["sizes"][:rank])
    return slice(first, first + case["sizes"][rank])


def differentiated(loss: Any, tensors: Mapping[str, Any], weights: Tensor) -> dict[str, Tensor]:
    """The value and the gradients of 3 times a loss, or of its terms times the weights."""
    leaves = {
        name: t.detach().clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
        for name, t in tensors.items()
    }
    value = loss(**leaves)
    upstream = weights.to(value.dtype) if value.dim() else torch.tensor(3.0, dtype=value.dtype)
    value.backward(upstream)
    grads = {name: t.grad for name, t in leaves.items() if isinstance(t, Tensor) and t.requires_grad}
    return {"value": value.detach()} | grads


def expected(case: Mapping[str, Any], alone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the results of one process that belongs to this process of a group."""
    at, value = part(case, dist.get_rank()), alone["value"]
    value = value.view(weights(case).shape)[:, at].flatten() if value.dim() else value
    return {name: t[at] if of_rows(case, name) else t for name, t in alone.items()} | {"value": value}


def differentiated_alone(case: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return differentiated(getattr(fusedloss, case["loss"]), tensors, weights(case).flatten())


def weights(case: Mapping[str, Any]) -> Tensor:
    """The weights of a loss's terms, by view and row; they are exact in every dtype."""
    views = 2 if case["loss"] in ("nt_xent_loss", "decoupled_contrastive_loss") else 1
    return (torch.arange(views * sum(case["sizes"])) % 5 + 0.5).view(views, -1)


def differentiated_in_group(case: Mapping[str, Any], tensors: Mapping[str, Any], mode: str) -> dict[str, Tensor]:
    """The results for the own rows; gradients are scaled so that they are those of one process."""
    rank, world = dist.get_rank(), dist.get_world_size()
    loss = GroupLoss(getattr(fusedloss, case["loss"]), mode=mode)
    found = differentiated(loss, own(case, tensors, rank), weights(case)[:, part(case, rank)].flatten())
    of_terms = case["options"].get("reduction") == "none"  # what all processes make of their terms is summed
    for name, d in found.items():
        if name == "value":
            continue
        if of_rows(case, name):
            found[name] = d if of_terms else d / world
        elif name in case["given"]:  # each process has compared its own rows with these
            dist.all_reduce(d)
            found[name] = d if of_terms else d / world
        else:
            found[name] = d * world if of_terms else d
    return found


def modes(case: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of a case: the one of its grid, or else both; only one for a loss that needs all rows at once."""
    at_once = CATALOG[case["loss"]].family in ("triplets", "ranking") or case["options"].get("negatives") == "semihard"
    return MODES[:1] if at_once else (case["mode"],) if "mode" in case else MODES


def compare(cases: list[dict[str, Any]]) -> Any:
    """The cases that differ from one process, and the values of all cases."""
    wrong, values = [], []
    with running("blocked", "small"):
        for case in cases:
            tensors, (mode,) = whole(case), modes(case)
            got = differentiated_in_group(case, tensors, mode)
            values.append(got["value"])
            wrong += [f"{case}: {text}" for text in differences(case, got, differentiated_alone(case, tensors))]
    return wrong, values


def differences(case: Mapping[str, Any], got: Mapping[str, Tensor], alone: Mapping[str, Tensor]) -> list[str]:
    want, found = expected(case, alone), []
    if got.keys() != want.keys():
        return [f"gradients of {[*got]} instead of {[*want]}"]
    for name in want:
        error = (got[name] - want[name]).abs().max() if want[name].numel() else 0.0
        size = max(alone[name].abs().max(), 0.1) if alone[name].numel() else 0.1  # a gradient may be 0 but for rounding
        if got[name].shape != want[name].shape or not error <= 1e-12 * size:
            found.append(f"{name} is {got[name]}, not {want[name]}")
    return found


def of_worlds(cases: list[dict[str, Any]]) -> list[tuple[int, list[dict[str, Any]]]]:
    return [(n, of) for n in (2, 3) if (of := [case for case in cases if len(case["sizes"]) == n])]


def hold(answers: list[Any], cases: list[dict[str, Any]]) -> None:
    """Nothing is wrong in any process, and the value of a loss is the same to the last bit in all."""
    for rank, (wrong, _) in enumerate(answers):
        assert not wrong, f"rank {rank}, {len(wrong)} of {len(cases)} cases: " + "\n".join(wrong[:5])
    for case, *values in zip(cases, *(values for _, values in answers), strict=True):
        if values[0].dim() == 0:
            assert all(value.equal(values[0]) for value in values), f"{case}: {values}"


@pytest.mark.parametrize("loss", SHARED)
def test_a_loss_of_a_group_is_that_of_one_process(loss):
    for world, cases in of_worlds(cases_of(loss, 3 if grid.FULL else 2)):
        hold(run(world, compare, cases), cases)


POINTS = dict(labels="mixed", given=(), learned=(), ignored=None)


def of_dtypes(loss: Any) -> list[dict[str, Any]]:
    """The values of a loss and its variants for a batch whose rows only some of the processes have."""
    variants = [{}, *CATALOG[loss.__name__].variants, *VARIANTS.get(loss.__name__, ())]
    found = []
    for variant, sizes in zip(variants, itertools.cycle(((7, 0, 5), (4, 3, 4)))):
        options = base(loss) | variant
        given = () if options.get("in_batch_negatives", True) else ("negatives",)
        found.append(dict(loss=loss.__name__, options=options, sizes=sizes) | POINTS | dict(given=given))
    return found


def exactness(cases: list[dict[str, Any]], dtypes: list[torch.dtype], backend: str, plan: str, offset: float) -> Any:
    """Cases in which an error is larger than that of one process, beside the reference in float64."""
    wrong = []
    with running(backend, plan):
        for case, dtype in itertools.product(cases, dtypes):
            tensors = whole(case, dtype)
            if offset:
                tensors["embeddings"] = (tensors["embeddings"].double() + offset).to(dtype)
            wide = {
                name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t
                for name, t in tensors.items()
            }
            exact = differentiated(getattr(reference, case["loss"]), wide, weights(case).flatten())
            alone = differentiated_alone(case, tensors)
            for mode in modes(case):
                got = differentiated_in_group(case, tensors, mode)
                wrong += [f"{mode} {dtype} {case}: {text}" for text in less_exact(case, got, alone, exact, dtype)]
    return wrong


def less_exact(
    case: Mapping[str, Any], got: Mapping[str, Tensor], alone: Mapping[str, Tensor], exact: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> list[str]:  # fmt: skip
    found, want = [], expected(case, exact)
    for name, t in want.items():
        assert got[name].dtype is alone[name].dtype and t.isfinite().all()
        stored = dtype if exact[name].dim() else accumulated(dtype)
        atol = (ATOL[accumulated(dtype)] + rounding(stored)) * exact[name].abs().max()
        bound = 1.5 * distance(alone[name], exact[name], torch.inf) + atol
        error = distance(got[name], t, torch.inf) if t.numel() else 0.0
        if not error <= bound:
            found.append(f"{name} has error {error:.3g} > {bound:.3g}")
    return found


@pytest.mark.parametrize("loss", SHARED)
def test_a_loss_of_a_group_is_as_exact_as_one_process(loss):
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    for rank, wrong in enumerate(run(3, exactness, of_dtypes(loss), dtypes, "blocked", "small", 0.0)):
        assert not wrong, f"rank {rank}: " + "\n".join(wrong)


# One of every kind: log sums, hinges, offsets of columns too, columns that are anchors too, offsets of rows, by labels
# and by states; mined pairs, triplets, ranks.
ON_KERNELS = (
    ("supcon_loss", {}),
    ("pairwise_contrastive_loss", {}),
    ("lifted_structure_loss", {}),
    ("clip_loss", {}),
    ("margin_loss", VARIANTS["margin_loss"][0]),
    ("pairwise_nt_xent_loss", {}),
    ("batch_hard_triplet_loss", {}),
    ("batch_semihard_triplet_loss", {}),
    ("smooth_ap_loss", {}),
)


def point(loss: str, sizes: tuple[int, ...] = (7, 0, 5), **options: Any) -> dict[str, Any]:
    """One case of a loss."""
    return dict(loss=loss, options=base(getattr(fusedloss, loss)) | options, sizes=sizes) | POINTS


@pytest.mark.parametrize(("loss", "options"), ON_KERNELS)
def test_a_loss_of_a_group_is_as_exact_as_one_process_on_kernels(loss, options):
    cases = [point(loss, (5, 3), **options)]
    for rank, wrong in enumerate(run(2, exactness, cases, [torch.float32], "triton", "small", 0.0)):
        assert not wrong, f"rank {rank}: " + "\n".join(wrong)


def test_rows_far_from_the_origin_are_as_exact_as_in_one_process():
    """In both modes they are moved by the box of the rows of all processes."""
    losses = ("pairwise_contrastive_loss", "batch_hard_triplet_loss", "batch_all_triplet_loss")
    cases = [point(loss, sizes) for loss in losses for sizes in ((7, 0, 5), (4, 3, 4))]
    cases += [point("nca_loss", metric=metric) for metric in ("euclidean", "sqeuclidean", "manhattan")]
    for rank, wrong in enumerate(run(3, exactness, cases, [torch.float32], "blocked", "small", 1000.0)):
        assert not wrong, f"rank {rank}: " + "\n".join(wrong)


def pairs_of_a_group(sizes: tuple[int, ...], options: dict[str, Any], mode: str) -> list[str]:
    """What differs from the pairs of one process: indices, distances, and the gradient through both of them."""
    case = dict(loss="hardest_pairs", sizes=sizes, options={}) | POINTS
    wrong = []
    with running("blocked", "small"):
        for D, grid_of in ((5, False), (2, True)):
            x, labels = grid.batch(sum(sizes), D, classes=3)
            x = (4 * x).round() if grid_of else x  # many equal distances
            rank, at = dist.get_rank(), part(case, dist.get_rank())
            whole_x, own_x = x.clone().requires_grad_(), x[at].clone().requires_grad_()
            want = fusedloss.hardest_pairs(whole_x, labels, **options)
            got = GroupLoss(fusedloss.hardest_pairs, mode=mode)(own_x, labels[at], **options)
            for name, g, w in zip(got._fields, got, (t[at] for t in want), strict=True):
                if not torch.allclose(g, w, rtol=1e-12, atol=1e-12, equal_nan=True):
                    wrong.append(f"{name} {g}, not {w}")
            factor = torch.arange(1.0, 1 + sum(sizes))
            (want.positive_distance.nan_to_num() - 2 * want.negative_distance.nan_to_num()).mul(factor).sum().backward()
            own_sum = (
                (got.positive_distance.nan_to_num() - 2 * got.negative_distance.nan_to_num()).mul(factor[at]).sum()
            )
            own_sum.backward()
            if not torch.allclose(own_x.grad, whole_x.grad[at], rtol=1e-12, atol=1e-12):
                wrong.append(f"gradient {own_x.grad}, not {whole_x.grad[at]} of rank {rank}")
    return wrong


MINED = [("gather", "hardest"), ("gather", "easiest"), ("gather", "semihard"), ("ring", "hardest"), ("ring", "easiest")]


@pytest.mark.parametrize("sizes", [(7, 3), (0, 6), (5, 0, 8)])
@pytest.mark.parametrize(("mode", "negatives"), MINED)
def test_pairs_are_those_of_the_whole_batch(sizes, negatives, mode):
    for metric, positives in (("euclidean", "hardest"), ("cosine", "easiest"), ("manhattan", "hardest")):
        options = dict(metric=metric, positives=positives, negatives=negatives)
        for rank, wrong in enumerate(run(len(sizes), pairs_of_a_group, sizes, options, mode)):
            assert not wrong, f"rank {rank}, {options}: " + "\n".join(wrong)


def test_every_loss_of_a_batch_is_taken_and_every_other_refused():
    for row in CATALOG.values():
        if row.function in SHARED:
            assert GroupLoss(row.function).name == row.function.__name__
        else:
            with pytest.raises(TypeError, match=row.function.__name__):
                GroupLoss(row.function)
