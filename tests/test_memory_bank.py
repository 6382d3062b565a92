"""MemoryBank: the loss against the last rows, whatever the sizes of the batches, and what is saved of them."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedloss
from fusedloss import MemoryBank, reference
from tests.grid import IN_BATCH, batch, in_front

SIZES = [7, 5, 13, 4]  # of the batches


def batches(sizes=SIZES, D=5):
    found = [batch(N, D, classes=2, seed=i) for i, N in enumerate(sizes)]
    return [(x.float(), labels) for x, labels in found]


@pytest.mark.parametrize("size", [3, 10, 100])
@in_front(IN_BATCH)
def test_a_step_is_the_loss_against_the_batch_and_the_last_rows(backend, device, loss, size):
    bank = MemoryBank(loss, size, 5).to(device)
    past, past_labels = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for x, labels in batches():
        leaf = x.to(device, copy=True).requires_grad_()
        value = bank(leaf, labels.int().to(device))
        value.backward()
        exact = x.double().requires_grad_()
        refs, ref_labels = torch.cat([x.double(), past]), torch.cat([labels, past_labels])
        want = getattr(reference, loss.__name__)(exact, labels, refs, ref_labels, ref_offset=0)
        want.backward()
        torch.testing.assert_close(value.cpu().double(), want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=1e-3, atol=1e-5)
        past, past_labels = (torch.cat(pair)[-size:] for pair in ((past, x.double()), (past_labels, labels)))


@pytest.mark.parametrize("size", [3, 10])
def test_keys_are_the_queue_of_info_nce(backend, device, size):
    bank = MemoryBank(fusedloss.InfoNCELoss(in_batch_negatives=False), size, 5).to(device)
    queue = torch.zeros(0, 5, device=device)
    for (query, _), (key, _) in zip(batches(), batches(), strict=True):
        query, key = query.to(device), key.roll(1, 0).to(device)
        want = fusedloss.info_nce_loss(query, key, queue, in_batch_negatives=False)
        torch.testing.assert_close(bank(query, key), want)
        queue = torch.cat([queue, key])[-size:]


@pytest.mark.parametrize("loss", [fusedloss.supcon_loss, fusedloss.SupConLoss(), reference.supcon_loss])
def test_a_loss_may_be_partial_or_one_that_fusedloss_has_not(loss):
    """The reference's functions are any others: only the names of what they take say what they are."""
    bank = MemoryBank(partial(loss, temperature=0.5), 10, 5)
    want = MemoryBank(fusedloss.SupConLoss(temperature=0.5), 10, 5)
    for x, labels in batches():
        torch.testing.assert_close(bank(x, labels), want(x, labels))


def test_a_queue_may_be_that_of_a_partial_or_of_another_loss():
    def other(query, key, negatives):
        return fusedloss.info_nce_loss(query, key, negatives, in_batch_negatives=False)

    banks = [MemoryBank(loss, 10, 5) for loss in (other, partial(fusedloss.info_nce_loss, in_batch_negatives=False))]
    for x, _ in batches():
        torch.testing.assert_close(*(bank(x, x.roll(1, 0)) for bank in banks))


def test_a_bank_goes_on_from_its_saved_state():
    steps = batches()
    bank = MemoryBank(fusedloss.SupConLoss(temperature=torch.nn.Parameter(torch.tensor(0.2))), 10, 5)
    for x, labels in steps[:2]:
        bank(x, labels)
    assert bank.state_dict().keys() == {"embeddings", "labels", "position", "loss.temperature"}
    assert bank.state_dict()["position"] == 12
    loaded = MemoryBank(fusedloss.SupConLoss(temperature=torch.nn.Parameter(torch.tensor(0.1))), 10, 5)
    loaded.load_state_dict(bank.state_dict())
    for other in (loaded, copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        clone = copy.deepcopy(bank)
        assert [other(*step) for step in steps[2:]] == [clone(*step) for step in steps[2:]]


def test_in_evaluation_nothing_is_kept():
    bank = MemoryBank(fusedloss.batch_hard_triplet_loss, 10, 5)
    (x, labels), (y, y_labels) = batches()[:2]
    bank(x, labels)
    before = copy.deepcopy(bank.state_dict())
    bank.eval()(y, y_labels)
    assert all(torch.equal(v, before[k]) for k, v in bank.state_dict().items())


@pytest.mark.parametrize("queue", [False, True])
def test_steps_can_wait_for_one_backward(queue):
    loss = fusedloss.InfoNCELoss(in_batch_negatives=False) if queue else fusedloss.pairwise_contrastive_loss
    steps = [(x.requires_grad_(), x.detach().flip(0) if queue else labels) for x, labels in batches()]
    bank = MemoryBank(loss, 8, 5)
    sum(bank(*step) for step in steps).backward()
    again = MemoryBank(loss, 8, 5)
    for x, other in steps:
        (grad,) = torch.autograd.grad(again(x, other), x)
        assert torch.equal(grad, x.grad)


def test_half_precision_batches_meet_rows_kept_in_float32(backend, device):
    bank = MemoryBank(fusedloss.batch_all_triplet_loss, 10, 5).to(device)
    for x, labels in batches():
        leaf = x.to(device, torch.bfloat16).requires_grad_()
        bank(leaf, labels.to(device)).backward()
        assert leaf.grad.dtype == torch.bfloat16 and leaf.grad.isfinite().all()
    assert bank.embeddings.dtype == torch.float32


def test_no_step_reads_from_the_device():
    with FakeTensorMode():  # whose tensors have no values: reading one is an error
        bank = MemoryBank(fusedloss.batch_semihard_triplet_loss, 10, 5)
        for N in SIZES:
            bank(torch.ones(N, 5, requires_grad=True), torch.ones(N, dtype=torch.int64)).backward()
        assert bank.filled == 10


def test_bad_arguments_are_named():
    for size, error in ((0, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^size must be .*got"):
            MemoryBank(fusedloss.supcon_loss, size, 5)
        with pytest.raises(error, match=r"^dim must be .*got"):
            MemoryBank(fusedloss.supcon_loss, 5, size)
    with pytest.raises(TypeError, match=r"^loss must take ref_embeddings .*got contrastive_loss\(x1, x2, target"):
        MemoryBank(fusedloss.ContrastiveLoss(), 5, 5)
    with pytest.raises(TypeError, match=r"^loss must take ref_embeddings .*got <lambda>\(x, ref_embeddings\)"):
        MemoryBank(lambda x, ref_embeddings: x, 5, 5)
    bank = MemoryBank(fusedloss.supcon_loss, 5, 3)
    with pytest.raises(ValueError, match=r"^embeddings must have the D of the bank, 3, got shape \(7, 5\)"):
        bank(*batches()[0])
