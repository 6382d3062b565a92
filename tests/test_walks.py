"""The far and the near walk over rows sorted by label: what they visit, and that nothing depends on the order."""

import itertools

import pytest
import torch

import fusedloss
from fusedloss import ops, reference
from fusedloss.checks import Batch
from tests.compare import check
from tests.grid import FEW, batch, running

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fusedloss.backends.triton.sides import sides  # noqa: E402
from fusedloss.kernels import configs, tiles  # noqa: E402
from fusedloss.kernels.walks import walks  # noqa: E402


@pytest.fixture
def kernel_device():
    """Where the kernels run: on the CPU in the interpreter."""
    with running("triton", "sorted") as device:
        yield device


@triton.jit
def record(x, rows, M, out_ptr, BM: tl.constexpr, BN: tl.constexpr, ALL: tl.constexpr):
    """Both walks of a program. out [programs, splits, 8]"""
    far, near = walks(x, rows, M, BM, BN, ALL)
    at = out_ptr + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 8
    for k in tl.static_range(4):
        tl.store(at + k, far[k])
        tl.store(at + 4 + k, near[k])


def visited(walk, step):
    start, stop, gap, skip = walk
    return [at + (skip if at >= gap else 0) for at in range(start, stop, step)]


LABELS = {
    "one class": lambda n: torch.zeros(n, dtype=torch.int64),
    "all different": torch.arange,
    "pairs": lambda n: torch.arange(n) // 2,
    "few": lambda n: torch.arange(n) * 5 // max(n, 1),
    "one large": lambda n: torch.arange(n).clamp(min=n * 2 // 3),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("splits", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("N", "M", "shift"), [(40, 48, 0), (37, 53, 0), (37, 53, 9), (8, 3, 0), (5, 71, -40), (1, 1, 0)]
)
@pytest.mark.parametrize("counted", [None, 0.6])
def test_every_column_is_walked_once_and_no_far_one_shares_a_label(kernel_device, kind, splits, N, M, shift, counted):
    BM, BN, NEAR = 8, 8, 4
    of_rows, of_columns = (LABELS[kind](n) for n in (N, M))
    of_rows = of_rows + shift  # some rows have no column, and some columns no row
    rows, columns = (n if counted is None else int(counted * n) for n in (N, M))
    spans = [torch.searchsorted(of_columns[:columns], of_rows, right=right).int() for right in (False, True)]
    x = tiles.Rows((), (), (), near=tuple(span.to(kernel_device) for span in spans))
    programs = -(-N // BM)
    out = torch.full((programs, splits, 8), -7, dtype=torch.int32, device=kernel_device)
    for ALL in (False, True):
        record[(programs, splits)](x, rows, columns, out, BM=BM, BN=BN, ALL=ALL)
        for program, walked in enumerate(out.tolist()):
            own = of_rows[program * BM : min((program + 1) * BM, rows)]
            seen = []
            for far, near in ((walk[:4], walk[4:]) for walk in walked):
                for c0 in visited(far, BN):
                    assert c0 % BN == 0 and c0 + BN <= columns, "a far tile is whole"
                    assert not set(of_columns[c0 : c0 + BN].tolist()) & set(own.tolist()), "a far pair is negative"
                    assert not ALL or len(own) == BM, "all rows of the program count"
                    seen += range(c0, c0 + BN)
                for c0 in visited(near, NEAR):
                    assert c0 % NEAR == 0
                    seen += [c for c in range(c0, c0 + NEAR) if c < columns]
            assert sorted(seen) == (list(range(columns)) if len(own) else [])
            if not ALL and len(own) and splits == 1:  # what is near is what must be
                of_own = sum(label in own for label in of_columns[:columns])
                assert sum(len(visited(walk[4:], NEAR)) for walk in walked) * NEAR < of_own + 3 * BN + NEAR


def test_unsorted_rows_are_near_to_all_columns(kernel_device):
    out = torch.full((3, 2, 8), -7, dtype=torch.int32, device=kernel_device)
    record[(3, 2)](tiles.Rows((), (), ()), 21, 37, out, BM=8, BN=8, ALL=False)
    for walked in out.tolist():
        assert not any(visited(walk[:4], 8) for walk in walked)
        assert sorted(c for walk in walked for at in visited(walk[4:], 4) for c in range(at, at + 4) if c < 37) == [
            *range(37)
        ]


# Rows and classes.
BATCHES = {"ragged": (61, 7), "whole": (64, 7), "one class": (43, 1), "all different": (43, 10**6), "two": (45, 2)}
LOSSES = {
    "contrastive": (fusedloss.pairwise_contrastive_loss, dict(neg_margin=1.2)),
    "contrastive, active": (fusedloss.pairwise_contrastive_loss, dict(neg_margin=1.2, reduction="active", power=1)),
    "supcon": (fusedloss.supcon_loss, dict(temperature=0.2)),
    "circle": (fusedloss.circle_loss, dict(gamma=8.0)),
    "multi-similarity": (fusedloss.multi_similarity_loss, {}),
    "lifted": (fusedloss.lifted_structure_loss, {}),
    "batch-hard": (fusedloss.batch_hard_triplet_loss, dict(margin=1.0)),
    "batch-hard, semihard": (fusedloss.batch_hard_triplet_loss, dict(margin=1.0, negatives="semihard")),
}


def of(kind, D=13, seed=0):
    N, classes = BATCHES[kind]
    x, _ = batch(N, D, seed=seed)
    labels = torch.randint(classes, (N,), generator=torch.Generator().manual_seed(seed))
    if kind == "all different":
        labels = torch.randperm(N, generator=torch.Generator().manual_seed(seed)) * 97 - 2**40
    return x, labels


REFERENCES = ("self", "other", "own rows", "own rows among")


def with_references(arguments, case):
    """References whose labels lie in another order, so that both sides are sorted apart."""
    x, labels = arguments["embeddings"], arguments["labels"]
    if case == "self":
        return arguments
    y = batch(29, x.shape[1], seed=5)[0].to(x.dtype)
    y_labels = labels[torch.randint(len(labels), (29,), generator=torch.Generator().manual_seed(3))]
    offset = {"other": None, "own rows": 0, "own rows among": 11}[case]
    if offset is not None:
        y, y_labels = (torch.cat([b[:offset], a, b[offset:]]) for a, b in ((x, y), (labels, y_labels)))
    return arguments | dict(ref_embeddings=y, ref_labels=y_labels, ref_offset=offset)


# One class has no negative and all different ones no positive: most losses are 0 then, and nothing is compared.
COMPARED = [
    *((name, kind) for name in LOSSES for kind in ("ragged", "whole", "two")),
    ("contrastive", "one class"),
    ("contrastive", "all different"),
]


@pytest.mark.parametrize(("name", "kind"), COMPARED)
def test_sorted_rows_are_as_exact_as_eager(name, kind):
    loss, options = LOSSES[name]
    turn = COMPARED.index((name, kind))
    for case in {REFERENCES[turn % 4], REFERENCES[(turn + 1 + turn // 4) % 4]}:
        x, labels = of(kind, seed=turn)
        arguments = with_references(dict(embeddings=x, labels=labels, **options), case)
        with running("triton", ("sorted", "sorted split")[turn % 2]) as device:
            check(loss, arguments, torch.float32, device)


@pytest.mark.parametrize("case", REFERENCES)
@pytest.mark.parametrize("name", LOSSES)
def test_sorted_and_unsorted_runs_agree_and_repeat(name, case):
    loss, options = LOSSES[name]
    turn = [*LOSSES].index(name) + REFERENCES.index(case)
    for kind in ([*BATCHES] * 2)[turn % 5 : turn % 5 + 2]:
        x, labels = of(kind)
        arguments = with_references(dict(embeddings=x.float(), labels=labels), case)
        found = {}
        for plan in ("small", "sorted", "sorted split", "sorted"):
            with running("triton", plan) as device:
                given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
                leaf = given["embeddings"].requires_grad_()
                value = loss(**given, **options)
                (grad,) = torch.autograd.grad(value.sum(), [leaf])
            if plan in found:
                assert torch.equal(found[plan][0], value) and torch.equal(found[plan][1], grad), "bit for bit"
            found[plan] = value, grad
        for plan in ("sorted", "sorted split"):
            torch.testing.assert_close(found[plan][0], found["small"][0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found[plan][1], found["small"][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("power", [1, 2])
def test_far_tiles_have_a_gradient_whatever_its_sign(power):
    """A tile is skipped where its whole gradient is zero, but not where it is below zero."""
    x, labels = of("whole")
    with running("triton", "sorted") as device:
        leaf = x.float().to(device).requires_grad_()
        loss = fusedloss.pairwise_contrastive_loss(leaf, labels.to(device), neg_margin=1.2, power=power)
        pull, push = (
            torch.autograd.grad(loss, leaf, torch.tensor(sign, device=device), True)[0] for sign in (1.0, -1.0)
        )
    assert pull.count_nonzero() and torch.equal(pull, -push)


@pytest.mark.parametrize("positives", ["hardest", "easiest"])
@pytest.mark.parametrize("negatives", ["hardest", "easiest", "semihard"])
@pytest.mark.parametrize("case", REFERENCES)
def test_of_equal_distances_the_first_row_of_the_inputs_is_mined(case, positives, negatives):
    """Whole numbers, a few distances among many pairs, and copies of rows all over the batch."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(-1, 2, (53, 3), generator=generator).float()
    labels = torch.randint(4, (53,), generator=generator)
    arguments = with_references(dict(embeddings=x, labels=labels), case)
    if case != "self":
        arguments["ref_embeddings"] = arguments["ref_embeddings"].round()
    options = dict(positives=positives, negatives=negatives, metric="sqeuclidean")
    want = reference.hardest_pairs(**arguments, **options)
    for plan in ("small", "sorted", "sorted split"):
        with running("triton", plan) as device:
            given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
            found = fusedloss.hardest_pairs(**given, **options)
        for mined, wanted in zip(found, want, strict=True):
            torch.testing.assert_close(mined.cpu(), wanted.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(("N", "M"), [(40, 48), (37, 53), (16, 8)])
def test_pairs_are_counted_once(N, M, columns):
    """The third term of the contrastive loss is 1: its sums are how many positives and negatives each anchor has."""
    generator = torch.Generator().manual_seed(N)
    x, y = torch.randn(N, 5, generator=generator), torch.randn(M, 5, generator=generator)
    labels, ref_labels = (torch.randint(6, (n,), generator=generator) for n in (N, M))
    same = (labels[:, None] == ref_labels).double()
    want = torch.stack([same.sum(1), (1 - same).sum(1)])
    if columns:
        want = torch.cat([want, torch.stack([same.sum(0), (1 - same).sum(0)])], 1)
    folds = ops.of("sum", "sum", "sum", margin=0.5)
    for plan in ("small", "sorted", "sorted split"):
        with running("triton", plan) as device:
            given = (t.to(device) for t in (x, y, labels, ref_labels))
            states = ops.fold(
                Batch(*given, None), "contrastive", "dot", pos=folds, neg=folds, columns=columns
            )  # fmt: skip
            found = torch.stack([states[2], states[5]]).cpu()
        assert torch.equal(found.double(), want), plan


def test_rows_whose_labels_ascend_are_not_sorted(kernel_device):
    labels = torch.arange(40, device=kernel_device) // 2
    x = torch.randn(40, 5, device=kernel_device)
    (known, _), (sorted_, _) = (
        sides(Batch(x, None, labels, labels, 0, x_sorted=flag), "dot") for flag in (True, False)
    )
    assert known.order is None and known.rows.rows is x
    assert torch.equal(sorted_.order, torch.arange(40, device=kernel_device))
    for a, b in zip((known.rows.labels, *known.rows.near), (sorted_.rows.labels, *sorted_.rows.near), strict=True):
        assert torch.equal(a, b) and a.dtype == torch.int32


def test_ignored_rows_come_last_and_are_not_walked(kernel_device):
    """Any label may be ignored: keys wrap around at the ends of int64."""
    for ignored, other in itertools.product((-(2**63), -1, 0, 3, 2**63 - 1), (-(2**63), 5, 2**63 - 1)):
        if ignored == other:
            continue
        labels = torch.tensor([ignored, other, 1, ignored, other, 1, 2], device=kernel_device)
        x = torch.randn(7, 3, device=kernel_device)
        side, _ = sides(Batch(x, None, labels, labels, 0, ignored), "dot")
        assert side.rows.counted[0].item() == 5
        assert sorted(side.order[5:].tolist()) == [0, 3]
        assert [labels[i].item() == labels[j].item() for i, j in itertools.pairwise(side.order[:5].tolist())] == [
            side.rows.labels[i].item() == side.rows.labels[i + 1].item() for i in range(4)
        ]


def test_two_classes_of_10_and_10_000_rows():
    """Nearly all tiles are near, and belong to the large class alone; the counts are exact. Larger tiles keep the time
    of the interpreter short."""
    large = FEW | dict(BM=512, BN=1024, near=1024, BD=4, held=4)
    x = torch.randn(10_010, 3, generator=torch.Generator().manual_seed(0))
    labels = (torch.randperm(10_010, generator=torch.Generator().manual_seed(1)) < 10).long()
    arguments = dict(embeddings=x, labels=labels)
    for loss, options in ((fusedloss.pairwise_contrastive_loss, dict(neg_margin=3.0)), (fusedloss.supcon_loss, {})):
        with running("triton", "default") as device, pytest.MonkeyPatch.context() as patch:
            if tiles.INTERPRETED:
                patch.setattr("fusedloss.backends.triton.tuning.choose", lambda *_: configs.Tile(**large))
            found = loss(**{k: v.to(device) for k, v in arguments.items()}, **options)
        with running("blocked", "default"):
            want = loss(embeddings=x.double(), labels=labels, **options)
        torch.testing.assert_close(found.double().cpu(), want, rtol=2e-6, atol=0)
