"""Gradients that come with the forward: equal to those of two passes, and nothing else of a loss differs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fusedloss
from fusedloss import checks, ops
from fusedloss.backends import use_backend
from fusedloss.losses.catalog import CATALOG
from tests.compare import accumulated
from tests.grid import DTYPES, METRICS, batch, covering, reductions, references, running

pytest.importorskip("triton")

from fusedloss.backends.triton import folds
from fusedloss.backends.triton.launch import recording
from fusedloss.tools import report
from fusedloss.tools.footprint import footprint
from fusedloss.tools.workloads import Workload, arguments

EMITTING = [name for name, loss in CATALOG.items() if loss.emits]


@pytest.fixture
def kernel_device():
    """Where the kernels run: on the CPU in the interpreter. Sorted rows in tiles so small that some are far."""
    with running("triton", "sorted") as device:
        yield device


def two_passes(patch):
    patch.setattr(ops, "close", lambda *_, **__: None)


def outcome(loss, arguments, device, dtype=torch.float32, upstream=1.0, frozen=()):
    """The value of a loss and its gradients, by name."""
    own = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
    for name, v in own.items():
        if isinstance(v, torch.Tensor) and v.is_floating_point():
            stored = v.detach().to(dtype if v.dim() > 1 else accumulated(dtype), copy=True)
            own[name] = stored.requires_grad_(name not in frozen)
    value = loss(**own)
    value.backward(torch.tensor(upstream, device=device))
    grads = {name: v.grad for name, v in own.items() if isinstance(v, torch.Tensor) and v.grad is not None}
    return {"value": value.detach(), **grads}


def assert_equal(found, want, exact=False):
    """Up to the order of sums and, in 16 bits, up to one rounding of the weights of the products and of the result."""
    assert found.keys() == want.keys()
    for name, like in want.items():
        assert (found[name].dtype, found[name].shape) == (like.dtype, like.shape)
        if exact:
            assert torch.equal(found[name], like), name
            continue
        eps = torch.finfo(like.dtype).eps * (1 if like.dtype in (torch.float16, torch.bfloat16) else 16)
        finite = like.isfinite()
        assert torch.equal(found[name].isfinite(), finite), name
        size = float(like[finite].abs().double().max()) if finite.any() else 0.0
        atol = eps * size + torch.finfo(torch.float16).smallest_normal * eps * (like.dtype == torch.float16)
        torch.testing.assert_close(found[name][finite].double(), like[finite].double(), rtol=eps, atol=atol, msg=name)


def both_ways(loss, arguments, device, exact=False, **how):
    """The outcome with emitted gradients, after a comparison with that of two passes."""
    found = outcome(loss, arguments, device, **how)
    with pytest.MonkeyPatch.context() as patch:
        two_passes(patch)
        assert_equal(found, outcome(loss, arguments, device, **how), exact)
    return found


# ------------------------------------------------------------------------------------- the same as two passes give

# Margins that no pair is beyond, or every pair. The boundaries of `margin_loss` are below 0 for some labels.
MARGINS = {
    "usual": dict(pos_margin=0.1, neg_margin=1.2),
    "zero": dict(pos_margin=0.0, neg_margin=0.0),
    "idle": dict(pos_margin=1e4, neg_margin=0.0),
    "active": dict(pos_margin=0.0, neg_margin=1e4),
    "learned": dict(pos_margin=torch.tensor(0.1), neg_margin=torch.tensor(1.2)),
}
AXES = {
    "loss": ("contrastive", "linear", "margin", "margin by label"),
    "margins": tuple(MARGINS),
    "metric": METRICS,
    "refs": ("self", "refs", "constant", "among"),
    "ignored": (None, 1),
    "N": (21, 36, 5),
    "upstream": (1.0, 0.0, 0.7, 65536.0),
    "reduction": ("mean", "sum"),
}


def hinges(case):
    """A loss of hinges and its arguments."""
    N, margins = case["N"], MARGINS[case["margins"]]
    rows, labels = batch(N, 5, classes=4)
    y, y_labels = batch(17, 5, classes=4, seed=1)
    arguments = dict(embeddings=rows, labels=labels, **references(case["refs"], rows, labels, y, y_labels))
    options = dict(metric=case["metric"], reduction=case["reduction"], ignore_index=case["ignored"])
    if case["loss"] in ("contrastive", "linear"):
        power = 2 if case["loss"] == "contrastive" else 1
        return fusedloss.pairwise_contrastive_loss, arguments | margins | options | dict(power=power)
    if case["loss"] == "margin":
        given = dict(margin=margins["pos_margin"], beta=margins["neg_margin"])
    else:
        given = dict(margin=margins["pos_margin"], beta=torch.linspace(-0.5, 1.5, 5) + margins["neg_margin"])
    return fusedloss.margin_loss, arguments | given | options


PLANS = dict(triton=("sorted", "sorted split", "default"), blocked=("small", "default"))


def cases(axes):
    """Tests (backend, case) over the axes, dtypes and plans."""
    return pytest.mark.parametrize(
        ("backend", "case"),
        [
            pytest.param(backend, case, id="-".join([backend, *map(str, case.values())]))
            for backend in PLANS
            for case in covering({**axes, "dtype": DTYPES[backend], "plan": PLANS[backend]}, 2)
        ],
    )


@cases(AXES)
def test_hinges(backend, case):
    with running(backend, case["plan"]) as device:
        loss, arguments = hinges(case)
        frozen = ("ref_embeddings",) if case["refs"] == "constant" else ()
        how = dict(dtype=case["dtype"], upstream=case["upstream"], frozen=frozen)
        found = both_ways(loss, arguments, device, **how)
        assert all(t.isfinite().all() for name, t in found.items() if case["upstream"] < 2 or t.dtype == torch.float32)


SIGLIP = {
    "numbers": ("fixed", "learned"),
    "frozen": ((), ("image",), ("text",), ("image", "text")),
    "ids": (False, True),
    "M": (0, 13),
    "upstream": (1.0, 65536.0),
    "reduction": ("mean", "sum"),
}


@cases(SIGLIP)
def test_siglip(backend, case):
    N = 19
    if case["numbers"] == "fixed" and len(case["frozen"]) == 2:
        pytest.skip("nothing wants a gradient")
    image, text = batch(N, 5)[0], batch(N + case["M"], 5, seed=1)[0]
    arguments = dict(image=image, text=text, logit_scale=5.0, logit_bias=-3.0, reduction=case["reduction"])
    if case["numbers"] == "learned":
        arguments |= dict(logit_scale=torch.tensor(5.0), logit_bias=torch.tensor(-3.0))
    if case["M"]:
        arguments["offset"] = 4
    if case["ids"]:
        ids = torch.arange(N + case["M"]) // 3
        arguments |= dict(ids=ids[4 : 4 + N] if case["M"] else ids, **(dict(text_ids=ids) if case["M"] else {}))
    with running(backend, case["plan"]) as device:
        how = dict(dtype=case["dtype"], upstream=case["upstream"], frozen=case["frozen"])
        both_ways(fusedloss.siglip_loss, arguments, device, **how)


def test_boundaries_of_float64_rows_have_their_gradient_in_float64():
    case = dict(loss="margin by label", margins="usual", metric="euclidean", refs="self", ignored=None, N=21)
    loss, arguments = hinges(case | dict(reduction="mean"))
    found = both_ways(loss, arguments, "cpu", dtype=torch.float64, upstream=0.7)
    assert found["beta"].dtype == torch.float64 and found["beta"].count_nonzero()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_gradients_are_rounded_after_they_are_scaled(kernel_device, dtype):
    """The means of many pairs have gradients too small for float16, until a loss is scaled by 65,536."""
    rows, labels = batch(37, 9)
    refs, ref_labels = batch(21, 9, seed=1)
    arguments = dict(embeddings=rows, labels=labels, ref_embeddings=refs, ref_labels=ref_labels, neg_margin=0.9)

    def tiny(**given):
        return fusedloss.pairwise_contrastive_loss(**given) * 1e-5

    found = both_ways(tiny, arguments, kernel_device, dtype=dtype, upstream=65536.0)
    assert all(found[name].count_nonzero() for name in ("embeddings", "ref_embeddings"))


@pytest.mark.parametrize(("N", "M"), [(0, None), (1, None), (0, 5), (5, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_pairs_it_is_zero_with_zero_gradient(kernel_device, N, M, reduction):
    rows, labels = torch.ones(N, 4), torch.zeros(N, dtype=torch.int64)
    refs = {} if M is None else dict(ref_embeddings=torch.ones(M, 4), ref_labels=torch.zeros(M, dtype=torch.int64))
    for loss in (fusedloss.pairwise_contrastive_loss, fusedloss.margin_loss):
        arguments = dict(embeddings=rows, labels=labels, reduction=reduction, **refs)
        found = both_ways(loss, arguments, kernel_device, exact=True)
        assert all(not t.count_nonzero() for t in found.values())


def test_results_are_the_same_bit_for_bit_and_sums_of_programs_are_in_a_fixed_order():
    case = dict(loss="margin", margins="learned", metric="euclidean", refs="self", ignored=1, reduction="mean", N=36)
    for plan in ("sorted", "sorted split"):
        with running("triton", plan) as device:
            loss, arguments = hinges(case)
            first, again = (outcome(loss, arguments, device) for _ in range(2))
            assert_equal(first, again, exact=True)


# ------------------------------------------------------------------------------------------------- which launches

OF_FOLDS = [name for name, loss in CATALOG.items() if loss.family == "folds"]


def kernels(name, N=4096, **options):
    """The names of the kernels of a step."""
    work = Workload(name, N, 128, "bf16", options=tuple(options.items()), classes=64)
    return [launch.kernel.fn.__name__ for launch in report.launches(work, "sm_90")]


@pytest.mark.parametrize("name", OF_FOLDS)
def test_the_catalog_knows_which_losses_have_their_gradient_with_the_forward(name):
    for options in ({}, *CATALOG[name].variants):
        for reduction in ("mean", "sum"):
            found = kernels(name, reduction=reduction, **options)
            if CATALOG[name].emits:
                assert found == ["prepare", "grad", "merge"]
            else:
                assert "fold" in found and "grad" in found


@pytest.mark.parametrize("name", EMITTING)
def test_the_value_of_an_active_mean_decides_its_gradient(name):
    """So it takes two passes."""
    if "active" in reductions(CATALOG[name].function):
        assert kernels(name, reduction="active") == ["prepare", "fold", "finish", "grad", "merge"]


@pytest.mark.parametrize("name", EMITTING)
def test_without_a_gradient_or_a_reduction_nothing_is_emitted(name):
    """A step of each row's loss and a forward alone start with a fold."""
    work = Workload(name, 4096, 128, "bf16")
    with use_backend("triton"), recording("sm_90") as alone, torch.no_grad():
        CATALOG[name].function(**arguments(work, "meta"), reduction="mean")
    assert {launch.kernel.fn.__name__ for launch in alone} == {"prepare", "fold", "merge"}
    with use_backend("triton"), recording("sm_90") as each:
        CATALOG[name].function(**arguments(work, "meta"), reduction="none").sum().backward()
    found = [launch.kernel.fn.__name__ for launch in each]
    assert found.index("fold") < found.index("grad")


# Kernels of a step where it takes more than 5: two folds or three of them, one after the other.
IN_A_ROW = {"decoupled_contrastive_loss": 19, "pairwise_nt_xent_loss": 12, "lifted_structure_loss": 12}


@pytest.mark.parametrize("name", OF_FOLDS)
def test_a_step_of_a_small_batch_has_few_launches(name):
    options = {"reduction": "mean"} if CATALOG[name].emits else {}
    found = footprint(Workload(name, 4096, 128, "bf16", options=tuple(options.items())), "sm_90").kernels
    assert found <= IN_A_ROW.get(name, 3 if CATALOG[name].emits else 5)


# ----------------------------------------------------------------------------------------------------- idle tiles


def never_idle(patch):
    """Tiles whose pairs are all apart are computed like all others."""
    patch.setattr(folds, "scores", Without(folds.scores))


class Without:
    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return None if name.endswith("_apart") else getattr(self.module, name)


def idle_or_not(loss, arguments, device, **how):
    """The outcome, after a comparison with that in which no tile is idle."""
    found = outcome(loss, arguments, device, **how)
    with pytest.MonkeyPatch.context() as patch:
        never_idle(patch)
        want = outcome(loss, arguments, device, **how)
    assert_equal(found, want, exact=True)
    return found


def apart(N=32, D=5, step=1.0, classes=8):
    """Classes on a line, each a step from the next: most tiles are farther apart than a step."""
    labels = torch.arange(N) * classes // N
    rows = torch.zeros(N, D, dtype=torch.float64)
    rows[:, 0] = labels * step
    return rows, labels


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(("metric", "dtype"), [*((m, torch.float32) for m in METRICS), ("cosine", torch.bfloat16)])
def test_idle_tiles_cost_nothing_and_change_nothing(kernel_device, metric, dtype, offsets):
    rows, labels = batch(48, 9, classes=8)
    rows = rows + 0.5 * torch.nn.functional.one_hot(labels, 9)
    options = dict(metric=metric, reduction="mean")
    far = dict(euclidean=0.9, sqeuclidean=0.8, cosine=0.6, manhattan=3.0)[metric]
    if offsets:
        beta = far + torch.linspace(-0.3, 0.1, 9)
        arguments = dict(embeddings=rows, labels=labels, beta=beta, margin=0.1, **options)
        found = idle_or_not(fusedloss.margin_loss, arguments, kernel_device, dtype=dtype)
    else:
        arguments = dict(embeddings=rows, labels=labels, neg_margin=far, **options)
        found = idle_or_not(fusedloss.pairwise_contrastive_loss, arguments, kernel_device, dtype=dtype)
    assert found["value"] > 0 and found["embeddings"].count_nonzero()


@pytest.mark.parametrize("metric", METRICS)
def test_tiles_beyond_the_margin_are_left_out(kernel_device, metric, monkeypatch):
    """What is left out is seen in a loss whose every pair costs something."""
    rows, labels = apart(classes=8)
    rows[:, 1] = torch.arange(32) / 64
    if metric == "cosine":
        rows = torch.nn.functional.one_hot(labels, 9).double()
    arguments = dict(embeddings=rows.float(), labels=labels, neg_margin=0.5, metric=metric, power=1, reduction="sum")
    want = outcome(fusedloss.pairwise_contrastive_loss, arguments, kernel_device)["value"]
    monkeypatch.setitem(folds.PIECES, "sigmoid", folds.PIECES["sigmoid"]._replace(sparse=True))
    x = checks.batch(arguments["embeddings"].to(kernel_device).requires_grad_(), labels.to(kernel_device), *[None] * 4)
    kept = []
    for patched in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                never_idle(patch)
            neg = ops.of("sum", scale=0.5, bias=0.0)  # its first number is taken for the margin
            kept.append(ops.close(x, "sigmoid", metric, "sums", "sum", neg=neg).detach())
    assert kept[0] < 0.5 * kept[1] and want.isfinite()


def beside(value):
    """A float32 number and its neighbours."""
    v = torch.tensor(float(value))
    return [float(t) for t in (v, v.nextafter(v + 1), v.nextafter(v - 1))]


@pytest.mark.parametrize("refs", [False, True])
@pytest.mark.parametrize(("metric", "step"), [(m, s) for m in METRICS if m != "cosine" for s in (1, 0.7)])
def test_pairs_at_the_margin_and_next_to_it(kernel_device, metric, step, refs):
    """The tile of the first half against the second has neighbours that are a step apart."""
    rows, labels = apart(step=step)
    for margin in beside(step * step if metric == "sqeuclidean" else step):
        arguments = dict(embeddings=rows, labels=labels, neg_margin=margin, metric=metric, power=1, reduction="sum")
        if refs:
            arguments |= dict(ref_embeddings=rows.flip(0), ref_labels=labels.flip(0))
        idle_or_not(fusedloss.pairwise_contrastive_loss, arguments, kernel_device)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@pytest.mark.parametrize(("beta", "margin"), [(0.8, 0.2), (0.3, 0.7), (-0.19, 0.2), (-999.0, 1000.0)])
def test_pairs_at_the_boundary_of_an_anchor(kernel_device, metric, beta, margin):
    """The boundary of a tile is a sum of two numbers, which is rounded otherwise than the term is."""
    rows, labels = apart()
    for b in beside(beta):
        arguments = dict(embeddings=rows, labels=labels, beta=torch.full((8,), b), margin=margin, metric=metric)
        idle_or_not(fusedloss.margin_loss, arguments | dict(reduction="sum"), kernel_device)


@pytest.mark.parametrize("refs", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_show(kernel_device, metric, broken, refs):
    """Idle tiles hide no row that is not finite: its loss and gradient are NaN where they are without idle tiles."""
    rows, labels = apart()
    rows[:, 1] = -1.0
    rows[21, 1] = broken
    arguments = dict(embeddings=rows, labels=labels, neg_margin=0.4, metric=metric, reduction="mean")
    if refs:
        others, their_labels = apart(classes=4)
        arguments |= dict(ref_embeddings=others + 0.1, ref_labels=their_labels)
    found = outcome(fusedloss.pairwise_contrastive_loss, arguments, kernel_device)
    with pytest.MonkeyPatch.context() as patch:
        never_idle(patch)
        want = outcome(fusedloss.pairwise_contrastive_loss, arguments, kernel_device)
    assert torch.equal(found["value"].isnan(), want["value"].isnan())
    assert torch.equal(found["embeddings"][21].isnan(), want["embeddings"][21].isnan())
    if broken != broken:
        assert found["value"].isnan()
        for name, like in want.items():
            assert torch.equal(found[name].isnan(), like.isnan()), name


# -------------------------------------------------------------------------------------------------------- autograd

CALLS = {
    "emitted": lambda x, labels, **o: fusedloss.pairwise_contrastive_loss(x, labels, neg_margin=1.2, **o),
    "closed": lambda x, labels, **o: fusedloss.supcon_loss(x, labels, **o),
}


def leaf(device, N=21, D=7):
    rows, labels = batch(N, D)
    return rows.float().to(device).requires_grad_(), labels.to(device)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_double_backward_is_an_error(kernel_device, call):
    x, labels = leaf(kernel_device)
    (dx,) = torch.autograd.grad(call(x, labels), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        dx.sum().backward()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_retained_graph_is_walked_again(kernel_device, call):
    x, labels = leaf(kernel_device)
    value = call(x, labels)
    first = torch.autograd.grad(value, x, retain_graph=True)[0]
    twice = torch.autograd.grad(value, x, torch.tensor(2.0, device=kernel_device), retain_graph=True)[0]
    again = torch.autograd.grad(value, x)[0]
    assert torch.equal(first, again) and torch.equal(twice, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, x)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_hooks_of_saved_tensors(kernel_device, call):
    x, labels = leaf(kernel_device)
    (want,) = torch.autograd.grad(call(x, labels), x)
    with torch.autograd.graph.save_on_cpu():
        value = call(x, labels)
    assert torch.equal(torch.autograd.grad(value, x)[0], want)
    recomputed = checkpoint(lambda x: call(2.0 * x / 2.0, labels), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(recomputed, x)[0], want)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_input_that_is_changed_before_the_backward_is_an_error(kernel_device, call):
    x, labels = leaf(kernel_device)
    rows = x * 1.0
    value = call(rows, labels)
    rows += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_only_plain_eager_calls_emit(kernel_device):
    """Transforms of torch.func and forward-mode derivatives compose the folds."""
    x, labels = leaf(kernel_device)
    (want,) = torch.autograd.grad(CALLS["emitted"](x, labels), x)
    found = torch.func.grad(lambda x: CALLS["emitted"](x, labels))(x.detach())
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-8)
