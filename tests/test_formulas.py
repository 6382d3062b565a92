"""The formulas of tests/formulas and the dense reference, written apart from each other, agree in all values."""

import inspect

import pytest
import torch

import fusedloss
from fusedloss import reference
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.options import rules_of
from tests.compare import differentiate
from tests.formulas import FORMULAS
from tests.grid import (
    ELEMENTS,
    GIVEN_LOGITS,
    IGNORED,
    IN_BATCH,
    LOSSES,
    METRICS,
    REFS,
    batch,
    covering,
    example,
    ignoring,
    named,
    reductions,
    references,
)

N, M, D = 9, 7, 5
LEFT_OUT = "left out"  # the default of an option


def learned(*values):
    """A tensor option; `differentiate` returns its gradient."""
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def spread(n, low=0.3, high=1.7):
    """A weight for each of n rows or classes."""
    return torch.linspace(low, high, n, dtype=torch.float64)


SIMILAR = {"similar": (1, 0), "targets": ("whole", "bool", "signed", "graded")}
TEMPERATURE = {"temperature": (LEFT_OUT, 0.6, learned(0.8))}
ON_COSINES = {
    "label_smoothing": (0.0, 0.2),
    "class_weight": (None, spread(M)),
    "sub_centers": (1, 3),
    "scale": (LEFT_OUT, 3.0, learned(5.0)),
}
NEGATIVES = {"positives": ("hardest", "easiest"), "negatives": ("hardest", "easiest", "semihard")}
LIFTED = {"neg_margin": (LEFT_OUT, 0.4), "pos_margin": (LEFT_OUT, 0.3), "normalize": (True, False)}
TOWERS = {"ids": (False, True), "keys": ("as many", "more")}
# A few values of every option of every loss, besides the axes that several losses share.
OPTIONS = {
    "contrastive_loss": {**SIMILAR, "margin": (LEFT_OUT, 1.7, learned(1.3))},
    "euclidean_distance_loss": {**SIMILAR, "margin": (LEFT_OUT, 1.7, learned(1.3))},
    "cosine_similarity_loss": {**SIMILAR, "targets": (*SIMILAR["targets"], "none")},
    "cosine_embedding_loss": {**SIMILAR, "margin": (LEFT_OUT, 0.4, -0.3, learned(-0.1))},
    "cosent_loss": {"scale": (LEFT_OUT, 2.0, learned(3.0)), "targets": ("whole", "bool", "graded")},
    "pairwise_contrastive_loss": {
        "pos_margin": (LEFT_OUT, 0.7, learned(0.4)),
        "neg_margin": (LEFT_OUT, 1.6, learned(1.4)),
        "power": (2, 1),
    },
    "margin_loss": {
        "margin": (LEFT_OUT, 0.4, learned(0.3)),
        "beta": (LEFT_OUT, 0.9, learned(1.4), learned(1.0, 1.3, 0.8)),
    },
    "triplet_margin_loss": {
        "margin": (LEFT_OUT, 0.3, learned(0.6)),
        "swap": (False, True),
        "soft_margin": (False, True),
        "eps": (LEFT_OUT, 0.0, 0.1),
    },
    "batch_hard_triplet_loss": {
        "margin": (LEFT_OUT, 0.7, learned(0.5)),
        "soft_margin": (False, True),
        **NEGATIVES,
    },
    "batch_semihard_triplet_loss": {"margin": (LEFT_OUT, 0.7, learned(0.5))},
    "batch_all_triplet_loss": {
        "margin": (LEFT_OUT, 0.7, learned(0.5)),
        "soft_margin": (False, True),
        "triplets": ("all", "hard", "semihard", "easy"),
    },
    "info_nce_loss": {
        **TEMPERATURE,
        **TOWERS,
        "in_batch_negatives": (True, False),
        "symmetric": (False, True),
        "negatives": (False, True),
        "hard_negatives": (False, True),
        "key_bias": (False, True),
    },
    "nt_xent_loss": TEMPERATURE,
    "decoupled_contrastive_loss": {**TEMPERATURE, "sigma": (LEFT_OUT, 0.5)},
    "clip_loss": {**TOWERS, "logit_bias": (LEFT_OUT, 0.5, learned(-0.5))},
    "siglip_loss": {**TOWERS, "keys": ("as many", "more", "of nobody")},
    "n_pair_loss": {"l2_reg": (LEFT_OUT, 0.3)},
    "supcon_loss": TEMPERATURE,
    "pairwise_nt_xent_loss": TEMPERATURE,
    "nca_loss": TEMPERATURE,
    "multi_similarity_loss": {"alpha": (LEFT_OUT, 0.7), "beta": (LEFT_OUT, 3.0), "base": (LEFT_OUT, 0.1)},
    "circle_loss": {"margin": (LEFT_OUT, 0.1), "gamma": (LEFT_OUT, 2.0)},
    "generalized_lifted_structure_loss": LIFTED,
    "lifted_structure_loss": LIFTED,
    "smooth_ap_loss": {"temperature": (LEFT_OUT, 0.3)},
    "recall_at_k_loss": {
        "temperature": (LEFT_OUT, 0.3),
        "k_temperature": (LEFT_OUT, 0.2),
        "k": (LEFT_OUT, (1,), (3, 1)),
    },
    "linear_cross_entropy_loss": {
        "bias": (None, spread(M)),
        "gamma": (LEFT_OUT, 0.5, 2.0),
        "class_weight": (None, spread(M)),
        "z_loss": (LEFT_OUT, 0.2),
        "softcap": (None, 0.7),
        "label_smoothing": (0.0, 0.2),
    },
    # Some angles and the margin of 2 are beyond pi together.
    "arcface_loss": {**ON_COSINES, "margin": (LEFT_OUT, 2.0, learned(0.7), spread(N, -0.3, 2.5))},
    "cosface_loss": {**ON_COSINES, "margin": (LEFT_OUT, 0.1, learned(0.7), spread(N, -0.3, 0.5))},
    "normalized_softmax_loss": {k: v for k, v in ON_COSINES.items() if k != "scale"} | TEMPERATURE,
    "proxy_nca_loss": {"scale": (LEFT_OUT, 3.0, learned(2.0))},
    "proxy_anchor_loss": {"margin": (LEFT_OUT, 0.3, learned(0.2)), "alpha": (LEFT_OUT, 3.0, learned(2.0))},
    "center_loss": {},
    "island_loss": {"weight": (LEFT_OUT, 0.3)},
    "cross_entropy_loss": {
        "weight": (None, spread(D)),
        "label_smoothing": (0.0, 0.2, 1.0),
        "targets": ("whole", "probabilities"),
        "places": (False, True),
    },
    "focal_loss": {"weight": (None, spread(D)), "gamma": (LEFT_OUT, 0.0, 0.5), "places": (False, True)},
    "binary_cross_entropy_loss": {
        "weight": (None, spread(N)[:, None]),
        "pos_weight": (None, spread(D)),
        "targets": ("whole", "bool", "graded"),
    },
    "sigmoid_focal_loss": {
        "alpha": (LEFT_OUT, -1, 0.6),
        "gamma": (LEFT_OUT, 0.0, 0.5),
        "targets": ("whole", "bool", "graded"),
    },
}


def axes_of(loss):
    """Every option of a loss and every axis of its inputs, with a few values each."""
    axes = dict(OPTIONS[loss.__name__])
    parameters = inspect.signature(loss).parameters
    if reductions(loss):
        axes["reduction"] = reductions(loss)
    if "metric" in parameters:
        axes["metric"] = rules_of(loss)["metric"].keywords["allowed"]
    if "ignore_index" in parameters:
        axes["ignored"] = IGNORED
    if loss in IN_BATCH:
        axes["refs"] = REFS
    return axes


def possible(case):
    """Whether a call takes these values together."""
    return not (
        (case.get("similar") == 0 and case.get("targets") == "signed")
        or (case.get("targets") == "probabilities" and case.get("ignored") is not None)
        or (case.get("in_batch_negatives") is False and case["symmetric"])
        or (case.get("in_batch_negatives") is False and not (case["negatives"] or case["hard_negatives"]))
        or (case.get("symmetric") and case["keys"] == "more")
        or (case.get("soft_margin") and case.get("triplets") == "semihard" and case["margin"] is LEFT_OUT)
    )


INPUTS = ("refs", "ignored", "targets", "keys", "ids", "places", "negatives", "hard_negatives", "key_bias")


def arguments_of(loss, case):
    """The tensors and options of a call."""
    tensors = CATALOG[loss.__name__].tensors
    arguments = example(loss, N, D, M=M, sub_centers=case.get("sub_centers", 1))
    full = example(loss, N, D, M=M, refs=True)
    for name, value in case.items():
        if (name not in INPUTS or (name == "negatives" and isinstance(value, str))) and value is not LEFT_OUT:
            arguments[name] = value
    if "refs" in case:
        y, y_labels = batch(M, D, classes=2, seed=7)
        arguments |= references(case["refs"], arguments["embeddings"], arguments["labels"], y.float(), y_labels)
    for name in ("negatives", "hard_negatives", "key_bias", "ids"):
        if case.get(name) is True:
            arguments[name] = full[name]
    if case.get("keys", "as many") != "as many":
        put_among_more_keys(arguments, tensors, case)
    if "targets" in case:
        put_targets(arguments, case["targets"])
    if case.get("places"):
        arguments["logits"] = torch.stack([arguments["logits"], arguments["logits"].roll(2, 1)], 2)
        again = (arguments["target"], arguments["target"].roll(1, 0))
        arguments["target"] = torch.stack(again, 2 if again[0].dim() == 2 else 1)
    label = case.get("ignored")
    if label is None:
        return arguments
    if loss in GIVEN_LOGITS:
        gone = (arguments["target"] == label).unsqueeze(1)
        return arguments | dict(logits=arguments["logits"].masked_fill(gone, torch.nan), ignore_index=label)
    return ignoring(label, arguments)


def put_among_more_keys(arguments, tensors, case):
    """Keys of other rows before and behind those of the batch."""
    (keys,) = (name for name, role in tensors.items() if role is Role.KEYS)
    more, _ = batch(4, D, seed=8)
    arguments[keys] = torch.cat([more[:3].float(), arguments[keys], more[3:].float()])
    arguments["offset"] = None if case["keys"] == "of nobody" else 3
    if case["ids"]:
        (ids,) = (name for name, role in tensors.items() if role is Role.KEY_IDS)
        arguments[ids] = torch.cat([torch.tensor([0, 2, 50]), arguments["ids"], torch.tensor([1])])
    if "key_bias" in arguments:
        arguments["key_bias"] = arguments[keys][:, 0] / 2


def put_targets(arguments, kind):
    """Another kind of target. None of them requires a gradient, which only probabilities receive."""
    whole = arguments.pop("target", torch.arange(N) % 2)
    if kind == "probabilities":
        arguments["target"] = batch(N, D, seed=9)[0].softmax(1)
    elif kind == "graded":
        arguments["target"] = torch.linspace(0, 1, whole.numel(), dtype=torch.float64).view(whole.shape)
    elif kind != "none":
        arguments["target"] = {"whole": whole, "bool": whole > 0, "signed": 2 * (whole % 2) - 1}[kind]


def constants(loss, arguments):
    """The floating arguments that receive no gradient."""
    found = ["class_weight", "pos_weight"]
    if loss in GIVEN_LOGITS + ELEMENTS:
        found.append("weight")
    if loss is not fusedloss.cross_entropy_loss:
        found.append("target")
    return found


def compare(loss, arguments):
    """Assert that value and gradients are equal."""
    constant = constants(loss, arguments)
    if loss in ELEMENTS:  # the reference does not compute with targets of another dtype than that of the logits
        arguments = arguments | dict(target=arguments["target"].double())
    want = differentiate(FORMULAS[loss.__name__], arguments, torch.float64, "cpu", constant)
    found = differentiate(getattr(reference, loss.__name__), arguments, torch.float64, "cpu", constant)
    assert found.keys() <= want.keys()
    for name, exact in want.items():  # no gradient is one of 0: the reference mines no references for no rows
        assert_equal(name, found.get(name, torch.zeros_like(exact)), exact)


def assert_equal(name, found, exact):
    """Equal to 1e-9 of the largest entry; or of 1e-4 where that is less, for a gradient that is exactly 0 because its
    parts cancel, as that of `logit_bias`."""
    assert found.shape == exact.shape, name
    if exact.numel():
        assert exact.isfinite().all(), f"{name} is not finite"
        error, size = (found - exact).abs().max().item(), exact.abs().max().item()
        assert error <= 1e-9 * max(size, 1e-4), f"{name}: error {error:.3g}, size {size:.3g}"


def cases_of(loss):
    """Cases in which every two values of two axes occur together, if a call takes them together."""
    axes = axes_of(loss)
    numbered = {name: range(len(values)) for name, values in axes.items()}  # tensors cannot be told apart by ==
    for case in covering(numbered, min(2, len(axes))):
        yield {name: axes[name][k] for name, k in case.items()}


CASES = [
    pytest.param(loss, case, id="-".join([loss.__name__, *(f"{k}={short(v)}" for k, v in case.items())]))
    for short in [lambda v: f"learned{list(v.shape)}" if isinstance(v, torch.Tensor) else named(v)]
    for loss in LOSSES
    for case in cases_of(loss)
    if possible(case)
]


def test_every_public_loss_has_a_formula():
    assert {*FORMULAS} == {loss.__name__ for loss in LOSSES} | {"hardest_pairs"} == {*OPTIONS, "hardest_pairs"}
    for name, formula in FORMULAS.items():
        ours, theirs = (inspect.signature(f).parameters for f in (formula, getattr(fusedloss, name)))
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


@pytest.mark.parametrize(("loss", "case"), CASES)
def test_options(loss, case):
    compare(loss, arguments_of(loss, case))


@pytest.mark.parametrize(
    ("loss", "options"),
    [(loss, options) for loss in LOSSES for options in ({}, *CATALOG[loss.__name__].variants)],
    ids=named,
)
def test_variants(loss, options):
    sub_centers = options.get("sub_centers", 1)
    for reduction in reductions(loss) or (None,):
        reduced = {} if reduction is None else dict(reduction=reduction)
        for refs in (False, True):
            arguments = example(loss, 8, D, refs=refs, sub_centers=sub_centers)
            compare(loss, arguments | options | reduced)


MINED = covering({**NEGATIVES, "metric": METRICS, "ignored": IGNORED, "refs": REFS}, 2)


def compare_pairs(arguments):
    """Assert that the mined pairs are the same rows, and their distances and gradients equal."""
    found, want = {}, {}
    for function, outputs in ((reference.hardest_pairs, found), (FORMULAS["hardest_pairs"], want)):

        def distance(function=function, outputs=outputs, **inputs):
            pairs = function(**inputs)
            outputs["index"] = torch.stack([pairs.positive_index, pairs.negative_index])
            apart = torch.stack([pairs.positive_distance, pairs.negative_distance])
            assert torch.equal(apart.isnan(), outputs["index"] == -1)
            return apart.where(outputs["index"] >= 0, 0.0).flatten()

        outputs |= differentiate(distance, arguments, torch.float64, "cpu", ())
    assert torch.equal(found.pop("index"), want.pop("index"))
    assert found.keys() == want.keys()
    for name, exact in want.items():
        assert_equal(name, found[name], exact)


@pytest.mark.parametrize("case", MINED, ids=lambda case: "-".join(map(named, case.values())))
def test_hardest_pairs(case):
    arguments = example(fusedloss.hardest_pairs, N, D)
    y, y_labels = batch(M, D, classes=2, seed=7)
    arguments |= references(case["refs"], arguments["embeddings"], arguments["labels"], y.float(), y_labels)
    options = {name: case[name] for name in ("metric", "positives", "negatives")}
    compare_pairs(ignoring(case["ignored"], arguments) | options)


def degenerate(loss, kind):
    """A batch that lacks something, or has equal or zero rows of whole numbers: equal rows are at distance 0."""
    size = {"no rows": 0, "one row": 1}.get(kind, 8)
    arguments = example(loss, size, D, M=9)
    for name in ("labels", "target"):
        if name in arguments and arguments[name].dim() == 1 and kind in ("one class", "all different"):
            labels = torch.arange(size) if kind == "all different" else torch.zeros(size, dtype=torch.long)
            most = 2 if loss not in IN_BATCH and "x1" in arguments and loss is not fusedloss.cosent_loss else 9
            arguments[name] = labels % (D if loss in GIVEN_LOGITS else most)
    for name, value in arguments.items():
        if value.is_floating_point() and value.dim() > 1 and kind in ("equal rows", "zero rows"):
            value = (4 * value).round()
            half = len(value) // 2
            if kind == "equal rows":
                value[half : 2 * half] = value[:half]
            else:
                value[::3] = 0
            arguments[name] = value
    return arguments


# At a kink the last bit decides, and the reference has it otherwise: its distance of equal rows that it scaled is up to
# 1e-8, and its cosine of rows at a right angle is not exactly 0.
OFF_KINKS = {
    fusedloss.generalized_lifted_structure_loss: dict(normalize=False),
    fusedloss.lifted_structure_loss: dict(normalize=False),
    fusedloss.cosine_embedding_loss: dict(margin=-0.1),
}
KINDS = ("no rows", "one row", "one class", "all different", "equal rows", "zero rows")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES, ids=named)
def test_degenerate_batches(loss, kind):
    arguments = degenerate(loss, kind)
    among = {}
    if loss in IN_BATCH:
        others = degenerate(loss, "equal rows")
        given = [arguments["embeddings"], arguments["labels"], others["embeddings"], others["labels"]]
        among = references("among", *given)
    apart = OFF_KINKS.get(loss, {}) if kind in ("equal rows", "zero rows") else {}
    for options in (apart, *CATALOG[loss.__name__].variants):
        if "sub_centers" in options:
            continue
        for reduction in reductions(loss) or (None,):
            reduced = {} if reduction is None else dict(reduction=reduction)
            compare(loss, arguments | options | reduced)
            if among and reduction == "mean":
                compare(loss, arguments | options | reduced | among)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_hardest_pairs_of_degenerate_batches(kind, metric):
    for negatives in NEGATIVES["negatives"]:
        for positives in NEGATIVES["positives"]:
            options = dict(metric=metric, positives=positives, negatives=negatives)
            compare_pairs(degenerate(fusedloss.hardest_pairs, kind) | options)


def lattice(loss):
    """Points of a small lattice: many distances are equal, and many are a margin, or a margin apart."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([3, 1, 0, 2, 1, 3, 2, 0, 1, 3, 0, 2])
    rows = [torch.randint(-2, 3, (12, 2), generator=generator).float() for _ in range(3)]
    if loss is fusedloss.triplet_margin_loss:
        return dict(zip(("anchor", "positive", "negative"), rows, strict=True)) | dict(eps=0.0)
    if loss is fusedloss.batch_semihard_triplet_loss:  # the reference takes the first row, not that of the lowest label
        labels = labels.sort().values
    if loss in [*IN_BATCH, fusedloss.hardest_pairs]:
        return dict(embeddings=rows[0], labels=labels)
    return dict(x1=rows[0], x2=rows[1], target=labels % 2)


AT_KINKS = {
    "pairwise_contrastive_loss": [dict(pos_margin=1.0, neg_margin=2.0, power=power) for power in (1, 2)],
    "margin_loss": [dict(margin=0.5, beta=1.5)],
    "contrastive_loss": [dict(margin=2.0)],
    "triplet_margin_loss": [dict(swap=swap) for swap in (False, True)],
    "batch_hard_triplet_loss": [dict(margin=1.0, negatives=kind) for kind in NEGATIVES["negatives"]],
    "batch_semihard_triplet_loss": [dict(margin=1.0)],
    "batch_all_triplet_loss": [
        dict(margin=1.0, triplets=kind) for kind in OPTIONS["batch_all_triplet_loss"]["triplets"]
    ],
}


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "manhattan"])
@pytest.mark.parametrize("name", AT_KINKS)
def test_ties_and_kinks(name, metric):
    loss = getattr(fusedloss, name)
    for options in AT_KINKS[name]:
        for reduction in reductions(loss):
            compare(loss, lattice(loss) | options | dict(metric=metric, reduction=reduction))


def test_of_negatives_at_one_distance_the_first_of_the_lowest_label_is_semihard():
    x = torch.tensor([[0.0], [1.0], [2.0], [-2.0]], dtype=torch.float64, requires_grad=True)
    terms = FORMULAS["batch_semihard_triplet_loss"](x, torch.tensor([1, 1, 2, 0]), margin=5.0, reduction="none")
    (grad,) = torch.autograd.grad(terms[0], x)  # of (x0 - x1)^2 - (x0 - x3)^2 + 5
    assert grad.flatten().tolist() == [-6, 2, 0, 4]


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "manhattan"])
def test_hardest_pairs_of_ties(metric):
    for positives in NEGATIVES["positives"]:
        for negatives in NEGATIVES["negatives"]:
            options = dict(metric=metric, positives=positives, negatives=negatives)
            compare_pairs(lattice(fusedloss.hardest_pairs) | options)


@pytest.mark.parametrize("reduction", reductions(fusedloss.circle_loss))
def test_circle_leaves_values_of_0_out_of_its_mean(reduction):
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    arguments = dict(embeddings=rows, labels=torch.tensor([0, 0, 1, 1]), gamma=1e4, reduction=reduction)
    assert FORMULAS["circle_loss"](**arguments | dict(reduction="none")).count_nonzero() == 2
    compare(fusedloss.circle_loss, arguments)
