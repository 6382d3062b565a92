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


@pytest.mark.parametrize("gathered", [False, True])
@in_front(IN_BATCH)
def test_keys_of_another_encoder_are_compared_with_and_kept(backend, device, loss, gathered):
    """A row is paired with its own key too, which is another view; keys of several processes bring their labels."""
    bank = MemoryBank(loss, 10, 5).to(device)
    past, past_labels = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    for (x, labels), (keys, of_keys) in zip(batches(), batches([n + 2 for n in SIZES]), strict=True):
        keys, of_keys, named = (
            (keys, of_keys, {"key_labels": of_keys.to(device)}) if gathered else (x.roll(1, 1) / 2, labels, {})
        )
        leaf = x.to(device, copy=True).requires_grad_()
        value = bank(leaf, labels.to(device), keys.to(device, copy=True).requires_grad_(), **named)
        value.backward()
        exact = x.double().requires_grad_()
        refs = torch.cat([keys, past]).double(), torch.cat([of_keys, past_labels])
        want = getattr(reference, loss.__name__)(exact, labels, *refs)
        want.backward()
        torch.testing.assert_close(value.cpu().double(), want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=1e-3, atol=1e-5)
        past, past_labels = (torch.cat(pair)[-10:] for pair in ((past, keys), (past_labels, of_keys)))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("size", [3, 10])
def test_of_a_batch_the_chosen_rows_are_kept(backend, device, size, mask):
    bank, want = (MemoryBank(fusedloss.supcon_loss, size, 5).to(device) for _ in range(2))
    for x, labels in batches():
        x, labels = x.to(device), labels.to(device)
        sure = labels.new_tensor([i for i in range(len(x)) if i % 3])
        store = torch.zeros(len(x), dtype=torch.bool).index_fill_(0, sure.cpu(), True) if mask else sure.int()
        if mask and device != "cpu":
            with pytest.raises(ValueError, match=r"^store must be numbers of rows .*mask.nonzero"):
                bank(x, labels, store=store.to(device))
            store = sure
        compared = copy.deepcopy(want).eval()
        assert bank(x, labels, store=store) == compared(x, labels)  # the others are left out of what is kept alone
        want(x[sure], labels[sure])
        torch.testing.assert_close(bank.state_dict(), want.state_dict(), rtol=0, atol=0)
        assert bank.filled == want.filled


def test_no_row_need_be_kept_and_those_of_a_queue_may_be_chosen():
    bank = MemoryBank(fusedloss.InfoNCELoss(), 10, 5)
    (query, _), (key, _) = batches()[:1] * 2
    bank(query, key, store=torch.tensor([6, 0]))
    assert torch.equal(bank.embeddings[:2], key[[6, 0]])
    bank(query, key, store=torch.zeros(7, dtype=torch.bool))
    assert bank.filled == bank.position == 2


def test_a_reset_bank_is_as_it_was_built(backend, device):
    bank = MemoryBank(fusedloss.supcon_loss, 10, 5).to(device)
    for _ in range(2):
        first = [bank(x.to(device), labels.to(device)) for x, labels in batches()]
        bank.reset()
        new = MemoryBank(fusedloss.supcon_loss, 10, 5)
        assert bank.filled == 0
        torch.testing.assert_close(bank.cpu().state_dict(), new.state_dict(), rtol=0, atol=0)
        assert [new.to(device)(x.to(device), labels.to(device)) for x, labels in batches()] == first
        bank.to(device)


@pytest.mark.parametrize("loss", [fusedloss.supcon_loss, fusedloss.SupConLoss(), reference.supcon_loss])
def test_a_loss_may_be_partial_or_one_that_fusedloss_has_not(loss):
    """The reference's functions stand for any callables: the bank knows them only by the names of their arguments."""
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
    assert bank.state_dict().keys() == {"embeddings", "labels", "ids", "position", "loss.temperature"}
    assert bank.state_dict()["position"] == 12
    loaded = MemoryBank(fusedloss.SupConLoss(temperature=torch.nn.Parameter(torch.tensor(0.1))), 10, 5)
    loaded.load_state_dict(bank.state_dict())
    for other in (loaded, copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        clone = copy.deepcopy(bank)
        assert [other(*step) for step in steps[2:]] == [clone(*step) for step in steps[2:]]


def test_a_bank_loads_what_was_saved_of_buffers_and_says_what_is_wrong(tmp_path):
    """The rows were buffers in older versions, with the same names."""
    bank = MemoryBank(fusedloss.supcon_loss, 10, 5)
    old = torch.nn.Module()
    for name, value in dict(embeddings=torch.randn(10, 5), labels=torch.arange(10), position=torch.tensor(13)).items():
        old.register_buffer(name, value)
    torch.save(old.state_dict(), tmp_path / "bank")
    saved = torch.load(tmp_path / "bank", weights_only=True)
    for assign in (False, True):
        assert str(bank.load_state_dict(saved, assign=assign)) == "<All keys matched successfully>"
        found = {name: bank.state_dict()[name] for name in old.state_dict()}  # there were no ids then
        torch.testing.assert_close(found, dict(old.state_dict()), rtol=0, atol=0)
        assert bank.filled == 10 and bank.ids.eq(torch.iinfo(torch.int64).min).all()
    whole = torch.nn.Sequential(torch.nn.Linear(5, 5), bank)
    whole.load_state_dict(whole.state_dict())
    assert {"1.embeddings", "1.labels", "1.position"} < whole.state_dict().keys()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1.labels"'):
        whole.load_state_dict({k: v for k, v in whole.state_dict().items() if k != "1.labels"})
    with pytest.raises(RuntimeError, match=r"size mismatch for embeddings"):
        MemoryBank(fusedloss.supcon_loss, 11, 5).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .embeddings.*position"):
        fusedloss.SupConLoss().load_state_dict(saved)


def test_rows_are_no_buffers_and_go_where_the_module_goes():
    bank = MemoryBank(fusedloss.supcon_loss, 10, 5)
    bank(*batches()[0])
    assert not list(bank.buffers()) and not list(bank.parameters())
    half = copy.deepcopy(bank).half()
    assert (half.embeddings.dtype, half.labels.dtype, half.position.dtype) == (torch.half, torch.int64, torch.int64)
    torch.testing.assert_close(half.embeddings, bank.embeddings.half())
    assert torch.nn.Sequential(copy.deepcopy(bank)).to("meta")[0].labels.is_meta
    assert half.filled == bank.filled == 7


def rank(number, directory):
    """The values and gradients of one of two processes in steps of its own, with and without DDP."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=number, world_size=2)
    found = []
    for wrap in (torch.nn.parallel.DistributedDataParallel, lambda model: model):
        torch.manual_seed(0)
        bank = MemoryBank(fusedloss.SupConLoss(), 10, 5)
        model = wrap(Step(bank))
        values = []
        for seed in range(4):
            value = model(*batch(6, 5, classes=2, seed=10 * number + seed))
            value.backward()
            values.append(value.detach())
        found.append((torch.stack(values), bank.state_dict()))
    torch.save(found, f"{directory}/{number}")
    torch.distributed.destroy_process_group()


class Step(torch.nn.Module):
    """A model and its loss, and a buffer that DDP does send."""

    def __init__(self, bank):
        super().__init__()
        self.layer, self.norm, self.bank = torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5, momentum=0.0), bank

    def forward(self, x, labels):
        return self.bank(self.norm(self.layer(x.float())), labels)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_ranks_of_ddp_keep_rows_of_their_own(tmp_path):
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / str(number), weights_only=True) for number in range(2)]
    for with_ddp, alone in results:
        torch.testing.assert_close(with_ddp, alone)
    assert not torch.equal(results[0][0][1]["embeddings"], results[1][0][1]["embeddings"])


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
    x, labels = (t[:, :3] if t.dim() == 2 else t for t in batches()[0])
    with pytest.raises(ValueError, match=r"^keys must have the D of the bank, 3, got shape \(7, 5\)"):
        bank(x, labels, batches()[0][0])
    with pytest.raises(TypeError, match=r"^keys must have the dtype of embeddings, torch.float32, got torch.float64"):
        bank(x, labels, x.double())
    with pytest.raises(ValueError, match=r"^labels must have shape \(5,\)"):
        bank(x, labels, x[:5])
    with pytest.raises(ValueError, match=r"^key_labels must have shape \(5,\), .*got \(7,\)"):
        bank(x, labels, x[:5], key_labels=labels)
    with pytest.raises(ValueError, match=r"^key_labels must be given together with keys"):
        bank(x, labels, key_labels=labels)
    with pytest.raises(ValueError, match=r"^keys must be the second tensor"):
        MemoryBank(fusedloss.info_nce_loss, 5, 3)(x, x, x)
    with pytest.raises(ValueError, match=r"^embeddings must be on the device of the bank, meta, got cpu"):
        copy.deepcopy(bank).to("meta")(x, labels)
    for store, error, match in (
        ([0], TypeError, "must be a tensor, a mask or numbers of rows, got list"),
        (torch.ones(7), TypeError, r"must be a mask \(torch.bool\) or numbers of rows \(integers\), got torch.float32"),
        (torch.ones(6, dtype=torch.bool), ValueError, r"must have shape \(7,\) as a mask, .*got \(6,\)"),
        (torch.tensor(0), ValueError, r"must have shape \(K,\), .*got \(\)"),
        (torch.tensor([6, 7]), ValueError, "must be numbers of rows from 0 to 6, got 7"),
        (torch.tensor([-1]), ValueError, "must be numbers of rows from 0 to 6, got -1"),
    ):
        before = copy.deepcopy(bank.state_dict())
        with pytest.raises(error, match=f"^store {match}"):
            bank(x, labels, store=store)
        torch.testing.assert_close(bank.state_dict(), before)


@pytest.mark.parametrize("keyed", [False, True])
def test_a_kept_row_of_a_sample_that_comes_again_is_left_out(backend, device, keyed):
    """A row of the same sample is neither a positive nor a negative, as if it were not in the buffer."""
    (x, labels), (again, _) = batch(6, 5, classes=2), batch(6, 5, classes=2, seed=1)
    x, again, labels = x.float().to(device), again.float().to(device), labels.to(device)
    ids, those = torch.arange(6, device=device), torch.tensor([4, 9, 0, 7, 8, 11], device=device)
    bank = fusedloss.MemoryBank(fusedloss.SupConLoss(), size=8, dim=5, device=device)
    bank(x, labels, ids=ids)
    keys = again + 0.1 if keyed else None
    found = bank(again, labels, keys, ids=those)
    kept = torch.tensor([1, 2, 3, 5], device=device)  # samples 4 and 0 come again
    refs = torch.cat([again if keys is None else keys, x[kept]]), torch.cat([labels, labels[kept]])
    want = fusedloss.supcon_loss(again, labels, *refs, ref_offset=None if keyed else 0)
    torch.testing.assert_close(found, want)
    assert sorted(bank.ids.tolist()) == sorted([2, 3, 4, 5, 4, 9, 0, 7, 8, 11][-8:])


def test_ids_are_kept_with_their_rows_and_need_a_loss_that_ignores():
    bank = fusedloss.MemoryBank(fusedloss.SupConLoss(ignore_index=-1), size=4, dim=2)
    x, labels = torch.eye(2), torch.tensor([0, 1])
    bank(x, labels, ids=torch.tensor([5, 6]), store=torch.tensor([1]))
    assert bank.ids[0] == 6 and bank.filled == 1
    other = fusedloss.MemoryBank(fusedloss.SupConLoss(), size=4, dim=2)
    state = {name: t for name, t in bank.state_dict().items() if name != "ids"}  # of before there were any
    other.load_state_dict(state)
    other(x, labels, ids=torch.tensor([6, 5]))  # no kept row has an id
    bank.reset()
    assert bank.ids.eq(torch.iinfo(torch.int64).min).all()
    with pytest.raises(TypeError, match="ids must be an integer or bool tensor"):
        bank(x, labels, ids=x[0])
    queue = fusedloss.MemoryBank(fusedloss.InfoNCELoss(), size=4, dim=2)
    with pytest.raises(ValueError, match="ids must be None where the loss takes no ignore_index"):
        queue(x, x, ids=labels)
