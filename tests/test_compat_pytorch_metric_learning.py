"""`fusedloss.compat.pytorch_metric_learning` beside the library itself: calls drawn at random, and whole scripts."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch

from .libraries import library as installed

pml = installed("pytorch_metric_learning", "pytorch-metric-learning")

from pytorch_metric_learning import distances, losses, reducers  # noqa: E402

from fusedloss.compat import fused_calls  # noqa: E402
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
    """What a loss is drawn from."""

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
    """Those of the library, and at least 70 % fused."""
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
    """Where the library fails, or its value is another than its formula's: docs/from_pytorch_metric_learning.md."""
    name, reducer = call["kind"].name, call["reducer"] or ""
    if isinstance(want, type):  # pairs with more references than rows, and losses in a column, do not fit its N x N
        return reducer.startswith("anchor") and want in (IndexError, RuntimeError)
    in_a_column = ("MultiSimilarityLoss", "CircleLoss", "GeneralizedLiftedStructureLoss", "LiftedStructureLoss")
    if reducer == "weighted" and name in in_a_column:  # each loss is multiplied by every weight
        return True
    return bool(want.isnan().any())  # NCALoss without any positive pair
