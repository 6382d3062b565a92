"""Planted faults (`tests/faults.py`) that no other test found."""

import math

import pytest
import torch

import fusedloss
from fusedloss import checks, ops
from tests.compare import check
from tests.grid import batch, running


@pytest.mark.parametrize(
    "loss", [fusedloss.supcon_loss, fusedloss.multi_similarity_loss, fusedloss.batch_all_triplet_loss]
)
@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_positives_of_tiles_of_one_class_count(backend, loss):
    """Rows sorted by label, whose last class fills blocks of rows and ends the blocks of columns."""
    arguments = dict(embeddings=batch(32, 5)[0], labels=torch.arange(32) // 16)
    with running(backend, "small") as device:
        check(loss, arguments, device=device, roundings=2)


@pytest.mark.parametrize("workspace", [0, 1 << 20])  # a pass of their own, or with the rows
def test_of_columns_too_the_pair_of_a_row_with_itself_is_left_out(workspace, monkeypatch):
    """No loss shows this: the only one that folds columns of a batch among its references folds just negatives."""
    (x, labels), (y, ref_labels) = batch(20, 5), batch(3, 5, seed=1)
    refs, ref_labels = torch.cat([y, x]).float(), torch.cat([ref_labels, labels])
    s = x.float() @ refs.T
    left_out = torch.arange(23) == torch.arange(20)[:, None] + 3
    positives = (labels[:, None] == ref_labels) & ~left_out
    with running("triton", "small") as device:
        monkeypatch.setattr("fusedloss.kernels.configs.WORKSPACE", workspace)
        given = checks.Batch(*(t.to(device) for t in (x.float(), refs, labels, ref_labels)), 3)
        (found,) = ops.fold(given, "softmax", "dot", pos=ops.of("sum", scale=1.0), columns=True)
        monkeypatch.undo()
    want = s.where(positives, 0.0)
    torch.testing.assert_close(found.cpu().float(), torch.cat([want.sum(1), want.sum(0)]))


@pytest.mark.parametrize("z", [21.0, 25.0, 30.0])
def test_a_certain_mistake_costs_its_logit_and_what_is_left_of_the_others(z):
    """In float64, where PyTorch's softplus drops half of the digits from 20 on."""
    logits = torch.tensor([[0.0, z]], dtype=torch.float64)
    loss = fusedloss.cross_entropy_loss(logits, torch.tensor([0]))
    assert loss.item() - z == pytest.approx(math.log1p(math.exp(-z)), rel=0, abs=8e-15)
