"""Rows whose label is ignored, and a batch at its place among the references: other rows keep their values."""

import pytest
import torch
from torch.func import grad, vmap

import fusedloss
from fusedloss import reference
from fusedloss.losses.catalog import CATALOG, Role
from tests.grid import (
    IN_BATCH,
    LOSSES,
    SAMPLE,
    WITH_CLASSES,
    batch,
    example,
    in_front,
    named,
    reductions,
    running,
    unreadable,
)

REDUCTIONS = ("mean", "sum", "none")
PLACES = ("self", "refs", "among")  # the batch alone, with others, and behind some and before some of these
PAIRED = (("embeddings", "labels"), ("ref_embeddings", "ref_labels"), ("embeddings", "target"))


def labels_of(arguments):
    """The names of rows, and of their labels."""
    return [(rows, labels) for rows, labels in PAIRED if labels in arguments]


def in_batch(place, device, N=23, M=19, D=5):
    """A batch of five classes and its references, float32."""
    (x, labels), (y, ref_labels) = (tuple(t.to(device) for t in batch(n, D, seed=seed)) for n, seed in ((N, 0), (M, 1)))
    x, y = x.float(), y.float()
    refs = dict(ref_embeddings=y, ref_labels=ref_labels)
    if place == "among":
        at = [torch.cat([b[:3], a, b[3:]]) for a, b in ((x, y), (labels, ref_labels))]
        refs = dict(ref_embeddings=at[0], ref_labels=at[1], ref_offset=3)
    return dict(embeddings=x, labels=labels) | ({} if place == "self" else refs)


def filled(arguments, label, value):
    """The arguments with a value in all rows of a label."""
    found = dict(arguments)
    for rows, labels in labels_of(arguments):
        found[rows] = arguments[rows].masked_fill((arguments[labels] == label)[:, None], value)
    return found


def removed(arguments, label):
    """The arguments without the rows of a label."""
    found = dict(arguments)
    for rows, labels in labels_of(arguments):
        keep = arguments[labels] != label
        found[rows], found[labels] = arguments[rows][keep], arguments[labels][keep]
    if "ref_offset" in arguments:
        found["ref_offset"] -= int((arguments["ref_labels"][: arguments["ref_offset"]] == label).sum())
    return found


def run(loss, arguments, **options):
    """The value, and the gradient of its sum by every floating tensor, by name."""
    own = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    leaves = {k: v.requires_grad_() for k, v in own.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    value = loss(**own, **options)
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value.sum(), [*leaves.values()]), strict=True))


def assert_left_out(loss, arguments, label, **options):
    """A loss that ignores a label has the value and gradients of the other rows, and gradient 0 for ignored ones."""
    (value, grads), (want, want_grads) = (
        run(loss, filled(arguments, label, torch.nan), ignore_index=label, **options),
        run(loss, removed(arguments, label), **options),
    )
    kept = {rows: arguments[labels] != label for rows, labels in labels_of(arguments)}
    for rows, keep in kept.items():
        assert not keep.all() and keep.any()
        assert not grads[rows][~keep].count_nonzero(), f"ignored rows of {rows} have a gradient"
        grads[rows] = grads[rows][keep]
    if value.shape == kept["embeddings"].shape:
        assert not value[~kept["embeddings"]].count_nonzero()
        value = value[kept["embeddings"]]
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)
    for name, expected in want_grads.items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=4e-6)  # fp32 rows on an H200: 1.9e-6


# Moderate logits: a last bit of a score that is magnified 64 or 80 times would be all that is compared.
MODERATE = {
    fusedloss.pairwise_nt_xent_loss: dict(temperature=0.5),
    fusedloss.circle_loss: dict(gamma=4.0),
    fusedloss.arcface_loss: dict(scale=4.0),
    fusedloss.cosface_loss: dict(scale=4.0),
    fusedloss.island_loss: dict(weight=0.0),  # the centers stay apart from each other
}


def variants(losses):
    """Losses with the options that other kernels compute."""
    return [(of, MODERATE.get(of, {}) | more) for of in losses for more in ({}, *CATALOG[of.__name__].variants)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("loss", "options"), variants(IN_BATCH), ids=named)
def test_an_in_batch_loss_is_that_of_the_rows_that_count(backend, loss, options, place):
    for plan in ("default", "small") if backend == "blocked" else ("small", "sorted"):
        with running(backend, plan) as device:
            arguments = in_batch(place, device)
            for reduction in reductions(loss) if backend == "blocked" else ("mean", "none"):
                assert_left_out(loss, arguments, 1, reduction=reduction, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", [loss for loss in WITH_CLASSES if loss is not fusedloss.linear_cross_entropy_loss])
def test_a_loss_of_classes_is_that_of_the_rows_that_count(backend, device, loss, reduction):
    arguments = {k: v.to(device) for k, v in example(loss, 23).items()}
    for label in (1, -100):
        target = arguments["target"].clone()
        target[1::3] = label
        assert_left_out(loss, arguments | dict(target=target), label, reduction=reduction, **MODERATE.get(loss, {}))


@pytest.mark.parametrize("loss", [loss for loss in IN_BATCH if "active" in reductions(loss)])
def test_the_mean_over_terms_above_zero_leaves_them_out(backend, device, loss):
    assert_left_out(loss, in_batch("refs", device), 2, reduction="active")


@pytest.mark.parametrize("negatives", ["hardest", "easiest", "semihard"])
@pytest.mark.parametrize("place", PLACES)
def test_pairs_are_mined_among_the_rows_that_count(backend, device, place, negatives):
    arguments = filled(in_batch(place, device), 1, torch.inf)
    found = fusedloss.hardest_pairs(**arguments, negatives=negatives, ignore_index=1)
    exact = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    exact |= {k: v.double() for k, v in exact.items() if "embeddings" in k}
    want = reference.hardest_pairs(**exact, negatives=negatives, ignore_index=1)
    ignored, refs = arguments["labels"] == 1, arguments.get("ref_labels", arguments["labels"])
    for distance, index, exact_index in ((*found[:2], want[1]), (*found[2:], want[3])):
        assert torch.equal(index.cpu(), exact_index)
        assert (index[ignored] == -1).all() and distance[ignored].isnan().all()
        assert torch.equal(distance.isnan(), index == -1) and (refs[index[index >= 0]] != 1).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@in_front([*IN_BATCH, *WITH_CLASSES])
def test_if_no_row_counts_the_loss_is_zero_with_zero_gradient(backend, device, loss, reduction):
    arguments = {k: v.to(device) for k, v in example(loss, refs=True).items()}
    for labels in (v for v in arguments.values() if not v.is_floating_point()):
        labels.fill_(1)
    if loss is not fusedloss.linear_cross_entropy_loss:  # whose rows are used as they are
        arguments = filled(arguments, 1, torch.nan)
    value, grads = run(loss, arguments, ignore_index=1, reduction=reduction, **MODERATE.get(loss, {}))
    assert not value.count_nonzero()
    assert not any(g.count_nonzero() for g in grads.values())


TAKING = [loss for loss in LOSSES if "ignore_index" in loss.__kwdefaults__ and CATALOG[loss.__name__].named(Role.ROWS)]


@in_front(TAKING)
def test_where_labels_are_not_read_the_loss_is_the_same(backend, device, loss, monkeypatch):
    """Values cannot be read, as on a GPU: with ignored rows, and without any."""
    arguments = {k: v.to(device) for k, v in example(loss, refs=True).items()}
    for label in (1, 77):
        want, want_grads = run(loss, arguments, ignore_index=label)
        with monkeypatch.context() as patch:
            unreadable(patch)
            found, grads = run(loss, arguments, ignore_index=label)
        torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
        for name, expected in want_grads.items():
            torch.testing.assert_close(grads[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", TAKING)
def test_without_a_row_to_ignore_nothing_changes(loss):
    arguments = example(loss, refs=True)
    want, want_grads = run(loss, arguments)
    found, grads = run(loss, arguments, ignore_index=-1)
    assert torch.equal(found, want)
    assert all(torch.equal(grads[name], want_grads[name]) for name in want_grads)


@pytest.mark.parametrize(
    ("dtype", "values", "ignored"),
    [
        (torch.int8, [0, 3, -1, 1], -1),
        (torch.int32, [0, 1, 2, 3], 2**32 + 1),  # which ends in the bits of a label
        (torch.int64, [0, 2**40 + 1, 1, 5], 2**40 + 1),
        (torch.int64, [0, -(2**63), 1, 5], -(2**63)),
    ],
    ids=str,
)
@in_front(IN_BATCH)
def test_the_label_may_be_any_integer(backend, device, loss, dtype, values, ignored):
    x, plain = batch(12, 5)[0].float().to(device), torch.arange(12, device=device) % 4
    labels = torch.tensor(values, dtype=dtype, device=device)[plain]
    at = values.index(ignored) if ignored in values else None
    for refs, plain_refs in (((), ()), ((x, labels.long()), (x, plain))):
        found = loss(x, labels, *refs, ignore_index=ignored, reduction="none")
        want = loss(x, plain, *plain_refs, ignore_index=at, reduction="none")
        torch.testing.assert_close(found, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", [*TAKING, fusedloss.hardest_pairs])
def test_what_is_no_label_is_an_error(loss):
    arguments = example(loss)
    for value in (True, 1.0, "1", torch.tensor(1)):
        with pytest.raises(TypeError, match=r"^ignore_index must be an int, got"):
            loss(**arguments, ignore_index=value)
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match=rf"^ignore_index must be .*, got {value}$"):
            loss(**arguments, ignore_index=value)


@pytest.mark.parametrize("loss", [loss for loss in TAKING if loss in SAMPLE])
def test_compiled_and_in_transforms_it_is_the_same(loss):
    arguments = example(loss, refs=True)
    options = dict(ignore_index=1)
    want, want_grads = run(loss, arguments, **options)
    found, grads = run(torch.compile(loss, fullgraph=True, backend="aot_eager"), arguments, **options)
    torch.testing.assert_close((found, grads), (want, want_grads))
    [rows, *_] = arguments
    others = {k: v for k, v in arguments.items() if k != rows}
    each = vmap(grad(lambda x: loss(x, **others, **options)))(torch.stack([arguments[rows]] * 2))
    for one in each:
        torch.testing.assert_close(one, want_grads[rows], rtol=1e-5, atol=1e-6)


def test_a_memory_bank_keeps_ignored_rows_out(backend, device):
    loss = fusedloss.SupConLoss(ignore_index=-1)
    banks = [fusedloss.MemoryBank(loss, 20, 5).to(device) for _ in range(2)]
    for seed in range(3):
        x, labels = (t.to(device) for t in batch(9, 5, classes=2, seed=seed))
        labels[seed::3] = -1
        keep = labels != -1
        found = banks[0](x.float().masked_fill(~keep[:, None], torch.nan), labels)
        torch.testing.assert_close(found, banks[1](x.float()[keep], labels[keep]))


# ----------------------------------------------------------------------------------------- a batch among its references


@in_front(IN_BATCH)
def test_among_references_that_are_ignored_a_batch_is_compared_with_itself(backend, device, loss):
    """A row is not paired with itself at its place in the references, and its gradient adds up both of its roles."""
    arguments = in_batch("self", device)
    want, want_grads = run(loss, arguments, reduction="sum")
    x, labels = arguments.values()
    for before, after in ((0, 0), (4, 0), (3, 2)):
        refs = torch.cat([x[:before] + 1, x, x[:after] - 1])
        ref_labels = torch.cat([labels.new_full((before,), -1), labels, labels.new_full((after,), -1)])
        given = dict(ref_embeddings=refs, ref_labels=ref_labels, ref_offset=before)
        found, grads = run(loss, arguments | given, reduction="sum", ignore_index=-1)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
        together = grads["embeddings"] + grads["ref_embeddings"][before : before + len(x)]
        torch.testing.assert_close(together, want_grads["embeddings"], rtol=1e-4, atol=1e-5)


ROWS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
GATHERED = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])  # in the order of the ranks


def test_a_gathered_batch_is_told_where_its_own_rows_are(backend, device):
    given = [t.to(device) for t in (ROWS, torch.tensor([0, 1]), GATHERED, torch.tensor([1, 0, 0, 1]))]
    torch.testing.assert_close(
        fusedloss.supcon_loss(*given, ref_offset=2).cpu(), torch.tensor(0.127224), rtol=0, atol=1e-5
    )
    # As rows that are not in the batch its own ones would be positives: log(e^6 + e^8 + e^10 + 1) - (8 + 10) / 2.
    torch.testing.assert_close(fusedloss.supcon_loss(*given).cpu(), torch.tensor(1.142971), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", [*IN_BATCH, fusedloss.hardest_pairs])
def test_a_wrong_place_is_an_error_that_says_the_right_one(loss):
    given = ROWS, torch.tensor([0, 1]), GATHERED, torch.tensor([1, 0, 0, 1])
    with pytest.raises(ValueError) as error:
        loss(*given, ref_offset=0)
    assert str(error.value) == (
        "ref_embeddings must have the rows of embeddings from row 0 (ref_offset) on, but row 0 is not row 0 of "
        "embeddings; they are there from row 2 on: ref_offset=2"
    )
    with pytest.raises(ValueError) as error:
        loss(*given, ref_offset=3)
    assert str(error.value) == (
        "ref_embeddings must have the 2 rows of embeddings from row 3 on, got 4 rows; they are there from row 2 on: "
        "ref_offset=2"
    )
    with pytest.raises(ValueError, match=r"row 1 is not row 1 of embeddings; where no row .* leave it out$"):
        loss(*given[:2], torch.cat([ROWS[:1], ROWS[:1], ROWS[:1]]), torch.tensor([0, 1, 0]), ref_offset=0)
    loss(*given, ref_offset=2)


def test_an_ignored_row_may_hold_anything_at_its_place():
    arguments = in_batch("among", "cpu")
    arguments["embeddings"] = filled(arguments, 1, 7.0)["embeddings"]
    fusedloss.supcon_loss(**arguments, ignore_index=1)
    with pytest.raises(ValueError, match=r"^ref_embeddings must have the rows of embeddings from row 3"):
        fusedloss.supcon_loss(**arguments)
