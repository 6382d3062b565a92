"""Values that were silently wrong once, each of its own kind: rows of any length, offsets, infinities, NaN."""

from functools import partial

import pytest
import torch

import fusedloss
from fusedloss import reference
from tests.compare import check, differentiate
from tests.grid import IN_BATCH, batch

HALF = torch.float16


def errors(loss, arguments, factor, device):
    """The largest relative error of the gradient by fp16 rows of a loss times a factor, against float64; and the error
    of eager PyTorch in float32 on the same rows."""

    def times(function):
        return lambda **given: function(**given) * factor

    eager = getattr(reference, loss.__name__)
    ours, theirs, exact = (
        differentiate(times(f), arguments, dtype, at, ())["embeddings"].double().cpu()
        for f, dtype, at in ((loss, HALF, device), (eager, torch.float32, "cpu"), (eager, torch.float64, "cpu"))
    )
    return [float((found - exact).abs().max() / exact.abs().max()) for found in (ours, theirs)]


def test_a_gradient_of_short_fp16_rows_is_large(device):
    x = (torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]]) * 0.004).to(device, HALF).requires_grad_()
    fusedloss.supcon_loss(x, torch.tensor([0, 0, 1, 1], device=device), temperature=0.07).backward()
    want = x.detach().double().requires_grad_()
    reference.supcon_loss(want, torch.tensor([0, 0, 1, 1], device=device), temperature=0.07).backward()
    assert x.grad[0].float().norm().item() == pytest.approx(2100, rel=0.01)
    torch.testing.assert_close(x.grad.double(), want.grad, rtol=2e-3, atol=1)


def test_a_small_gradient_of_short_fp16_rows_is_kept(device):
    q = 0.01 * torch.tensor([[1.0, 0], [0.6, 0.8]])
    k = 0.01 * torch.tensor([[0.0, 1], [1, 0]])
    q, k = q.to(device, HALF).requires_grad_(), k.to(device, HALF)
    (fusedloss.info_nce_loss(q, k, temperature=0.07) * 0.01).backward()
    torch.testing.assert_close(q.grad[1].float().cpu(), torch.tensor([-7.57, 5.67]), rtol=2e-3, atol=0)


@pytest.mark.parametrize("length", [1e-6, 1e-3, 1.0, 1e3, 3e4])
@pytest.mark.parametrize("loss", ["supcon_loss", "multi_similarity_loss", "circle_loss", "lifted_structure_loss"])
def test_fp16_rows_of_any_length_have_an_exact_gradient(device, loss, length):
    x, labels = batch(40, 16, classes=4)
    x = (x / x.norm(dim=1, keepdim=True) * length * 2 ** torch.arange(40).remainder(5)[:, None].sub(3.0)).to(HALF)
    ours, eager = errors(getattr(fusedloss, loss), {"embeddings": x, "labels": labels}, length, device)
    assert ours <= 1.5 * eager + 2**-10  # of the weights and of the gradient


def test_fp16_rows_of_very_different_lengths_have_exact_gradients(device):
    """The shorter the rows, the larger the weights; long rows need their small weights too."""
    x, labels = batch(40, 16, classes=4)
    x = x / x.norm(dim=1, keepdim=True) * 2.0 ** (24 * torch.arange(40).remainder(2) - 11)[:, None]
    x = x.to(HALF)

    def loss(function, rows):  # 4 of them: gradients of short rows are below, of long ones above what fp16 has
        return 4 * function(rows, labels.to(rows.device), reduction="sum")

    found, want = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    loss(lambda *a, **k: fusedloss.supcon_loss(*a, temperature=0.3, **k), found).backward()
    loss(lambda *a, **k: reference.supcon_loss(*a, temperature=0.3, **k), want).backward()
    error = (found.grad.double().cpu() - want.grad).norm(dim=1) / want.grad.norm(dim=1)
    assert error.max() <= 2**-8


def test_a_row_of_zeros_among_fp16_rows_leaves_the_others_theirs(device):
    x, labels = batch(12, 8, classes=3)
    x[3] = 0
    loss = lambda rows: fusedloss.supcon_loss(rows, labels.to(rows.device))  # noqa: E731
    found = x.to(device, HALF).requires_grad_()
    loss(found).backward()
    want = x.to(HALF).double().requires_grad_()
    reference.supcon_loss(want, labels).backward()
    others = torch.arange(12) != 3
    torch.testing.assert_close(found.grad.cpu()[others].double(), want.grad[others], rtol=5e-3, atol=1e-3)
    assert torch.equal(found.grad.cpu()[3].sign().double(), want.grad[3].sign())


def test_equal_rows_have_distance_zero_wherever_they_are(device):
    for length in (1.0, 1e3, 3e3):
        x = (length * torch.randn(8, generator=torch.Generator().manual_seed(0))).expand(12, 8).to(device)
        loss = fusedloss.pairwise_contrastive_loss(x, torch.arange(12, device=device), power=1, neg_margin=1.0)
        assert loss.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("loss", ["batch_hard_triplet_loss", "pairwise_contrastive_loss", "batch_all_triplet_loss"])
def test_distances_do_not_depend_on_where_the_origin_lies(device, loss, metric, dtype):
    x, labels = batch(24, 16, classes=4)
    moved = (64 + x).to(dtype)  # of powers of two apart, so that moving them back is exact
    function = partial(getattr(fusedloss, loss), metric=metric)
    found, want = (
        differentiate(function, {"embeddings": rows, "labels": labels}, dtype, device, ())
        for rows in (moved, (moved.double() - 64).to(dtype))
    )
    for name in want:
        torch.testing.assert_close(found[name], want[name], rtol=2e-6 if dtype == torch.float32 else 2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_moved_only_where_that_is_exact(device, dtype):
    x, labels = batch(24, 16, classes=4)
    x = 1 + 15 * x.abs() / x.abs().max()
    d = reference.pairwise_distance(x, x, "euclidean").mean().item()
    arguments = {"embeddings": x, "labels": labels, "neg_margin": d}
    check(fusedloss.pairwise_contrastive_loss, arguments, dtype, device, roundings=2)


def test_the_hardest_pairs_are_found_far_from_the_origin(device):
    generator = torch.Generator().manual_seed(0)
    x = 100 + 0.1 * torch.randn(12, 64, generator=generator)
    labels = torch.arange(12) % 4
    want = reference.hardest_pairs(x.double(), labels)
    found = fusedloss.hardest_pairs(x.to(device), labels.to(device))
    assert torch.equal(found.positive_index.cpu(), want.positive_index)
    assert torch.equal(found.negative_index.cpu(), want.negative_index)
    loss = fusedloss.batch_hard_triplet_loss(x.to(device), labels.to(device)).item()
    assert loss == pytest.approx(reference.batch_hard_triplet_loss(x.double(), labels).item(), rel=1e-5)


def test_an_ignored_row_leaves_distances_far_away_theirs(device):
    x, labels = 1000 + batch(24, 16, classes=4)[0], batch(24, 16, classes=4)[1]
    labels[:3], x[:3] = -1, torch.tensor([torch.nan, 0.0, -5.0])[:, None]
    loss = partial(fusedloss.pairwise_contrastive_loss, ignore_index=-1)
    found = differentiate(loss, {"embeddings": x, "labels": labels}, torch.float32, device, ())
    rest = {"embeddings": x[3:].float() - 1000, "labels": labels[3:]}
    want = differentiate(fusedloss.pairwise_contrastive_loss, rest, torch.float32, device, ())
    torch.testing.assert_close(found["value"], want["value"], rtol=2e-6, atol=0)
    torch.testing.assert_close(found["embeddings"][3:], want["embeddings"], rtol=1e-5, atol=1e-6)
    assert not found["embeddings"][:3].count_nonzero()


def test_one_row_far_away_leaves_the_others_their_distances(device):
    """The rest of the batch stays where it was; a row of another sign keeps it from being moved."""
    x, labels = batch(24, 16, classes=4)
    x[0] = -x[0]
    check(fusedloss.pairwise_contrastive_loss, {"embeddings": x, "labels": labels}, torch.float32, device)


@pytest.mark.parametrize("short", [[5e-9, 0.0], [6e-9, 8e-9], [6e-7, 8e-7]])
def test_rows_shorter_than_the_clamp_are_not_at_the_origin(device, short):
    x, labels = torch.tensor([short, [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    want = reference.generalized_lifted_structure_loss(x.double(), labels, reduction="none").float()
    if short[1] == 0:
        assert want[0].item() == pytest.approx(0.931, abs=1e-3)
    found = fusedloss.generalized_lifted_structure_loss(x.to(device), labels.to(device), reduction="none")
    torch.testing.assert_close(found.cpu(), want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("side", ["embeddings", "ref_embeddings"])
@pytest.mark.parametrize("loss", IN_BATCH)
def test_nan_in_a_row_of_either_side_shows(device, loss, side):
    """A reference of NaN is the nearest and the farthest one of all, so mining finds it."""
    rows = {"embeddings": torch.eye(3, 2), "ref_embeddings": torch.eye(4, 2)}
    rows[side][0, 0] = torch.nan
    labels = {"labels": torch.tensor([0, 1, 0]), "ref_labels": torch.tensor([0, 1, 0, 1])}
    assert loss(**{name: t.to(device) for name, t in (rows | labels).items()}).isnan()


@pytest.mark.parametrize("length", [1e3, 1e4])
def test_both_roles_of_a_row_take_the_same_score(length):
    """In float64 a state is exact to 1e-16 of the score, and a weight is its exponential."""
    x, labels = batch(64, 16, classes=4)
    arguments = {"embeddings": x / x.norm(dim=1, keepdim=True) * length, "labels": labels}
    loss = dict(metric="dot", gamma=1e-3)
    found, want = (
        differentiate(partial(f, **loss), arguments, torch.float64, "cpu", ())
        for f in (fusedloss.circle_loss, reference.circle_loss)
    )
    for name in want:
        torch.testing.assert_close(found[name], want[name], rtol=1e-6, atol=1e-9 * float(want[name].abs().max()))


# float32 rounds a distance of 10,000, and so its exponent, to 1e-3; at 1e10 one pair has all the weight
@pytest.mark.parametrize(("length", "rounding"), [(1e4, 1e-4), (1e10, 1e-6)])
@pytest.mark.parametrize("loss", ["generalized_lifted_structure_loss", "lifted_structure_loss"])
def test_lifted_losses_of_long_rows(device, loss, length, rounding):
    x, labels = batch(40, 16, classes=4)
    x = x / x.norm(dim=1, keepdim=True) * length
    found, eager, exact = (
        differentiate(partial(f, normalize=False), {"embeddings": x, "labels": labels}, dtype, at, ())
        for f, dtype, at in (
            (getattr(fusedloss, loss), torch.float32, device),
            (getattr(reference, loss), torch.float32, "cpu"),
            (getattr(reference, loss), torch.float64, "cpu"),
        )
    )
    for name, want in exact.items():
        error, theirs = ((of[name].double().cpu() - want).norm() for of in (found, eager))
        assert error <= 1.5 * theirs + rounding * want.norm(), name
