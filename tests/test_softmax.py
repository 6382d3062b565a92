"""Softmax and sigmoid losses: exact as eager over covering grids, and exact where the usual formulas break down."""

import math

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from bench.regimes import forms
from fusedloss import ops
from fusedloss.checks import SIMILARITIES, Batch
from tests.compare import check, differentiate, wanted_of_backends
from tests.grid import IGNORED, PLANS, REFS, batch, cases, example, ignoring, in_full, references, running

# Primes: ragged in rows, columns and dimensions for tiles of any size. D below, above and not a multiple of a chunk.
SHAPES = ((23, 37, 37), (11, 41, 3), (41, 5, 4), (17, 13, 101))
REDUCTIONS = ("mean", "sum", "none")
NUMBERS = ("number", "tensor")
WEIGHTS = 2  # the weights of the gradient product are rounded as its result is
SCALED_WEIGHTS = 3  # and what comes with the row itself cancels most of a gradient across the sphere


def clip(image, text, **options):
    return fusedloss.clip_loss(image, text, 3.0, **options)


def number(case, value):
    return torch.tensor(value) if case["numbers"] == "tensor" else value


def orders(loss, *rows):
    """Eager with its sums in other orders: where numbers cancel, a small error in one order may be luck."""
    return forms(getattr(fusedloss.reference, loss.__name__), rows)


def towers(case):
    """Two towers of a shape, the second near the first, and which inputs are constants."""
    N, _, D = case["shape"]
    x, y = batch(N, D)[0], batch(N, D, seed=1)[0]
    constant = {"both": [], "first": [1], "second": [0]}[case.get("trained", "both")]
    return x, 0.5 * x + y, constant


@cases(
    dict(
        shape=SHAPES,
        reduction=REDUCTIONS,
        numbers=NUMBERS,
        metric=SIMILARITIES,
        negatives=("batch", "queue", "both", "constant queue"),
        positives=("own", "offset", "symmetric"),
        trained=("both", "first", "second"),
    ),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_info_nce_is_as_exact_as_eager(backend, case):
    x, y, constant = towers(case)
    if case["positives"] == "offset":
        y = torch.cat([y[-2:], y, y[:3]])
    arguments = dict(query=x, key=y, offset=2 if case["positives"] == "offset" else 0)
    in_batch = case["negatives"] != "queue"
    if case["negatives"] != "batch":
        arguments |= dict(negatives=batch(case["shape"][1], x.shape[1], seed=2)[0])
    arguments |= dict(temperature=number(case, 0.3), metric=case["metric"], reduction=case["reduction"])
    arguments |= dict(in_batch_negatives=in_batch, symmetric=in_batch and case["positives"] == "symmetric")
    fixed = [("query", "key")[i] for i in constant] + ["negatives"] * (case["negatives"] == "constant queue")
    with running(backend, case["plan"]) as device:
        loss, options = fusedloss.info_nce_loss, dict(constant=fixed, roundings=SCALED_WEIGHTS)
        check(loss, arguments, case["dtype"], device, forms=orders(loss, "query", "key"), **options)


@cases(
    dict(
        shape=SHAPES,
        reduction=REDUCTIONS,
        numbers=NUMBERS,
        metric=("cosine", "euclidean"),
        ids=(False, True),
        bias=("none", "trained", "constant"),
        hard=("none", "trained", "constant"),
        positives=("own", "offset", "symmetric"),
        in_batch=(True, False),
    ),
    blocked=2,
    triton=2,
    plans=("default", "small", "sorted", "sorted split"),
)
def test_info_nce_with_ids_biases_and_negatives_of_its_own_is_as_exact_as_eager(backend, case):
    (x, y, _), N = towers(case), case["shape"][0]
    ids, offset = torch.arange(N) // 3, 2 if case["positives"] == "offset" else 0
    arguments = dict(query=x, offset=offset, metric=case["metric"], reduction=case["reduction"])
    places = torch.cat([torch.arange(N)[N - offset :], torch.arange(N), torch.arange(N)[:offset]])
    arguments |= dict(key=y[places], temperature=number(case, 0.3))
    if case["ids"]:
        arguments |= dict(ids=ids) | (dict(key_ids=ids[places]) if offset else {})
    if case["bias"] != "none":
        arguments |= dict(key_bias=batch(len(places), 3, seed=3)[0][:, 0])
    if case["hard"] != "none" or not case["in_batch"]:
        arguments |= dict(hard_negatives=batch(3 * N, x.shape[1], seed=4)[0].unflatten(0, (N, 3)))
    arguments |= dict(
        in_batch_negatives=case["in_batch"], symmetric=case["in_batch"] and case["positives"] == "symmetric"
    )
    fixed = ["key_bias"] * (case["bias"] == "constant") + ["hard_negatives"] * (case["hard"] == "constant")
    with running(backend, case["plan"]) as device:
        # A query's gradient is the sum of up to three, each rounded to its dtype.
        check(fusedloss.info_nce_loss, arguments, case["dtype"], device, constant=fixed, roundings=3 * WEIGHTS)


@pytest.mark.parametrize(("loss", "key_ids"), [(fusedloss.info_nce_loss, "key_ids"), (clip, "text_ids")])
def test_keys_with_the_id_of_a_query_are_none_of_its_negatives(backend, device, loss, key_ids):
    """Left-out keys count as if they were not there: compared with the loss without them, one query at a time."""
    (query, _), (key, _), ids = batch(6, 5), batch(7, 5, seed=1), torch.tensor([0, 1, 0, 2, 2, 2, 3])
    query, key, ids = (t.to(device) for t in (query.float(), key.float(), ids))
    want = []
    for i in range(6):
        kept = (ids != ids[i]) | (torch.arange(7, device=device) == i)
        want.append(loss(query[i : i + 1], key[kept], offset=int(kept[:i].sum()), reduction="none"))
    found = loss(query, key, ids=ids[:6], **{key_ids: ids}, reduction="none")
    torch.testing.assert_close(found, torch.cat(want), rtol=1e-5, atol=1e-6)


@cases(
    dict(shape=SHAPES, reduction=REDUCTIONS, numbers=NUMBERS, sigma=(None, 0.5)),
    blocked=3,
    triton=2,
    plans=("default", "small", "sorted"),
)
def test_decoupled_contrastive_is_as_exact_as_eager(backend, case):
    x, y, _ = towers(case)
    arguments = dict(z1=x, z2=y, temperature=number(case, 0.3), reduction=case["reduction"], sigma=case["sigma"])
    with running(backend, case["plan"]) as device:
        # A view's gradient is the sum of two, that within its view and that across, each rounded.
        check(fusedloss.decoupled_contrastive_loss, arguments, case["dtype"], device, roundings=2 * SCALED_WEIGHTS)


@cases(dict(shape=SHAPES, reduction=REDUCTIONS, numbers=NUMBERS), blocked=3, triton=2, plans=tuple(PLANS))
def test_nt_xent_is_as_exact_as_eager(backend, case):
    x, y, _ = towers(case)
    arguments = dict(z1=x, z2=y, temperature=number(case, 0.3), reduction=case["reduction"])
    with running(backend, case["plan"]) as device:
        check(fusedloss.nt_xent_loss, arguments, case["dtype"], device, roundings=SCALED_WEIGHTS)


@cases(
    dict(
        loss=(fusedloss.clip_loss, fusedloss.siglip_loss),
        shape=SHAPES,
        reduction=REDUCTIONS,
        numbers=NUMBERS,
        trained=("both", "first", "second"),
        texts=("own", "more", "others"),
        ids=(False, True),
    ),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_two_towers_are_as_exact_as_eager(backend, case):
    loss = case["loss"]
    x, y, constant = towers(case)
    N, given = len(x), {}
    if case["texts"] != "own":
        y = torch.cat([y[-2:], y, y[:3]])
        given = dict(offset=2)
    if case["texts"] == "others" and loss is fusedloss.siglip_loss:
        given = dict(offset=None)
    if case["ids"]:
        ids = torch.arange(N) // 3
        given |= dict(ids=ids) | (dict(text_ids=torch.cat([ids[-2:], ids, ids[:3]])) if given else {})
    arguments = dict(image=x, text=y, logit_scale=number(case, 3.0), reduction=case["reduction"]) | given
    if loss is fusedloss.siglip_loss:
        arguments |= dict(logit_bias=number(case, -1.5))
    with running(backend, case["plan"]) as device:
        fixed = [("image", "text")[i] for i in constant]
        check(loss, arguments, case["dtype"], device, constant=fixed, roundings=WEIGHTS)


@cases(dict(shape=SHAPES, reduction=REDUCTIONS, l2_reg=(0.0, 0.1)), blocked=3, triton=2, plans=("small", "held"))
def test_n_pair_is_as_exact_as_eager(backend, case):
    x, y, _ = towers(case)
    arguments = dict(anchor=x, positive=y, l2_reg=case["l2_reg"], reduction=case["reduction"])
    with running(backend, case["plan"]) as device:
        check(fusedloss.n_pair_loss, arguments, case["dtype"], device, roundings=WEIGHTS)


BY_LABELS = (fusedloss.supcon_loss, fusedloss.pairwise_nt_xent_loss, fusedloss.nca_loss)


@cases(
    dict(
        loss=BY_LABELS,
        shape=SHAPES,
        refs=REFS,
        ignored=IGNORED,
        reduction=REDUCTIONS,
        numbers=NUMBERS,
        metric=SIMILARITIES,
    ),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_softmax_losses_by_labels_are_as_exact_as_eager(backend, case):
    N, M, D = case["shape"]
    D = min(D, 19) if case["metric"] == "manhattan" else D  # as in `shapes`: it adds dimension after dimension
    (x, labels), (y, ref_labels) = batch(N, D), batch(M, D, seed=1)
    arguments = dict(embeddings=x, labels=labels, metric=case["metric"], reduction=case["reduction"])
    # NCA's own is 1: at a lower one the gradient by it cancels to the last digits.
    arguments |= dict(temperature=number(case, 1.0 if case["loss"] is fusedloss.nca_loss else 0.3))
    arguments = ignoring(case["ignored"], arguments | references(case["refs"], x, labels, y, ref_labels))
    constant = ["ref_embeddings"] if case["refs"] == "constant" else []
    # The gradient of pairwise NT-Xent is the sum of one through the negatives and two through the positives.
    summands = 2 if case["loss"] is fusedloss.pairwise_nt_xent_loss else 1
    with running(backend, case["plan"]) as device:
        options = dict(constant=constant, roundings=summands * SCALED_WEIGHTS)
        rows = [name for name in ("embeddings", "ref_embeddings") if name in arguments]
        check(case["loss"], arguments, case["dtype"], device, forms=orders(case["loss"], *rows), **options)


def against_negatives(logits, pos, neg):
    """The loss of rows with one positive, exact however small: in cross entropy 1 - p is 0 from 1e-16 on."""
    positive = logits.where(pos, 0).sum(1)
    return -F.logsigmoid(positive - logits.masked_fill(~neg, -torch.inf).logsumexp(1))


def exact_info_nce(query, key, temperature=1.0, normalize=True):
    query, key = (F.normalize(query), F.normalize(key)) if normalize else (query, key)
    own = torch.eye(len(query), dtype=torch.bool)
    return against_negatives(query @ key.T / temperature, own, ~own).mean()


def exact_clip(image, text, logit_scale):
    pairs = ((image, text), (text, image))
    return sum(exact_info_nce(x, y, 1 / logit_scale, normalize=False) for x, y in pairs) / 2


def exact_nt_xent(z1, z2, temperature):
    z, itself = F.normalize(torch.cat([z1, z2])), torch.eye(2 * len(z1), dtype=torch.bool)
    pos = itself.roll(len(z1), 0)
    return against_negatives(z @ z.T / temperature, pos, ~pos & ~itself).mean()


@pytest.mark.parametrize(("D", "noise"), [(64, 0.0), (64, 0.01), (192, 0.1), *in_full((384, 0.0), (1152, 0.1))])
@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_well_aligned_unit_pairs_at_temperature_001_are_exact_and_not_negative(backend, D, noise):
    with running(backend, "default") as device:  # the tiles as they ship
        check_aligned_pairs(device, D, noise)


def check_aligned_pairs(device, D, noise):
    x = F.normalize(batch(24, D)[0])
    y = F.normalize(x + noise * batch(24, D, seed=1)[0])
    labels = torch.arange(24).repeat(2)
    found_and_exact = [
        (fusedloss.info_nce_loss, exact_info_nce, dict(query=x, key=y, temperature=0.01)),
        (fusedloss.nt_xent_loss, exact_nt_xent, dict(z1=x, z2=y, temperature=0.01)),
        (fusedloss.clip_loss, exact_clip, dict(image=x, text=y, logit_scale=torch.tensor(100.0))),
        (
            lambda anchor, positive: fusedloss.n_pair_loss(anchor, positive),
            lambda anchor, positive: exact_info_nce(anchor, positive, normalize=False),
            dict(anchor=10 * x, positive=10 * y),
        ),
        (
            lambda z1, z2: fusedloss.supcon_loss(torch.cat([z1, z2]), labels.to(device), temperature=0.01),
            lambda z1, z2: exact_nt_xent(z1, z2, 0.01),
            dict(z1=x, z2=y),
        ),
    ]
    for loss, oracle, arguments in found_and_exact:
        exact = differentiate(oracle, arguments, torch.float64, "cpu", ())
        found = differentiate(loss, arguments, torch.float32, device, ())
        assert found["value"] >= 0
        # Logits of 100 are rounded to 4e-6, and sums of up to 1152 products to a few of these: so is, relatively, a
        # small loss. Cross entropy of float32 logits would be 0 below 6e-8.
        for name, want in exact.items():
            assert want.abs().max() > 0
            error = (found[name].double().cpu() - want).abs().max()
            smallest = torch.finfo(torch.float32).tiny  # below it float32 has no relative precision
            assert error < 1e-4 * want.abs().max() + smallest, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logits_up_to_ten_thousand_have_exact_values_and_gradients(backend, device, sign):
    common = batch(1, 32)[0]
    x, y = (100 * F.normalize(common + 0.05 * batch(61, 32, seed=seed)[0]) for seed in (1, 2))
    assert (x @ y.T).min() > 9900 and (x @ y.T).max() < 10000
    y, labels = sign * y, torch.arange(61) % 6
    losses = {
        fusedloss.info_nce_loss: dict(query=x, key=y, temperature=1.0, metric="dot"),
        fusedloss.clip_loss: dict(image=x, text=y, logit_scale=1.0),
        fusedloss.siglip_loss: dict(image=x, text=y, logit_scale=1.0, logit_bias=-10.0),
        fusedloss.n_pair_loss: dict(anchor=x, positive=y),
        fusedloss.supcon_loss: dict(
            embeddings=x, labels=labels, ref_embeddings=y, ref_labels=labels, temperature=1.0, metric="dot"
        ),
        fusedloss.multi_similarity_loss: dict(
            embeddings=x, labels=labels, ref_embeddings=y, ref_labels=labels, beta=1.0, alpha=1.0, metric="dot"
        ),
    }
    for loss, arguments in losses.items():
        check(loss, arguments | dict(reduction="none"), device=device)  # of one number, eager's error may be luck


def test_a_queue_of_logits_far_below_zero_is_exact(backend, device):
    """The log sum exp of the queue is about -20,000, and so is that of the batch: nothing may be clamped there."""
    common = batch(1, 32)[0]
    x, y, queue = (100 * F.normalize(common + 0.05 * batch(n, 32, seed=n)[0]) for n in (21, 22, 23))
    assert -2.0 * (x @ queue.T).min() < -19_000
    arguments = dict(query=x, key=-y[:21], negatives=-queue, temperature=0.5, metric="dot", reduction="none")
    check(fusedloss.info_nce_loss, arguments, device=device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_beyond_float16_do_not_overflow(backend, device, dtype):
    x, y = (40 * batch(12, 16, seed=seed)[0] for seed in range(2))
    assert (100 * x @ y.T).abs().max() > 65504
    arguments = dict(image=x, text=y, logit_scale=100.0)
    check(fusedloss.clip_loss, arguments, dtype, device, roundings=WEIGHTS, closer=False, oracle=in_float32)


def in_float32(image, text, logit_scale, **options):
    """A form of eager that does not overflow either."""
    wide = torch.promote_types(image.dtype, torch.float32)
    return fusedloss.reference.clip_loss(image.to(wide), text.to(wide), logit_scale, **options)


def test_a_saturated_loss_has_a_value_and_a_gradient_of_its_own_size(backend, device):
    """softplus(-60): 1 - p is 0 in float32, and the loss is not."""
    x = torch.eye(4, 16)
    exact = differentiate(fusedloss.reference.n_pair_loss, dict(anchor=60 * x, positive=x), torch.float64, "cpu", ())
    found = differentiate(fusedloss.n_pair_loss, dict(anchor=60 * x, positive=x), torch.float32, device, ())
    want = 3 * 3 * math.exp(-60)  # of 3 negatives, and an upstream derivative of 3
    assert found["value"].item() == pytest.approx(3 * math.exp(-60), rel=1e-5)
    assert found["anchor"].abs().max().item() == pytest.approx(want / 4, rel=1e-5)
    assert exact["value"] == 0 or exact["value"].item() == pytest.approx(3 * math.exp(-60), rel=1e-3)


@pytest.mark.parametrize("workspace", [0, 1 << 20])
def test_columns_folded_with_the_rows_equal_a_pass_of_their_own(workspace, monkeypatch):
    configs = pytest.importorskip("fusedloss.kernels.configs")
    x, y = (batch(41, 23, seed=seed)[0].float() for seed in range(2))
    rows = torch.arange(41)
    with running("triton", "small") as device:
        monkeypatch.setattr(configs, "WORKSPACE", workspace)
        x, y, rows = x.to(device), y.to(device), rows.to(device)
        options = dict(loss="softmax", metric="dot", pos=ops.of("sum", scale=3.0), neg=ops.of("lse", scale=3.0))
        found = torch.stack(ops.fold(Batch(x, y, rows, rows, None), columns=True, **options))
        ways = (ops.fold(Batch(a, b, rows, rows, None), **options) for a, b in ((x, y), (y, x)))
        want = torch.cat([torch.stack(way) for way in ways], 1)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [fusedloss.clip_loss, fusedloss.siglip_loss, fusedloss.info_nce_loss])
def test_a_tower_that_is_not_trained_costs_no_gradient(backend, device, loss):
    arguments = {k: v.to(device) for k, v in example(loss).items()}
    rows = [name for name, v in arguments.items() if v.dim() == 2]
    for trained, expected in zip(rows, [(True, False, False), (False, True, False)], strict=True):
        leaf = arguments[trained].clone().requires_grad_()
        with wanted_of_backends() as asked:
            loss(**(arguments | {trained: leaf})).backward()
        assert [of[:3] for of in asked] == [expected]
        assert leaf.grad.count_nonzero()
    with wanted_of_backends() as asked, torch.no_grad():
        loss(**{k: v.clone().requires_grad_() for k, v in arguments.items()})
    assert not asked


def test_only_the_scale_may_be_trained(backend, device):
    for loss in (fusedloss.clip_loss, fusedloss.siglip_loss):
        arguments = example(loss)
        check(loss, arguments, device=device, constant=["image", "text"])


def test_the_bias_of_clip_changes_nothing_and_its_gradient_is_zero(backend, device):
    arguments = {k: v.to(device) for k, v in example(fusedloss.clip_loss).items()}
    bias = torch.tensor(-7.0, device=device, requires_grad=True)
    loss = fusedloss.clip_loss(**arguments, logit_bias=bias)
    loss.backward()
    assert bias.grad == 0
    assert torch.equal(loss.detach(), fusedloss.clip_loss(**arguments))
    assert torch.equal(loss.detach(), fusedloss.clip_loss(**arguments, logit_bias=-7.0))


def test_one_row_has_no_negatives_and_no_loss(backend, device):
    x = torch.ones(1, 5, device=device)
    for loss in (fusedloss.info_nce_loss, fusedloss.nt_xent_loss, fusedloss.n_pair_loss):
        leaf = x.clone().requires_grad_()
        value = loss(leaf, 2 * x)
        value.backward()
        assert value == 0 and not leaf.grad.count_nonzero()


@pytest.mark.parametrize("labels", [[7], [0, 1, 2, 3, 4, 5]], ids=["one row", "all distinct"])
@pytest.mark.parametrize("loss", BY_LABELS)
def test_without_a_positive_a_loss_is_zero_with_zero_gradient(backend, device, loss, labels):
    x = batch(len(labels), 5)[0].float().to(device).requires_grad_()
    value = loss(x, torch.tensor(labels, device=device))
    value.backward()
    assert value == 0 and not x.grad.count_nonzero()


@pytest.mark.parametrize("loss", [fusedloss.pairwise_nt_xent_loss, fusedloss.nca_loss])
def test_without_a_negative_a_loss_is_zero_with_zero_gradient(backend, device, loss):
    """The gradient by the temperature is 0 too: a log sum exp of no pair is -inf, and takes no score."""
    x = batch(6, 5)[0].float().to(device).requires_grad_()
    temperature = torch.tensor(0.07, device=device, requires_grad=True)
    value = loss(x, torch.zeros(6, dtype=torch.int64, device=device), temperature=temperature)
    value.backward()
    assert value == 0 and not x.grad.count_nonzero() and temperature.grad == 0


def test_one_sample_has_no_decoupled_loss(backend, device):
    x, y = (torch.ones(1, 3, device=device, requires_grad=True) for _ in range(2))
    value = fusedloss.decoupled_contrastive_loss(x, y, sigma=0.5)
    value.backward()
    assert value == 0 and not x.grad.count_nonzero() and not y.grad.count_nonzero()


def test_recipes_of_supcon_are_what_they_say(backend, device):
    """The layout of SupContrast, and captions of images either way."""
    features, labels = batch(12, 5)[0].float().view(6, 2, 5).to(device), torch.tensor([0, 1, 0, 2, 1, 0], device=device)
    views = torch.cat(features.unbind(1))  # as its code lays them out
    want = fusedloss.supcon_loss(views, labels.repeat(2))
    found = fusedloss.supcon_loss(features.flatten(0, 1), labels.repeat_interleave(2))
    torch.testing.assert_close(found, want)
    images, texts = features[:4, 0], batch(9, 5, seed=1)[0].float().to(device)
    ids, text_ids = torch.arange(4, device=device), torch.arange(9, device=device) % 4
    s = F.normalize(images) @ F.normalize(texts).T / 0.1
    same = ids[:, None] == text_ids
    ways = [-(z.log_softmax(1).where(mask, 0).sum(1) / mask.sum(1)).mean() for z, mask in ((s, same), (s.T, same.T))]
    found = fusedloss.supcon_loss(images, ids, texts, text_ids) + fusedloss.supcon_loss(texts, text_ids, images, ids)
    torch.testing.assert_close(found, ways[0] + ways[1])
