"""Losses whose classes are sharded over processes, beside one process that has them all."""

import copy
import io
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss import distributed
from fusedloss.loss_module import ClassLossModule
from fusedloss.losses.catalog import CATALOG, Role
from tests.processes import run

SHARDED = [name for name in distributed.__all__ if name.startswith("Sharded")]
C, D = 11, 6  # 11 classes are 6 + 5, or 4 + 4 + 3
SIZES = ((8, 5), (0, 9), (7, 0, 6), (5, 5, 5))
BIAS = [0.1 * (c - 4) for c in range(C)]
WEIGHTS = [0.5 + 0.1 * c for c in range(C)]
# What a loss is built with beside its defaults: learned numbers, whatever changes what is folded or merged.
OPTIONS = {
    "ShardedArcFaceLoss": (
        dict(margin=nn.Parameter(torch.tensor(0.3)), scale=nn.Parameter(torch.tensor(8.0))),
        dict(scale=8.0, sub_centers=3, label_smoothing=0.1, class_weight=torch.tensor(WEIGHTS)),
        dict(scale=8.0, class_weight=torch.tensor(WEIGHTS), reduction="sum", ignore_index=2),
    ),
    "ShardedCosFaceLoss": (
        dict(margin=nn.Parameter(torch.tensor(0.2)), scale=nn.Parameter(torch.tensor(8.0)), ignore_index=1),
        dict(scale=8.0, sub_centers=2, reduction="sum"),
    ),
    "ShardedNormalizedSoftmaxLoss": (
        dict(temperature=nn.Parameter(torch.tensor(0.3)), label_smoothing=0.2),
        dict(temperature=0.2, ignore_index=0),
    ),
    "ShardedLinearCrossEntropyLoss": (
        dict(bias=True, gamma=1.5, z_loss=0.1),
        dict(bias=nn.Parameter(torch.tensor(BIAS) + 50.0), label_smoothing=0.1, class_weight=torch.tensor(WEIGHTS)),
        dict(bias=torch.tensor(BIAS), softcap=2.0, ignore_index=3),
    ),
    "ShardedProxyNCALoss": (dict(scale=nn.Parameter(torch.tensor(3.0))), dict(ignore_index=2, reduction="sum")),
    "ShardedProxyAnchorLoss": (
        dict(alpha=nn.Parameter(torch.tensor(3.0)), margin=nn.Parameter(torch.tensor(0.1))),
        dict(alpha=4.0, ignore_index=1, reduction="sum"),
    ),
}


def whole_batch(sizes, dtype=torch.float64, seed=0):
    """Rows and their classes; those of the first process are of few classes, so that a shard may have no positive."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), D, generator=generator, dtype=torch.float64)
    target = torch.randint(0, C, (sum(sizes),), generator=generator)
    target[: sizes[0]] %= 3
    return x.to(dtype), target


def whole_loss(name, options, dtype=torch.float64):
    torch.manual_seed(1)
    loss = getattr(distributed, name).whole(C, D, dtype=dtype, **copy.deepcopy(options)).to(dtype)
    if loss.begins_with_bias:
        nn.init.normal_(loss.bias)
    return loss


def own(sizes, rank):
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def step(loss, x, target, **call):
    """The value, and the gradients by the rows and by the parameters."""
    x = x.clone().requires_grad_()
    loss.zero_grad()
    value = loss(x, target, **call)
    (3 * value).backward()
    return value.detach(), x.grad, {name: p.grad.clone() for name, p in loss.named_parameters()}


def apart(found, want, scale):
    """The largest difference, of the largest number."""
    return 0.0 if found.numel() == 0 else float((found - want).abs().max() / scale.abs().max().clamp(min=1e-30))


def beside_one_process(name, options, sizes, dtype, seed, backend="blocked"):
    """How far a shard is from one process with all classes, by what is compared."""
    rank, world = dist.get_rank(), dist.get_world_size()
    x, target = whole_batch(sizes, dtype, seed)
    loss, at = whole_loss(name, options, dtype), own(sizes, rank)
    shard = getattr(distributed, name).from_unsharded(loss)
    value, dx, by_name = step(loss.double(), x.double(), target)
    with fusedloss.use_backend(backend):
        again = [step(shard, x[at], target[at]) for _ in range(2)]
    found, of_x, of_names = again[0]
    errors = {"value": apart(found, value, value), "x": apart(of_x / world, dx[at], dx)}
    for key, want in by_name.items():
        mine = want[shard.classes.start : shard.classes.stop] if key in shard._of_classes() else want
        errors[key] = apart(of_names[key], mine, want)
    same = all(torch.equal(a, b) for a, b in zip(again[0][:2], again[1][:2], strict=True))
    return errors, float(found), same


CASES = [
    (name, k, sizes) for name in SHARDED for k, sizes in itertools.product(range(len(OPTIONS[name])), SIZES)
]  # fmt: skip


def test_every_loss_that_folds_over_classes_has_a_sharded_form():
    of_classes = {row.function for row in CATALOG.values() if row.family == "folds" and row.named(Role.CLASSES)}
    assert {getattr(distributed, name).function for name in SHARDED} == of_classes
    assert {*OPTIONS} == {*SHARDED}


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SHARDED)
def test_it_is_the_loss_of_one_process_with_all_classes(name, dtype, bound):
    cases = [(k, sizes) for of, k, sizes in CASES if of == name]
    for seed, (k, sizes) in enumerate(cases):
        results = run(len(sizes), beside_one_process, name, OPTIONS[name][k], sizes, dtype, seed)
        for rank, (errors, value, same) in enumerate(results):
            assert same and value == results[0][1], (k, sizes, rank)
            assert max(errors.values()) <= bound, (k, sizes, rank, errors)


def of_large_logits():
    """Logits of some thousands, whose exponentials are not finite."""
    rank, sizes = dist.get_rank(), (4, 3)
    x, target = whole_batch(sizes)
    loss = whole_loss("ShardedLinearCrossEntropyLoss", {})
    shard = distributed.ShardedLinearCrossEntropyLoss.from_unsharded(loss)
    at, x = own(sizes, rank), 5000 * x
    (value, dx, _), (found, of_x, _) = step(loss, x, target), step(shard, x[at], target[at])
    return float(value), apart(found, value, value), apart(of_x / 2, dx[at], dx)


def test_large_logits_do_not_overflow():
    for value, *errors in run(2, of_large_logits):
        assert value > 1000 and max(errors) < 1e-12


def on_kernels(name, options, sizes):
    return beside_one_process(name, options, sizes, torch.float32, 0, backend="triton")


def test_the_kernels_too():
    for rank, (errors, _, same) in enumerate(
        run(2, on_kernels, "ShardedArcFaceLoss", OPTIONS["ShardedArcFaceLoss"][0], (5, 4))
    ):
        assert same and max(errors.values()) <= 3e-6, (rank, errors)


def with_margins(sizes):
    """Margins per row stay in their process, even for a single row."""
    x, target = whole_batch(sizes)
    at, world = own(sizes, dist.get_rank()), dist.get_world_size()
    loss = whole_loss("ShardedArcFaceLoss", dict(scale=8.0))
    shard = distributed.ShardedArcFaceLoss.from_unsharded(loss)
    margins = torch.linspace(0.1, 0.5, len(x), dtype=torch.float64)
    found = []
    for module, rows in ((loss, slice(None)), (shard, at)):
        m = margins[rows].clone().requires_grad_()
        module(x[rows], target[rows], margin=m).backward()
        found.append(m.grad)
    return apart(found[1] / world, found[0][at], found[0])


def test_margins_of_rows_are_those_of_the_own_ones():
    for sizes in ((1, 6), (4, 1, 3)):
        assert max(run(len(sizes), with_margins, sizes)) < 1e-12


def trained(sizes, steps):
    """An encoder under DDP and a shard: what SGD makes of them, beside one process."""
    at = own(sizes, dist.get_rank())
    x, target = whole_batch(sizes)
    torch.manual_seed(2)
    encoder = nn.Linear(D, D).double()
    loss = whole_loss("ShardedCosFaceLoss", dict(scale=nn.Parameter(torch.tensor(8.0))))
    alone, alone_loss = copy.deepcopy(encoder), copy.deepcopy(loss)
    shard = distributed.ShardedCosFaceLoss.from_unsharded(loss)
    wrapped = DistributedDataParallel(encoder)
    for model, module, rows in ((wrapped, shard, at), (alone, alone_loss, slice(None))):
        optimizer = torch.optim.SGD([*model.parameters(), *module.parameters()], lr=0.05, momentum=0.9)
        for _ in range(steps):
            optimizer.zero_grad()
            module(model(x[rows]), target[rows]).backward()
            optimizer.step()
    joined = shard.unsharded()
    found, want = ([*model.parameters(), *of.parameters()] for model, of in ((encoder, joined), (alone, alone_loss)))
    return max(apart(a.detach(), b.detach(), b.detach()) for a, b in zip(found, want, strict=True))


def test_training_is_that_of_one_process():
    for sizes in ((8, 5), (7, 0, 6)):
        assert max(run(len(sizes), trained, sizes, 5)) < 1e-11


def sampled(sizes, classes, rate):
    rank = dist.get_rank()
    torch.manual_seed(0)
    shard = distributed.ShardedArcFaceLoss(classes, D, sample_rate=rate, dtype=torch.float64)
    x, target = whole_batch(sizes)
    at = own(sizes, rank)
    shard(x[at], target[at]).backward()
    moved = (shard.weight.grad.abs().sum(1) > 0).nonzero().flatten() + shard.classes.start
    here = {int(c) for c in target if int(c) in shard.classes}
    shard.eval()
    exact = shard.unsharded().eval()(x, target)
    return len(moved), len(shard.classes), here <= {*moved.tolist()}, float(shard(x[at], target[at]) - exact)


def test_a_share_of_the_classes_always_has_those_of_the_batch():
    sizes, classes, rate = (6, 5), 200, 0.2
    for count, own_classes, has_all, difference in run(2, sampled, sizes, classes, rate):
        assert own_classes == 100 and count == 20 and has_all
        assert abs(difference) < 1e-12  # in eval() all classes count


def checkpointed():
    rank = dist.get_rank()
    torch.manual_seed(3)  # the same in every process
    shard = distributed.ShardedLinearCrossEntropyLoss(C, D, bias=True)
    nn.init.normal_(shard.bias)
    file = io.BytesIO()
    torch.save(shard.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = distributed.ShardedLinearCrossEntropyLoss(C, D, bias=True)
    again.load_state_dict(state)
    same = all(torch.equal(a, b) for a, b in zip(shard.parameters(), again.parameters(), strict=True))
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    refused = ""
    try:
        again.load_state_dict(states[1 - rank])
    except (ValueError, RuntimeError) as error:
        refused = str(error)
    kept = all(torch.equal(a, b) for a, b in zip(shard.parameters(), again.parameters(), strict=True))
    joined, gathered = shard.unsharded(states), shard.unsharded()
    both = all(torch.equal(a, b) for a, b in zip(joined.parameters(), gathered.parameters(), strict=True))
    back = distributed.ShardedLinearCrossEntropyLoss.from_unsharded(joined)
    round_trip = all(torch.equal(a, b) for a, b in zip(shard.parameters(), back.parameters(), strict=True))
    begun = shard.weight[0].tolist()
    return same and kept, refused, both, round_trip, begun, type(joined).__name__, float(torch.rand(()))


def test_states_are_of_shards_which_join_and_part():
    results = run(2, checkpointed)
    for same, refused, both, round_trip, _, name, drawn in results:
        assert same and both and round_trip and name == "LinearCrossEntropyLoss"
        assert "0 to 5 of 11" in refused and "6 to 10 of 11" in refused
        assert drawn == results[0][-1], "default generators are out of step"
    assert results[0][4] != results[1][4], "the shards begin with the same rows"


def spread_by_ddp():
    shard = distributed.ShardedArcFaceLoss(C - 1, D)
    model = nn.ModuleDict({"encoder": nn.Linear(D, D), "loss": shard})
    DistributedDataParallel(model)
    with pytest.raises(ValueError, match="keep the loss out of DistributedDataParallel"):
        shard(torch.randn(3, D), torch.arange(3))


def test_shards_that_are_all_the_same_are_an_error():
    run(2, spread_by_ddp)


def refused():
    rank = dist.get_rank()
    found = []
    shard = distributed.ShardedArcFaceLoss(C, D)
    x, target = torch.randn(4, D), torch.arange(4)
    for rows, classes in (
        (x[:, : D - rank], target),
        (x.double() if rank else x, target),
        (x, target + 20 if rank else target),
        (x, target[: 4 - rank]),
    ):
        try:
            shard(rows, classes)
            found.append("")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    shard(x, target).backward()  # the group is as it was
    return found


def test_what_does_not_belong_together_is_an_error_everywhere():
    of_its_own = ("D of embeddings", "alike", "from 0 to 10", "one class a row")
    for rank, errors in enumerate(run(2, refused)):
        for found, text in zip(errors, of_its_own, strict=True):
            assert (text if rank or text == "alike" else "arguments of rank 1 are wrong") in found


def few():
    with pytest.raises(ValueError, match="num_classes must be at least one for each of 3 processes, got 2"):
        distributed.ShardedArcFaceLoss(2, D)
    with pytest.raises(ValueError, match="sample_rate must be 1 with label_smoothing"):
        distributed.ShardedArcFaceLoss(8, D, sample_rate=0.5, label_smoothing=0.1)


def test_options_that_do_not_fit_are_errors():
    run(3, few)
    with pytest.raises(TypeError, match="loss must be of ArcFaceLoss, got CosFaceLoss"):
        distributed.ShardedArcFaceLoss.from_unsharded(fusedloss.CosFaceLoss(4, 2))


def one_size(sizes):
    """With `even` nothing is exchanged before the rows, in any group."""
    x, target = whole_batch(sizes)
    at = own(sizes, dist.get_rank())
    losses = [
        distributed.ShardedProxyNCALoss.from_unsharded(whole_loss("ShardedProxyNCALoss", {}), even=e)
        for e in (False, True)
    ]
    return [float(loss(x[at], target[at])) for loss in losses]


def test_even_batches_need_no_exchange_of_sizes():
    for value, other in run(2, one_size, (5, 5)):
        assert value == other


@pytest.mark.parametrize("name", SHARDED)
def test_without_a_group_the_shard_is_the_whole(name):
    sharded = getattr(distributed, name)
    loss = sharded(C, D)
    x, target = whole_batch((4, 4), torch.float32)
    assert loss.classes == range(C) and isinstance(loss, ClassLossModule)
    whole = loss.unsharded()
    assert type(whole) is sharded.whole and torch.equal(loss(x, target), whole(x, target))
    assert f"`{sharded.whole.__name__}` whose classes are sharded" in sharded.__doc__
