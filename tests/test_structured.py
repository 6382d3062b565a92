"""Multi-similarity, circle and lifted structure losses: exact as eager over a covering grid, and degenerate batches."""

import pytest
import torch

import fusedloss
from fusedloss.options import rules_of
from tests.compare import check
from tests.grid import IGNORED, PLANS, REFS, batch, cases, ignoring, reductions, references, running

STRUCTURED = [
    fusedloss.multi_similarity_loss,
    fusedloss.circle_loss,
    fusedloss.generalized_lifted_structure_loss,
    fusedloss.lifted_structure_loss,
]
# Moderate logits, where the error of a score is not magnified 50 or 80 times: the defaults are in test_parity.
OPTIONS = {
    fusedloss.multi_similarity_loss: (dict(alpha=1.5, beta=4.0, base=0.3), dict(alpha=3.0, beta=2.0, base=-0.1)),
    fusedloss.circle_loss: (dict(margin=0.4, gamma=3.0), dict(margin=0.1, gamma=5.0)),
    fusedloss.generalized_lifted_structure_loss: ({}, dict(neg_margin=1.5, pos_margin=0.2)),
    fusedloss.lifted_structure_loss: ({}, dict(neg_margin=1.5, pos_margin=0.2)),
}
SHAPES = ((23, 37, 37), (11, 41, 6), (41, 5, 4), (17, 13, 101))
WEIGHTS = 3  # as in test_softmax


@cases(
    dict(
        loss=STRUCTURED,
        shape=SHAPES,
        refs=REFS,
        ignored=IGNORED,
        reduction=("mean", "sum", "none", "active"),
        on_sphere=(True, False),
        options=(0, 1),
    ),
    blocked=3,
    triton=2,
    plans=tuple(PLANS),
)
def test_structured_losses_are_as_exact_as_eager(backend, case):
    N, M, D = case["shape"]
    (x, labels), (y, ref_labels) = batch(N, D), batch(M, D, seed=1)
    reduction = case["reduction"] if case["reduction"] in reductions(case["loss"]) else "mean"
    arguments = dict(embeddings=x, labels=labels, reduction=reduction)
    if "normalize" in case["loss"].__kwdefaults__:
        arguments["normalize"] = case["on_sphere"]
    elif "dot" in rules_of(case["loss"])["metric"].keywords["allowed"]:
        arguments["metric"] = "cosine" if case["on_sphere"] else "dot"
    arguments |= OPTIONS[case["loss"]][case["options"]]
    arguments = ignoring(case["ignored"], arguments | references(case["refs"], x, labels, y, ref_labels))
    constant = ["ref_embeddings"] if case["refs"] == "constant" else []
    # The gradient of lifted structure is the sum of two, each rounded to the inputs' dtype, which cancel more where the
    # batch is among the references: 5.9 roundings measured.
    cancels = case["loss"] is fusedloss.lifted_structure_loss and case["refs"] in ("first", "among")
    roundings = 2 * WEIGHTS if cancels else WEIGHTS
    with running(backend, case["plan"]) as device:
        check(case["loss"], arguments, case["dtype"], device, constant=constant, roundings=roundings)


@pytest.mark.parametrize("loss", STRUCTURED)
@pytest.mark.parametrize("labels", [[7], [3] * 6, [0, 1, 2, 3, 4, 5]], ids=["one row", "one class", "all distinct"])
def test_of_one_kind_of_pairs_a_loss_is_the_references(backend, device, loss, labels):
    x, labels = batch(len(labels), 5)[0], torch.tensor(labels)
    leaf = x.float().to(device).requires_grad_()
    value = loss(leaf, labels.to(device))
    value.backward()
    exact = x.clone().requires_grad_()
    want = getattr(fusedloss.reference, loss.__name__)(exact, labels)
    want.backward()
    torch.testing.assert_close(value.cpu().double(), want, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=1e-4, atol=1e-6)
    if loss in (fusedloss.circle_loss, fusedloss.lifted_structure_loss):
        assert value == 0 and not leaf.grad.count_nonzero()  # a kind is missing


@pytest.mark.parametrize("loss", STRUCTURED)
def test_zero_rows_are_exact(backend, device, loss):
    x, labels = batch(12, 5, classes=2)
    x[::3] = 0.0
    check(loss, dict(embeddings=x, labels=labels) | OPTIONS[loss][1], device=device)


@pytest.mark.parametrize("loss", STRUCTURED)
def test_equal_rows_have_a_finite_gradient_and_a_close_value(backend, device, loss):
    x, labels = batch(12, 5, classes=2)
    x[6:] = x[:6]
    leaf = x.float().to(device).requires_grad_()
    value = loss(leaf, labels.to(device), **OPTIONS[loss][1])
    value.backward()
    want = getattr(fusedloss.reference, loss.__name__)(x, labels, **OPTIONS[loss][1])
    assert leaf.grad.isfinite().all()
    assert abs(value.item() - want.item()) < 1e-3 * want.item()  # a distance is the root of a rounded difference
