"""The members of the benchmarks compute the losses they are entered for, with the options and defaults of fusedloss."""

import inspect
from pathlib import Path

import pytest
import torch

import fusedloss
from bench import peers, rivals
from bench.peers import PEERS, Peer
from bench.workloads import CASES, IMPLEMENTATIONS, Oracle, available, loss_of
from fusedloss import reference
from tests.compare import check
from tests.grid import batch
from tests.libraries import complete_torchvision

complete_torchvision()  # before a peer is imported

N, D = 64, 16
ENTRIES = [(peer, loss) for peer, entry in PEERS.items() for loss in entry.losses]
MEMBERS = [(name, peer) for name, case in CASES.items() for peer in PEERS if peer in available(case, N)]


@pytest.mark.filterwarnings("default")  # the peers' warnings are theirs
@pytest.mark.parametrize(("name", "peer"), MEMBERS)
def test_a_peer_computes_the_loss(name, peer):
    case = CASES[name]._replace(classes=min(CASES[name].classes, 50))
    Oracle(case, N, D).check(loss_of(case, peer))


def test_a_wrong_peer_is_not_timed(monkeypatch):
    case = CASES["clip"]
    oracle = Oracle(case, N, D)
    for wrong in ({"logit_scale": 20.1}, {"logit_scale": -20.0}):
        with pytest.raises(AssertionError, match="clip_loss: value is off"):
            oracle.check(loss_of(case._replace(options=wrong), "fusedloss"))
    right = loss_of(case, "reference")
    with pytest.raises(AssertionError, match="clip_loss: gradient is off"):  # as where it is scaled by default
        oracle.check(lambda x, labels: right((x - x.detach()) * 3 + x.detach(), labels))


@pytest.mark.parametrize(("peer", "loss"), ENTRIES)
def test_an_entry_is_a_measured_public_loss_with_our_options_and_defaults(peer, loss):
    assert loss in fusedloss.__all__
    assert loss in {case.loss for case in CASES.values()}
    ours = inspect.signature(getattr(fusedloss, loss)).parameters
    for name, option in inspect.signature(PEERS[peer].losses[loss]).parameters.items():
        assert option.kind is option.KEYWORD_ONLY
        default = ours[name].default
        if name == "margin" and default is None:
            default = 0.2  # what that is without `soft_margin`, which no peer takes
        assert option.default in (default, option.empty)


@pytest.mark.parametrize(("peer", "loss"), ENTRIES)
def test_an_option_that_a_peer_has_not_is_refused(peer, loss):
    with pytest.raises(ValueError, match=peer):
        peers.loss_of(peer, loss, {"swap": True})


@pytest.mark.parametrize(
    ("peer", "loss", "options"),
    [
        ("pytorch-metric-learning", "pairwise_contrastive_loss", dict(power=2, reduction="active")),
        ("pytorch-metric-learning", "batch_all_triplet_loss", dict(reduction="mean")),
        ("sentence-transformers", "batch_all_triplet_loss", dict(reduction="mean")),
        ("sentence-transformers", "batch_hard_triplet_loss", dict(metric="manhattan")),
        ("sorted", "batch_all_triplet_loss", dict(reduction="none")),
        ("sorted", "batch_semihard_triplet_loss", dict(reduction="none")),
    ],
)
def test_a_value_that_a_peer_has_not_is_refused(peer, loss, options):
    with pytest.raises(ValueError, match=r"power|reduction|metric"):
        peers.loss_of(peer, loss, options)


@pytest.mark.parametrize("whole", [False, True])  # whole numbers: distances tie, and many are a margin apart
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "active", "sum"])
@pytest.mark.parametrize("loss", ["batch_all_triplet_loss", "batch_semihard_triplet_loss"])
def test_sorted_rows_are_the_loss(monkeypatch, loss, reduction, metric, whole):
    monkeypatch.setattr(rivals, "PAIRS", 37 * 5)  # several blocks, the last one ragged
    x, labels = batch(37, 7)  # the last row has no positive
    x = (3 * x).round() if whole else x
    options = dict(margin=2.0 if whole and metric != "cosine" else 0.3, metric=metric, reduction=reduction)

    def theirs(x, labels):
        return getattr(rivals, loss)(x, labels, **options)

    def oracle(x, labels):
        return getattr(reference, loss)(x, labels, **options)

    check(theirs, dict(x=x, labels=labels), oracle=oracle)


@pytest.mark.parametrize("labels", [torch.zeros(9), torch.arange(9)])
@pytest.mark.parametrize("loss", [rivals.batch_all_triplet_loss, rivals.batch_semihard_triplet_loss])
def test_sorted_rows_without_a_triplet_are_zero(loss, labels):
    x = batch(9, 7)[0].float().requires_grad_()
    value = loss(x, labels)
    value.backward()
    assert value == 0 and not x.grad.any()


def test_all_triplets_of_sorted_rows_keep_a_gradient_and_nothing_else():
    from bench.workloads import data, saved_bytes

    case = CASES["all triplets"]
    x, labels = data(case, 512, D, "cpu", "float32")
    assert saved_bytes(loss_of(case, "sorted"), x, labels) == x.nbytes


OURS = ["fusedloss", "reference", "torch.compile"]


@pytest.mark.parametrize(
    ("name", "n", "dtype", "device", "members"),
    [
        ("contrastive", 4096, "float32", "cpu", [*OURS, "pytorch-metric-learning"]),
        ("contrastive", 4096, "bfloat16", "cpu", OURS),
        ("clip", 512, "float32", "cpu", [*OURS, "sentence-transformers"]),
        ("clip", 512, "float32", "cuda", [*OURS, "sentence-transformers", "memeff"]),
        ("clip", 512, "bfloat16", "cuda", [*OURS, "sentence-transformers", "inf-cl", "memeff"]),
        ("siglip", 512, "bfloat16", "cuda", [*OURS, "siglip-kernel"]),
        ("cross entropy, 32,000 logits", 512, "float32", "cpu", [*OURS, "torch"]),
        (
            "linear cross entropy, 100,000 classes", 512, "float16", "cuda",
            [*OURS, "torch", "liger-kernel", "cut-cross-entropy"],
        ),
        ("linear cross entropy, 100,000 classes", 8192, "float32", "cuda", ["fusedloss", "liger-kernel"]),
        (
            "all triplets", 256, "float32", "cpu",
            [*OURS, "pytorch-metric-learning", "sorted", "sentence-transformers"],
        ),
        ("all triplets", 8192, "float32", "cpu", ["fusedloss", "sorted"]),
        ("semi-hard", 512, "float32", "cpu", ["fusedloss", "sorted", "sentence-transformers"]),
    ],
)  # fmt: skip
def test_members_of_a_case(monkeypatch, name, n, dtype, device, members):
    monkeypatch.setattr(Peer, "installed", True)
    assert available(CASES[name], n, dtype, device) == members


def test_a_peer_that_is_not_installed_is_no_member(monkeypatch):
    everything = {name: entry._replace(module="no_such_module") for name, entry in PEERS.items()}
    monkeypatch.setattr("bench.workloads.PEERS", everything)
    assert available(CASES["all triplets"], N) == OURS


def test_every_peer_is_an_implementation_and_in_the_extra_of_peers():
    tomllib = pytest.importorskip("tomllib")
    assert list(IMPLEMENTATIONS) == [*OURS, *PEERS]
    project = tomllib.loads((Path(fusedloss.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    named = {
        requirement.split(";")[0].split(">")[0].strip() for requirement in project["optional-dependencies"]["peers"]
    }
    assert named == {name for name, entry in PEERS.items() if entry.module != "torch"}
