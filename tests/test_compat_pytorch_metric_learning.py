"""`fusedloss.compat.pytorch_metric_learning` beside the library itself: calls drawn at random, and whole scripts."""

from __future__ import annotations

import pickle
import random
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fusedloss import use_backend
from fusedloss.compat import fused_calls
from fusedloss.compat.library import require

from . import processes
from .libraries import library as installed

pml = installed("pytorch_metric_learning", "pytorch-metric-learning")

from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

from fusedloss.compat import pytorch_metric_learning as compat  # noqa: E402

SEED = 19
CALLS = 1_600  # of the losses, drawn from everything below
D, C = 6, 5


def lp(**options: Any) -> Any:
    return distances.LpDistance(**options)


DISTANCES = {
    "euclidean": lambda: lp(),
    "unnormalised": lambda: lp(normalize_embeddings=False),
    "squared": lambda: lp(power=2),
    "manhattan": lambda: lp(p=1),
    "p=3": lambda: lp(p=3),
    "cosine": lambda: distances.CosineSimilarity(),
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "dot of unit rows": lambda: distances.DotProductSimilarity(),
    "snr": lambda: distances.SNRDistance(),
}
ANY = [None, None, None, *DISTANCES]  # None: the loss's own
COSINES = [None, None, "cosine"]
REDUCERS = {
    "mean": lambda: reducers.MeanReducer(),
    "sum": lambda: reducers.SumReducer(),
    "avg": lambda: reducers.AvgNonZeroReducer(),
    "threshold": lambda: reducers.ThresholdReducer(low=0.1),
    "weighted": lambda: reducers.ClassWeightedReducer(torch.arange(1.0, C + 1)),
    "anchor": lambda: reducers.PerAnchorReducer(),
    "anchor avg": lambda: reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
}
OF_ROWS = [None, None, *REDUCERS]


class Kind(NamedTuple):
    """The options and arguments from which calls of a loss are drawn."""

    name: str
    options: dict[str, list[Any]]
    distances: list[str | None] = ANY
    classes: bool = False
    refs: bool = True
    tuples: bool = True


KINDS = [
    Kind("ContrastiveLoss", {"pos_margin": [0, 0.2, 0.9], "neg_margin": [1, 0.5, 0.3]}),
    Kind("TripletMarginLoss", {"margin": [0.05, 0.3], "smooth_loss": [False, True], "swap": [False, False, True],
                               "triplets_per_anchor": ["all", "all", "all", 2]}),
    Kind("NTXentLoss", {"temperature": [0.07, 0.5, 1.0]}),
    Kind("SupConLoss", {"temperature": [0.1, 0.5]}),
    Kind("MultiSimilarityLoss", {"alpha": [2, 1.0], "beta": [50, 5.0], "base": [0.5, 0.0]}),
    Kind("CircleLoss", {"m": [0.4, 0.25], "gamma": [80, 4]}, COSINES),
    Kind("LiftedStructureLoss", {"neg_margin": [1, 0.5], "pos_margin": [0, 0.2]}),
    Kind("GeneralizedLiftedStructureLoss", {"neg_margin": [1, 0.5], "pos_margin": [0, 0.2]}),
    Kind("NCALoss", {"softmax_scale": [1, 3.0]}),
    Kind("MarginLoss", {"margin": [0.2, 0.5], "beta": [1.2, 0.8], "nu": [0, 0.1], "learn_beta": [False, True],
                        "num_classes": [None, C]}),
    Kind("SmoothAPLoss", {"temperature": [0.01, 0.2]}, COSINES, refs=False),
    Kind("ArcFaceLoss", {"margin": [28.6, 90.0], "scale": [64, 4]}, COSINES, classes=True, refs=False),
    Kind("SubCenterArcFaceLoss", {"margin": [28.6], "scale": [16], "sub_centers": [1, 3]}, COSINES, True, False),
    Kind("CosFaceLoss", {"margin": [0.35, 0.1], "scale": [64, 4]}, COSINES, classes=True, refs=False),
    Kind("NormalizedSoftmaxLoss", {"temperature": [0.05, 1.0]}, [None, "dot of unit rows", "cosine"], True, False),
    Kind("ProxyNCALoss", {"softmax_scale": [1, 3.0]}, ANY, classes=True, refs=False),
    Kind("ProxyAnchorLoss", {"margin": [0.1, 0.3], "alpha": [32, 4]}, ANY, classes=True, refs=False),
]  # fmt: skip


def draw(rng: random.Random) -> dict[str, Any]:
    """One call: a loss, its options, and what it is given."""
    kind = rng.choice(KINDS)
    options = {name: rng.choice(values) for name, values in kind.options.items()}
    if kind.classes:
        options |= {"num_classes": C, "embedding_size": D}
    # The library's SmoothAPLoss takes the number of classes for their size: the two are the same here.
    N = rng.choice([4, 9, 16] if kind.name == "SmoothAPLoss" else [2, 5, 8, 12, 20])
    refs = rng.choice([None, None, "same", "labels", "own"]) if kind.refs else None
    return {
        "kind": kind, "options": options, "distance": rng.choice(kind.distances), "reducer": rng.choice(OF_ROWS),
        "N": N, "M": rng.choice([4, 9, 25]), "refs": refs, "tuple": rng.choice([None, None, 3, 4]),
        "without_labels": rng.random() < 0.2, "few": rng.random() < 0.1, "seed": rng.randrange(1 << 30),
    }  # fmt: skip


def inputs(call: dict[str, Any]) -> dict[str, Any]:
    """Rows, labels, references, and a tuple as a miner lists it, some pairs of it twice."""
    g = torch.Generator().manual_seed(call["seed"])
    N, refs = call["N"], call["refs"]
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    labels = torch.randint(C, (N,), generator=g)
    if call["kind"].name == "SmoothAPLoss":
        labels = torch.arange(N) // int(N**0.5)
    given = {"embeddings": x, "labels": labels}
    y, y_labels = x, labels
    if refs is not None:
        M = N if refs == "labels" else call["M"]
        y = x if refs == "same" else torch.randn(M, D, generator=g, dtype=torch.float64)
        y_labels = labels if refs in ("same", "labels") else torch.randint(C, (M,), generator=g)
        given |= {"ref_emb": y, "ref_labels": y_labels}
    if call["tuple"] is not None:
        same = labels[:, None] == y_labels
        if y is x:
            same.fill_diagonal_(False)
        different = labels[:, None] != y_labels
        lists = triplets(same, different) if call["tuple"] == 3 else (*torch.where(same), *torch.where(different))
        chosen = [torch.randint(max(len(lists[i]), 1), (len(lists[i]),), generator=g) for i in (0, len(lists) - 1)]
        if call["few"]:
            chosen = [c[:1] for c in chosen]
        picks = [chosen[0]] * 3 if call["tuple"] == 3 else [chosen[0], chosen[0], chosen[1], chosen[1]]
        given["indices_tuple"] = tuple(index[pick] for index, pick in zip(lists, picks, strict=True))
        if call["without_labels"] and not call["kind"].classes:
            given |= {"labels": None} | ({"ref_labels": None} if refs is not None else {})
    return given


def triplets(same: torch.Tensor, different: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.where(same[:, :, None] & different[:, None])


def outcome(module: Any, call: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    """The value, or the error's type, and the gradients by the rows, the references and the parameters."""
    torch.manual_seed(call["seed"])
    options = {**call["options"]}
    if call["distance"] is not None:
        options["distance"] = DISTANCES[call["distance"]]()
    if call["reducer"] is not None:
        options["reducer"] = REDUCERS[call["reducer"]]()
    given = inputs(call)
    leaves = [given["embeddings"].requires_grad_()]
    if (refs := given.get("ref_emb")) is not None and refs is not given["embeddings"]:
        leaves.append(refs.requires_grad_())
    try:
        loss = getattr(module, call["kind"].name)(**options).double()
        leaves += loss.parameters()
        value = loss(**given)
    except Exception as error:
        return type(error), []
    if not value.requires_grad:
        return value, [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return value, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]


def test_values_and_gradients_of_random_calls() -> None:
    """Values and gradients are the library's, and at least 70 % of the calls are fused."""
    rng = random.Random(SEED)
    fused_calls(reset=True)
    ran = fused = 0
    while ran < CALLS:
        call = draw(rng)
        want, want_grads = outcome(losses, call)
        assert not fused_calls(reset=True), "the library itself is no drop-in"
        got, grads = outcome(compat.losses, call)
        calls = fused_calls(reset=True)
        if differs_on_purpose(call, want):
            continue
        if isinstance(want, type):
            assert got is want, (call, want, got)
            continue
        assert not isinstance(got, type), (call, got)
        ran, fused = ran + 1, fused + all(c.fused for c in calls)
        tolerance = 1e-8 if want.dtype == torch.float64 else 1e-5  # its SmoothAPLoss is float32 whatever the rows are
        close(call, got.reshape(()), want.reshape(()), tolerance)
        for a, b in zip(grads, want_grads, strict=True):
            close(call, a, b, max(tolerance, 1e-6))
    print(f"{ran} calls, {fused} fused ({fused / ran:.0%})")
    assert fused >= 0.7 * ran


def close(call: dict[str, Any], got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        got.double(), want.double(), rtol=tolerance, atol=tolerance * 0.1, msg=lambda m: f"{m}\n{call}"
    )  # fmt: skip


def differs_on_purpose(call: dict[str, Any], want: Any) -> bool:
    """Whether the library fails, or does not compute its own formula: see docs/from_pytorch_metric_learning.md."""
    name, reducer = call["kind"].name, call["reducer"] or ""
    if isinstance(want, type):  # pairs with more references than rows, and losses in a column, do not fit its N x N
        return reducer.startswith("anchor") and want in (IndexError, RuntimeError)
    in_a_column = ("MultiSimilarityLoss", "CircleLoss", "GeneralizedLiftedStructureLoss", "LiftedStructureLoss")
    if reducer == "weighted" and name in in_a_column:  # each loss is multiplied by every weight
        return True
    return bool(want.isnan().any())  # NCALoss without any positive pair


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [0], [0, 0, 1], []])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.refs], ids=lambda kind: kind.name)
def test_zero_rules(kind: Kind, labels: list[int]) -> None:
    """The library's values for no pair, one pair and few pairs, in a batch and with one reference."""
    x = torch.eye(D, dtype=torch.float64)[: len(labels)]
    y = torch.tensor(labels, dtype=torch.int64)
    for more in ({}, {"ref_emb": 0.5 + x[:1], "ref_labels": y[:1].clone()}):
        want = getattr(losses, kind.name)()(x, y, **more)
        if not want.isnan().any():
            torch.testing.assert_close(getattr(compat.losses, kind.name)()(x, y, **more), want)


@pytest.mark.parametrize("indices", [None, 3, 4])
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_kernels(kind: Kind, indices: int | None) -> None:
    """The same on interpreted kernels, in float32."""
    options = {"num_classes": C, "embedding_size": D} if kind.classes else {}
    call = {"kind": kind, "N": 9, "refs": None, "tuple": indices, "few": False, "without_labels": False, "seed": 5}
    given, values = inputs(call), []
    for module, dtype, backend in ((losses, torch.float64, "auto"), (compat.losses, torch.float32, "triton")):
        torch.manual_seed(1)
        loss = getattr(module, kind.name)(**options).to(dtype)
        x = given["embeddings"].detach().to(dtype).requires_grad_()
        with use_backend(backend):
            value = loss(**(given | {"embeddings": x}))
        values.append([value, *torch.autograd.grad(value, x)])
    for want, got in zip(*values, strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=2e-4, atol=2e-5)


# ------------------------------------------------------------------------------------------------ miners and wrappers

STRATEGIES = ("hard", "easy", "semihard", "all")
MINERS = [
    ("BatchHardMiner", {}),
    *(("BatchEasyHardMiner", {"pos_strategy": p, "neg_strategy": n}) for p in STRATEGIES for n in STRATEGIES
      if not {p, n} <= {"semihard", "all"} or (p, n) == ("all", "all")),
    ("BatchEasyHardMiner", {"pos_strategy": "hard", "neg_strategy": "hard", "allowed_neg_range": (0.2, 1.2)}),
    *(("TripletMarginMiner", {"margin": 0.3, "type_of_triplets": t}) for t in ("all", "hard", "semihard", "easy")),
    ("MultiSimilarityMiner", {"epsilon": 0.2}),
    ("PairMarginMiner", {"pos_margin": 0.6, "neg_margin": 0.9}),
]  # fmt: skip


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of the distance matrix at a time, so that rows and pairs come in several parts."""
    monkeypatch.setattr(compat.miners, "CHUNK", 90)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("refs", [None, "own", "labels"])
@pytest.mark.parametrize("distance", [None, "euclidean", "cosine", "squared"])
@pytest.mark.parametrize(("name", "options"), MINERS, ids=lambda v: v if isinstance(v, str) else "")
def test_miners(name: str, options: dict[str, Any], distance: str | None, refs: str | None) -> None:
    """The same indices in the same order."""
    g = torch.Generator().manual_seed(3)
    if distance is not None:
        options = options | {"distance": DISTANCES[distance]()}
    for N, labels in ((30, torch.randint(C, (30,), generator=g)), (6, torch.zeros(6).long()), (6, torch.arange(6))):
        given = [torch.randn(N, D, generator=g, dtype=torch.float64), labels]
        if refs is not None:
            M = N if refs == "labels" else 40
            rows = torch.randn(M, D, generator=g, dtype=torch.float64)
            given += [rows, labels if refs == "labels" else torch.randint(C, (M,), generator=g)]
        want = getattr(miners, name)(**options)(*given)
        got = getattr(compat.miners, name)(**options)(*given)
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b), (name, options, N)


def test_which_miners_are_fused() -> None:
    x, labels = torch.randn(20, D), torch.arange(20) % C
    fused_calls(reset=True)
    for name in (
        "BatchHardMiner",
        "BatchEasyHardMiner",
        "TripletMarginMiner",
        "MultiSimilarityMiner",
        "PairMarginMiner",
    ):
        getattr(compat.miners, name)()(x, labels)
    calls = fused_calls(reset=True)
    assert len(calls) == 5 and all(call.fused for call in calls), calls


def test_the_miner_that_collects_stats_collects_those_of_the_library() -> None:
    x, labels = torch.randn(20, D, dtype=torch.float64), torch.arange(20) % C
    ours, theirs = (module.BatchHardMiner(collect_stats=True) for module in (compat.miners, miners))
    ours(x, labels), theirs(x, labels)
    for stat in theirs._record_these_stats:
        assert getattr(ours, stat) == pytest.approx(getattr(theirs, stat)), stat


LISTED = ("ContrastiveLoss", "TripletMarginLoss", "NTXentLoss")
MEMORIES = [
    ("ContrastiveLoss", {}), ("TripletMarginLoss", {"margin": 0.3}), ("NTXentLoss", {"temperature": 0.5}),
    ("SupConLoss", {}), ("MultiSimilarityLoss", {}), ("CircleLoss", {"gamma": 4}), ("NCALoss", {}),
    ("MarginLoss", {}), ("GeneralizedLiftedStructureLoss", {}), ("LiftedStructureLoss", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "use"),
    # Rows of the batch are not rows of the memory: most losses of the library refuse such tuples.
    [(*memory, use) for memory in MEMORIES for use in ("", "miner", "mask")]
    + [(*memory, "tuple") for memory in MEMORIES if memory[0] in LISTED],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_cross_batch_memory(name: str, options: dict[str, Any], use: str) -> None:
    """Batches through a ring of 25 rows, which begins anew in the middle of one."""
    found = []
    for modules in ((losses, miners), (compat.losses, compat.miners)):
        g = torch.Generator().manual_seed(11)
        miner = modules[1].MultiSimilarityMiner() if use == "miner" else None
        memory = modules[0].CrossBatchMemory(getattr(modules[0], name)(**options), D, memory_size=25, miner=miner)
        memory = memory.double()
        values = []
        for _ in range(6):
            x = torch.randn(8, D, generator=g, dtype=torch.float64, requires_grad=True)
            labels = torch.randint(3, (8,), generator=g)
            more: dict[str, Any] = {}
            if use == "mask":
                more["enqueue_mask"] = torch.arange(8) >= 4
            elif use == "tuple":
                more["indices_tuple"] = pml.utils.loss_and_miner_utils.get_all_pairs_indices(labels)
            loss = memory(x, labels, **more)
            values += [loss, *torch.autograd.grad(loss, x)]
        found.append([*values, memory.embedding_memory, memory.label_memory])
    calls = {(call.loss, call.fused) for call in fused_calls(reset=True)}
    if use in ("", "mask"):
        assert ("CrossBatchMemory", True) in calls
        assert name == "LiftedStructureLoss" or (name, True) in calls
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss", "ContrastiveLoss", "TripletMarginLoss"])
def test_self_supervised(name: str, symmetric: bool) -> None:
    x, views = (torch.randn(9, D, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fused_calls(reset=True)
    found = []
    for module in (losses, compat.losses):
        loss = module.SelfSupervisedLoss(getattr(module, name)(), symmetric=symmetric)(x, views)
        found.append([loss, *torch.autograd.grad(loss, (x, views))])
    assert [call.fused for call in fused_calls(reset=True)] == [True]
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def wrapped() -> list[tuple[str, bool, float]]:
    """How far the wrapper's loss and gradient are from the library's, on one of several processes."""
    from pytorch_metric_learning.utils import distributed as theirs

    ours, found = compat.utils.distributed, []
    g = torch.Generator().manual_seed(torch.distributed.get_rank())
    x = torch.randn(6, D, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (6,), generator=g)
    for efficient in (False, True):
        for name in ("ContrastiveLoss", "SupConLoss", "TripletMarginLoss", "NTXentLoss"):
            want = theirs.DistributedLossWrapper(getattr(losses, name)(), efficient=efficient)(x, labels)
            fused_calls(reset=True)
            got = ours.DistributedLossWrapper(getattr(compat.losses, name)(), efficient=efficient)(x, labels)
            (fused,) = {call.fused for call in fused_calls(reset=True)}
            grads = [torch.autograd.grad(loss, x)[0] for loss in (want, got)]
            apart = max(float((want - got).detach().abs()), float((grads[0] - grads[1]).abs().max()))
            found.append((name, fused, apart))
    return found


def test_distributed_wrapper() -> None:
    for of_rank in processes.run(2, wrapped):
        for name, fused, apart in of_rank:
            assert fused and apart < 1e-9, (name, fused, apart)


# --------------------------------------------------------------------------------------------------- modules as such


def test_checkpoints_load_both_ways() -> None:
    for name, options in (("ArcFaceLoss", {}), ("SubCenterArcFaceLoss", {}), ("ProxyAnchorLoss", {}),
                          ("MarginLoss", {"learn_beta": True})):  # fmt: skip
        sizes = {"num_classes": C} | ({} if name == "MarginLoss" else {"embedding_size": D})
        theirs, ours = (getattr(module, name)(**sizes, **options) for module in (losses, compat.losses))
        assert isinstance(ours, getattr(losses, name)) and type(ours).__name__ == name
        ours.load_state_dict(theirs.state_dict())
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
        theirs.load_state_dict(ours.state_dict())
        copy = pickle.loads(pickle.dumps(ours))
        assert type(copy) is type(ours)


def test_regularizers_reducers_and_parts() -> None:
    """What the library adds to a loss, and what a reducer that does nothing gives."""
    from pytorch_metric_learning import regularizers

    x, labels = torch.randn(12, D, dtype=torch.float64), torch.arange(12) % C
    for name in ("ArcFaceLoss", "ProxyAnchorLoss", "SupConLoss", "ContrastiveLoss"):
        classes = {"num_classes": C, "embedding_size": D} if name in ("ArcFaceLoss", "ProxyAnchorLoss") else {}
        for reducer in (None, reducers.DoNothingReducer()):
            values = []
            for module in (losses, compat.losses):
                torch.manual_seed(2)
                more = {"weight_regularizer": regularizers.RegularFaceRegularizer()} if classes else {}
                loss = getattr(module, name)(
                    **classes, **more, embedding_regularizer=regularizers.LpRegularizer(), reducer=reducer
                )  # fmt: skip
                values.append(loss.double()(x, labels))
            if reducer is None:
                torch.testing.assert_close(values[1], values[0], rtol=1e-8, atol=1e-9)
            else:
                assert values[0].keys() == values[1].keys()
                for part in values[0]:
                    torch.testing.assert_close(
                        values[1][part]["losses"], values[0][part]["losses"], rtol=1e-8, atol=1e-9
                    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.float32])
def test_labels_of_any_dtype(dtype: torch.dtype) -> None:
    x, labels = torch.randn(12, D, dtype=torch.float64), (torch.arange(12) % 2).to(dtype)
    for name in ("ContrastiveLoss", "SupConLoss", "TripletMarginLoss"):
        torch.testing.assert_close(getattr(compat.losses, name)()(x, labels), getattr(losses, name)()(x, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """The loss is float32, and as exact as the loss of the same rows in float64; a weight keeps its dtype."""
    x, labels = torch.randn(12, D).to(dtype), torch.arange(12) % C
    for name in ("ContrastiveLoss", "SupConLoss", "ArcFaceLoss"):
        classes = {"num_classes": C, "embedding_size": D} if name == "ArcFaceLoss" else {}
        loss = getattr(compat.losses, name)(**classes)
        exact = getattr(losses, name)(**classes).double()
        for parameter, copied in zip(exact.parameters(), loss.parameters(), strict=True):
            parameter.data = copied.data.to(dtype).double()
        got = loss(x, labels)
        assert [p.dtype for p in loss.parameters()] == [torch.float32] * len(classes.keys() & {"num_classes"})
        if name != "ContrastiveLoss":  # two parts are added up by the library's own reducer, in its dtype
            assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact(x.double(), labels), rtol=2e-2, atol=1e-2)


def test_listed_rows_that_are_none_are_refused() -> None:
    """An index out of range is an error, and one below 0 counts from the end, as in the library."""
    x, labels = torch.randn(6, D, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    last, wrong = (tuple(torch.tensor([i, i]) for i in (0, 1, n)) for n in (-1, 6))
    for name in ("ContrastiveLoss", "TripletMarginLoss", "SupConLoss"):
        ours, theirs = (getattr(module, name)() for module in (compat.losses, losses))
        torch.testing.assert_close(ours(x, labels, last), theirs(x, labels, last))
        for loss in (ours, theirs):
            with pytest.raises(IndexError):
                loss(x, labels, wrong)


def test_known_faults_are_not_copied() -> None:
    x = torch.randn(4, D, requires_grad=True)
    assert losses.NCALoss()(x, torch.arange(4)).isnan()
    assert compat.losses.NCALoss()(x, torch.arange(4)) == 0
    pair = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    theirs, ours = (module.NTXentLoss(temperature=0.005)(pair, labels) for module in (losses, compat.losses))
    assert theirs < 88 < ours and torch.autograd.grad(ours, pair)[0].abs().max() > 0
    arc = {"num_classes": 3, "embedding_size": D}
    exact = torch.eye(D)[:3].requires_grad_()
    found = []
    for module in (losses, compat.losses):
        loss = module.ArcFaceLoss(**arc)
        loss.W.data = torch.eye(D)[:, :3]
        found.append(torch.autograd.grad(loss(exact, torch.arange(3)), exact)[0])
    assert found[0].isnan().any() and found[1].isfinite().all()


def test_listed_pairs_need_no_matrix() -> None:
    """Forward and backward of listed pairs make no tensor of N x N elements, and none with one row per pair."""
    N, P = 3000, 40_000
    x, a = torch.randn(N, 64, requires_grad=True), torch.randint(N, (P,))
    p, n = 2 * torch.randint(N // 2, (P,)), 2 * torch.randint(N // 2, (P,)) + 1
    for name in ("SupConLoss", "MultiSimilarityLoss", "ContrastiveLoss", "TripletMarginLoss", "NTXentLoss"):
        loss = getattr(compat.losses, name)()
        with Largest() as largest:
            value = loss(x, indices_tuple=(a, p, n))
            value.backward()
        assert largest.seen < min(N * N, P * 64) / 4, (name, largest.seen)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation returns."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(found)[0]:
            if isinstance(tensor, torch.Tensor):
                self.seen = max(self.seen, tensor.numel())
        return found


SCRIPT = """
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

torch.manual_seed(0)
model = torch.nn.Linear(8, 4)
data, labels = torch.randn(96, 8), torch.randint(5, (96,))
distance = distances.CosineSimilarity()
reducer = reducers.ThresholdReducer(low=0)
triplets = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducer)
mining = miners.TripletMarginMiner(margin=0.2, distance=distance, type_of_triplets="semihard")
arcface = losses.ArcFaceLoss(num_classes=5, embedding_size=4)
hard = miners.MultiSimilarityMiner()
memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=4, memory_size=64, miner=hard)
loss_optimizer = torch.optim.SGD(arcface.parameters(), lr=0.01)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
values = []
for epoch in range(3):
    for rows, classes in zip(data.split(32), labels.split(32)):
        optimizer.zero_grad()
        loss_optimizer.zero_grad()
        embeddings = model(rows)
        indices_tuple = mining(embeddings, classes)
        parts = triplets(embeddings, classes, indices_tuple), arcface(embeddings, classes), memory(embeddings, classes)
        loss = sum(parts)
        loss.backward()
        optimizer.step()
        loss_optimizer.step()
        values.append(loss.item())
"""


def test_a_script_as_the_documentation_has_it() -> None:
    """With one import changed, the loss of every step stays the same."""
    fused_calls(reset=True)
    found = []
    changed = SCRIPT.replace(
        "from pytorch_metric_learning import", "from fusedloss.compat.pytorch_metric_learning import"
    )
    for text in (SCRIPT, changed):
        names: dict[str, Any] = {}
        exec(text, names)
        found.append(names["values"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    calls = fused_calls(reset=True)
    assert {call.loss for call in calls if call.fused} >= {
        "ArcFaceLoss", "ContrastiveLoss", "MultiSimilarityMiner", "TripletMarginLoss", "TripletMarginMiner",
    }  # fmt: skip
    assert [call.loss for call in calls if not call.fused] == ["CrossBatchMemory"]  # of a miner


def test_everything_else_is_handed_through() -> None:
    from fusedloss.compat.pytorch_metric_learning import distances as handed

    assert handed is distances
    assert compat.losses.AngularLoss is losses.AngularLoss
    assert compat.testers.BaseTester
    assert "AngularLoss" in dir(compat.losses)
    with pytest.raises(AttributeError, match="has a 'NoLoss'"):
        compat.losses.NoLoss  # noqa: B018


@pytest.mark.parametrize("given", [None, "2.1.0"])
def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    if given is None:
        monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    else:
        monkeypatch.setattr("fusedloss.compat.library.version", lambda _: given)
    with pytest.raises(ImportError, match=r"pip install 'fusedloss\[pytorch-metric-learning\]'"):
        require("pytorch_metric_learning", "pytorch-metric-learning", "2.9", "pytorch-metric-learning")
