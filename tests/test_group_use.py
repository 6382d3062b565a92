"""GroupLoss as it is used: under DDP and without, over some of the processes, compiled; and how it fails."""

import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedloss
from fusedloss.distributed import GroupLoss
from tests.grid import batch
from tests.processes import run

SIZES = {2: (6, 3), 3: (5, 0, 4)}
MODES = ("gather", "ring")


def rows(world: int, seed: int = 0) -> tuple[Tensor, Tensor, slice]:
    """Inputs and labels of the whole batch, and which are those of this process."""
    sizes, rank = SIZES[world], dist.get_rank()
    x, labels = batch(sum(sizes), 6, classes=2, seed=seed)
    return x, labels, slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def losses() -> list[nn.Module]:
    """Two losses of a step: a fold with a learned number, and mined pairs."""
    temperature = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    return [fusedloss.SupConLoss(temperature=temperature), fusedloss.BatchHardTripletLoss(margin=0.5)]


def gradients(module: nn.Module, of: list[nn.Module]) -> list[Tensor]:
    return [p.grad for m in (module, *of) for p in m.parameters()]


def alone(world: int, seeds: tuple[int, ...] = (0,), scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The last value of one process with the whole batches, and its gradients."""
    net, of = model(), losses()
    for seed in seeds:
        x, labels, _ = rows(world, seed)
        y = net(x)
        value = sum(loss(y, labels) for loss in of)
        (scale * value).backward()
    return value.detach(), gradients(net, of)


def same(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-12) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance * w.norm(torch.inf).item() if w.numel() else 0)


def shared(mode: str = "gather", group: Any = None) -> list[nn.Module]:
    return [GroupLoss(loss, group, mode) for loss in losses()]


def under_ddp(mode: str) -> None:
    world = dist.get_world_size()
    net, of = DistributedDataParallel(model()), shared(mode)
    x, labels, at = rows(world)
    y = net(x[at])
    value = sum(loss(y, labels[at]) for loss in of)
    value.backward()
    want, grads = alone(world)
    same([value.detach()], [want])
    same(gradients(net, of), grads)


def in_micro_batches(mode: str) -> None:
    world = dist.get_world_size()
    net, of = DistributedDataParallel(model()), shared(mode)
    for seed in (0, 1):
        x, labels, at = rows(world, seed)

        def step(x: Tensor, labels: Tensor) -> None:
            y = net(x)
            sum(loss(y, labels) for loss in of).backward()

        if seed == 0:
            with net.no_sync():
                step(x[at], labels[at])
        else:
            step(x[at], labels[at])
    same(gradients(net, of), alone(world, (0, 1))[1])


def within_ddp(mode: str) -> None:
    """The losses are modules of what DDP wraps, and their numbers are in its buckets."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.of = model(), nn.ModuleList(shared(mode))

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            y = self.net(x)
            return sum(loss(y, labels) for loss in self.of)

    world, whole = dist.get_world_size(), DistributedDataParallel(Whole())
    x, labels, at = rows(world)
    whole(x[at], labels[at]).backward()
    same([p.grad for p in whole.parameters()], alone(world)[1])


def averaged_by_hand(mode: str) -> None:
    """The loss is scaled, as GradScaler does it."""
    world = dist.get_world_size()
    net, of = model(), shared(mode)
    x, labels, at = rows(world)
    y = net(x[at])
    (1024.0 * sum(loss(y, labels[at]) for loss in of)).backward()
    for p in net.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world
    same(gradients(net, of), alone(world, scale=1024.0)[1])


def weighted(mode: str) -> None:
    """The mean of the processes' losses is that of the loss, weighted by the mean of their weights."""
    world = dist.get_world_size()
    net, of = DistributedDataParallel(model()), shared(mode)
    x, labels, at = rows(world)
    y = net(x[at])
    weight = 1.0 + dist.get_rank() ** 2
    (weight * sum(loss(y, labels[at]) for loss in of)).backward()
    mean = sum(1.0 + rank**2 for rank in range(world)) / world
    same(gradients(net, of), alone(world, scale=mean)[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("step", [under_ddp, in_micro_batches, within_ddp, averaged_by_hand, weighted])
def test_gradients_of_a_step_are_those_of_one_process(step, world, mode):
    run(world, step, mode)


def over_some(mode: str) -> None:
    for ranks in ([0, 1], [0, 2]):
        group = dist.new_group(ranks)
        x, labels, at = rows(3)
        own = x[at].clone().requires_grad_()
        loss = GroupLoss(fusedloss.SupConLoss(temperature=0.5), group, mode)
        if dist.get_rank() in ranks:
            value = loss(own, labels[at])
            value.backward()
            kept = torch.cat([torch.arange(9)[rows_of(rank)] for rank in ranks])
            leaf = x.clone().requires_grad_()
            want = fusedloss.supcon_loss(leaf[kept], labels[kept], temperature=0.5)
            want.backward()
            same([value.detach(), own.grad / 2], [want.detach(), leaf.grad[at]])


def rows_of(rank: int) -> slice:
    return slice(sum(SIZES[3][:rank]), sum(SIZES[3][: rank + 1]))


@pytest.mark.parametrize("mode", MODES)
def test_a_group_may_be_some_of_the_processes(mode):
    run(3, over_some, mode)


OF_VERSIONS = ("all_gather_single", "all_gather_into_tensor", "reduce_scatter_single", "reduce_scatter_tensor")
COLLECTIVES = [name for name in (*OF_VERSIONS, "all_reduce", "batch_isend_irecv") if hasattr(dist, name)]


class Counted:
    """How often the processes exchange something in this block."""

    def __enter__(self) -> "Counted":
        self.patch, self.count = pytest.MonkeyPatch(), 0
        for name in COLLECTIVES:
            self.patch.setattr(dist, name, self.counting(getattr(dist, name)))
        return self

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            return function(*arguments, **named)

        return counted

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def with_as_many_rows(mode: str) -> None:
    x, labels = batch(8, 6, classes=2)
    at = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    found = []
    for even in (False, True, True):
        leaf = x[at].clone().requires_grad_()
        with Counted() as forward:
            value = GroupLoss(fusedloss.ClipLoss(logit_scale=2.0), mode=mode, even=even)(leaf, leaf.flip(1))
        with Counted() as backward:
            value.backward()
        found.append((value.detach(), leaf.grad, forward.count, backward.count))
    for value, grad, forward, backward in found[1:]:  # twice: the same to the last bit
        assert value.equal(found[0][0]) and grad.equal(found[0][1])
        assert (forward, backward) == (found[0][2] - 1, found[0][3])
    with Counted() as counted:
        value = GroupLoss(fusedloss.SupConLoss(), mode=mode)(x[at].clone().requires_grad_(), labels[at])
    with Counted() as unwanted, torch.no_grad():
        without = GroupLoss(fusedloss.SupConLoss(), mode=mode)(x[at], labels[at])
    assert without.equal(value.detach()) and not without.requires_grad
    assert unwanted.count == counted.count > 0


@pytest.mark.parametrize("mode", MODES)
def test_sizes_are_not_told_where_they_are_even(mode):
    run(2, with_as_many_rows, mode)


def twice(mode: str) -> list[Tensor]:
    x, labels, at = rows(3)
    found = []
    for loss in (fusedloss.SupConLoss(), fusedloss.LiftedStructureLoss(), fusedloss.BatchHardTripletLoss()):
        runs = []
        for _ in range(2):
            leaf = x[at].clone().requires_grad_()
            value = GroupLoss(loss, mode=mode)(leaf, labels[at])
            value.backward()
            runs.append((value.detach(), leaf.grad))
        assert all(a.equal(b) for a, b in zip(*runs, strict=True))
        found.append(runs[0][0])
    return found


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_are_the_same_to_the_last_bit_on_all_ranks(mode):
    first, *others = run(3, twice, mode)
    assert all(a.equal(b) for other in others for a, b in zip(first, other, strict=True))


def more_keys(mode: str) -> None:
    """A process has keys that belong to none of its queries, before and after the others."""
    Q, K, offset, rank = (3, 2), (6, 4), 1, dist.get_rank()
    q, k = batch(sum(Q), 5)[0], batch(sum(K), 5, seed=1)[0]
    bias, own_ids = torch.arange(sum(K)).double() / 7, torch.tensor([0, 1, 0, 2, 1, 3, 0, 1, 2, 4])
    first = [sum(K[:r]) + offset for r in range(2)]
    positives = torch.cat([torch.arange(Q[r]) + first[r] for r in range(2)])
    order = torch.cat([positives, torch.tensor([i for i in range(sum(K)) if i not in positives])])
    at, of_keys = slice(sum(Q[:rank]), sum(Q[: rank + 1])), slice(sum(K[:rank]), sum(K[: rank + 1]))
    for named in ({}, {"ids": own_ids[positives], "key_ids": own_ids}):
        leaves = [t.clone().requires_grad_() for t in (q, k, bias)]
        in_order = {"key_ids": own_ids[order], "ids": named["ids"]} if named else {}
        want = fusedloss.info_nce_loss(
            leaves[0], leaves[1][order], temperature=0.5, key_bias=leaves[2][order], **in_order
        )
        want.backward()
        own = [t[part].clone().requires_grad_() for t, part in ((q, at), (k, of_keys), (bias, of_keys))]
        parts = {"ids": own_ids[positives][at], "key_ids": own_ids[of_keys]} if named else {}
        loss = GroupLoss(fusedloss.info_nce_loss, mode=mode)
        value = loss(own[0], own[1], temperature=0.5, offset=offset, key_bias=own[2], **parts)
        value.backward()
        wanted = [t.grad[part] for t, part in zip(leaves, (at, of_keys, of_keys), strict=True)]
        same([value.detach(), *(t.grad / 2 for t in own)], [want.detach(), *wanted])


@pytest.mark.parametrize("mode", MODES)
def test_a_process_may_have_more_keys_than_queries(mode):
    run(2, more_keys, mode)


def of_some_inputs(mode: str) -> None:
    """Only keys, only a number, or nothing wants a gradient; rows are not contiguous."""
    x, _, at = rows(2)
    z = x.flip(1).contiguous()
    for wants in ("key", "temperature", ""):
        leaves = {
            "query": x.T.contiguous().T.requires_grad_(wants == "query"),
            "key": z.clone().requires_grad_(wants == "key"),
            "temperature": torch.tensor([0.5], dtype=torch.float64, requires_grad=wants == "temperature"),
        }
        want = fusedloss.info_nce_loss(**leaves, symmetric=True)
        own = {
            name: t.detach() if name == "temperature" else t.detach().T.contiguous().T[at] for name, t in leaves.items()
        }
        for name, t in own.items():
            own[name] = t.clone(memory_format=torch.preserve_format).requires_grad_(name == wants)
        value = GroupLoss(fusedloss.info_nce_loss, mode=mode)(**own, symmetric=True)
        same([value.detach()], [want.detach()])
        assert value.requires_grad is bool(wants)
        if wants:
            want.backward()
            value.backward()
            whole, grad = leaves[wants].grad, own[wants].grad
            same([grad] if wants == "temperature" else [grad / 2], [whole] if wants == "temperature" else [whole[at]])


@pytest.mark.parametrize("mode", MODES)
def test_some_inputs_are_constants(mode):
    run(2, of_some_inputs, mode)


def with_nan(mode: str) -> None:
    """NaN shows as in one process: in the value on every rank, and in the gradients."""
    x, labels, at = rows(2)
    x[1, 2] = torch.nan
    for function in (fusedloss.supcon_loss, fusedloss.pairwise_contrastive_loss, fusedloss.batch_hard_triplet_loss):
        whole, own = x.clone().requires_grad_(), x[at].clone().requires_grad_()
        want, value = function(whole, labels), GroupLoss(function, mode=mode)(own, labels[at])
        assert want.isnan() and value.isnan(), function
        want.backward()
        value.backward()
        assert own.grad.isnan().equal(whole.grad[at].isnan()), (function, own.grad, whole.grad[at])


@pytest.mark.parametrize("mode", MODES)
def test_nan_of_one_process_shows_on_all(mode):
    run(2, with_nan, mode)


def under_autocast(mode: str) -> None:
    x, labels, at = rows(2)
    whole, own = x.float().requires_grad_(), x[at].float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        want = fusedloss.supcon_loss(whole, labels, temperature=0.5)
        value = GroupLoss(fusedloss.supcon_loss, mode=mode)(own, labels[at], temperature=0.5)
    want.backward()
    value.backward()
    same([value.detach(), own.grad / 2], [want.detach(), whole.grad[at]], 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_is_that_of_the_loss(mode):
    run(2, under_autocast, mode)


def compiled(mode: str) -> None:
    x, labels, at = rows(2)
    loss = GroupLoss(fusedloss.SupConLoss(temperature=0.5), mode=mode)

    def step(x: Tensor, labels: Tensor) -> Tensor:
        return 2 * loss(torch.tanh(x), labels) + 1

    found = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        leaf = x[at].clone().requires_grad_()
        value = function(leaf, labels[at])
        value.backward()
        found.append([value.detach(), leaf.grad])
    same(*found)


def test_compiled_code_is_left_for_the_loss():
    run(2, compiled, "gather")
    run(2, compiled, "ring")


def of_one_process() -> None:
    x, labels = batch(7, 5)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, want = GroupLoss(fusedloss.supcon_loss)(leaf, labels), fusedloss.supcon_loss(other, labels)
    value.backward()
    want.backward()
    assert value.equal(want) and leaf.grad.equal(other.grad)


def test_in_one_process_it_is_the_loss():
    of_one_process()
    run(1, of_one_process)


# ------------------------------------------------------------------------------------------------------------- errors


def outcome(call: Callable[[], Any]) -> tuple[str, float]:
    begin = time.monotonic()
    try:
        call()
        text = ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    return text, time.monotonic() - begin


def failing(name: str) -> tuple[str, float]:
    """What becomes of a call in which something does not belong together; the group then computes as before."""
    x, labels, at = rows(2)
    own, of_own, rank = x[at].clone().requires_grad_(), labels[at], dist.get_rank()
    loss: Any = fusedloss.SupConLoss(temperature=0.5)
    named: dict[str, Any] = {}
    context: Any = torch.enable_grad()
    second, mode = rank == 1, "gather"
    if name == "dimensions":
        own = own[:, : 6 - rank]
    elif name == "dtypes":
        own = own.float() if second else own
    elif name == "options":
        named["temperature"] = 0.5 + rank
    elif name == "losses":
        loss = fusedloss.NCALoss() if second else loss
    elif name == "modes":
        mode = MODES[rank]
    elif name == "no_grad":
        context = torch.no_grad() if second else context
    elif name == "autocast":
        context = torch.autocast("cpu", torch.bfloat16, enabled=second)
    elif name == "constants":
        own = own.detach() if second else own
    elif name == "length":
        of_own = of_own[:-1] if second else of_own
    elif name == "float labels":
        of_own = of_own.float() if second else of_own
    elif name == "integers":
        of_own = of_own.int() if second else of_own
    elif name == "option of one":
        named = {"temperature": -1.0} if second else {}
    elif name == "references of one":
        named = {"ref_embeddings": own.detach(), "ref_labels": of_own} if second else {}
    elif name == "unknown":
        named = {"temprature": 1.0} if second else {}
    elif name == "no tensors":
        own, of_own = ([1.0], [1]) if second else (own, of_own)
    elif name == "a wish to learn":
        named["temperature"] = torch.tensor(0.5, requires_grad=second)
    elif name == "a tensor":
        named["temperature"] = torch.tensor(0.5) if second else 0.5
    elif name == "offsets":
        loss, of_own = fusedloss.ClipLoss(logit_scale=2.0), own.detach()
        named["offset"] = rank
    elif name == "boundaries":
        loss = fusedloss.MarginLoss(beta=torch.ones(4 + rank, dtype=torch.float64))
    else:
        raise ValueError(name)

    def step() -> None:
        with context:
            value = GroupLoss(loss, mode=mode)(own, of_own, **named)
        if value.requires_grad:
            value.backward()

    found = outcome(step)
    under_ddp("gather")  # the group is as it was
    return found


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("dimensions", r"ValueError: GroupLoss of supcon_loss: embeddings must be alike .*\(6, 6\).*\(3, 5\)", None),
        ("dtypes", r"ValueError: .*embeddings must be alike .*torch.float64.* rank 0, torch.float32.* rank 1", None),
        ("options", r"ValueError: .*the same options.* rank 1 .*temperature=0.5", r"ValueError: .*temperature=1.5"),
        (
            "losses",
            "ValueError: GroupLoss of supcon_loss: .*the same loss",
            "ValueError: GroupLoss of nca_loss: .*same",
        ),
        ("modes", "ValueError: .*mode='gather'", "ValueError: .*mode='ring'"),
        ("no_grad", "ValueError: .*no_grad", None),
        ("autocast", "ValueError: .*autocast", None),
        ("constants", "ValueError: .*embeddings must be alike .*wants a gradient", None),
        ("length", "RuntimeError: .*the arguments of rank 1 are wrong", r"ValueError: labels must have shape \(3,\)"),
        ("float labels", "RuntimeError: .*the arguments of rank 1 are wrong", "TypeError: labels must be an integer"),
        ("integers", "ValueError: .*labels must be alike .*torch.int64.* rank 0, torch.int32", None),
        ("option of one", "RuntimeError: .*the arguments of rank 1 are wrong", "ValueError: temperature must be"),
        ("references of one", "ValueError: .*ref_embeddings must be alike", None),
        ("unknown", "RuntimeError: .*the arguments of rank 1 are wrong", "TypeError: .*temprature"),
        ("no tensors", "RuntimeError: .*the arguments of rank 1 are wrong", "TypeError: embeddings must be a tensor"),
        ("a wish to learn", "ValueError: .*requires_grad=False", "ValueError: .*requires_grad=True"),
        ("a tensor", "ValueError: .*temperature=0.5", "ValueError: .*temperature=Tensor"),
        ("offsets", "RuntimeError: .*the arguments of rank 1 are wrong", "ValueError: .*offset must be 0"),
        ("boundaries", r"ValueError: .*beta=Tensor\(shape=\(4,\)", r"ValueError: .*beta=Tensor\(shape=\(5,\)"),
    ],
)
def test_errors_of_one_process_are_errors_of_all(name, first, second):
    for rank, (text, seconds) in enumerate(run(2, failing, name)):
        pattern = second if rank and second else first
        assert re.match(pattern, text), f"rank {rank}: {text}"
        assert seconds < 5, f"rank {rank}: {seconds}"


def outside() -> str:
    """A process that is not in the group."""
    group = dist.new_group([0])
    x, labels, at = rows(2)
    return outcome(lambda: GroupLoss(fusedloss.SupConLoss(), group)(x[at], labels[at]))[0]


def test_a_process_outside_of_the_group_is_told_so():
    inside, error = run(2, outside)
    assert not inside and "group must have this process, of rank 1" in error


def absent() -> tuple[str, float]:
    """A rank that does something else, instead of the loss."""
    x, labels, at = rows(2)
    group = dist.new_group([0, 1], timeout=timedelta(seconds=2))
    if dist.get_rank():
        time.sleep(4)
        return "", 0.0
    return outcome(lambda: GroupLoss(fusedloss.SupConLoss(), group)(x[at], labels[at]))


def test_nobody_waits_longer_than_the_timeout_of_the_group():
    (text, seconds), _ = run(2, absent)
    assert text and seconds < 3.5, (text, seconds)


REFUSED = [
    (fusedloss.ArcFaceLoss(5, 4), "arcface_loss"),
    (fusedloss.ContrastiveLoss(), "contrastive_loss"),
    (fusedloss.cross_entropy_loss, "cross_entropy_loss"),
    (lambda x, labels: x.sum(), "<lambda>"),
    (GroupLoss(fusedloss.supcon_loss), "GroupLoss"),
]


@pytest.mark.parametrize(("loss", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_what_compares_no_rows_of_a_batch_is_refused(loss, name):
    with pytest.raises(TypeError, match=f"loss must be an in-batch loss.*, got {name}"):
        GroupLoss(loss)


def test_options_are_held_to_what_they_may_be():
    with pytest.raises(ValueError, match="mode must be one of 'gather', 'ring', got 'other'"):
        GroupLoss(fusedloss.supcon_loss, mode="other")
    with pytest.raises(TypeError, match="even must be a bool, got int"):
        GroupLoss(fusedloss.supcon_loss, even=1)


@pytest.mark.parametrize(
    "loss",
    [
        fusedloss.batch_all_triplet_loss,
        fusedloss.BatchSemihardTripletLoss(),
        fusedloss.SmoothAPLoss(),
        fusedloss.recall_at_k_loss,
        fusedloss.BatchHardTripletLoss(negatives="semihard"),
        partial(fusedloss.hardest_pairs, negatives="semihard"),
    ],
)
def test_what_wants_all_rows_at_once_says_so(loss):
    with pytest.warns(UserWarning, match="mode 'ring' gathers them"):
        assert GroupLoss(loss, mode="ring").mode == "gather"


def refused_over_a_group() -> list[str]:
    x, labels, at = rows(2)
    y = x.flip(1)
    found = [
        outcome(lambda: GroupLoss(fusedloss.clip_loss)(x[at], y, 1.0, offset=1)),
        outcome(lambda: GroupLoss(fusedloss.siglip_loss)(x[at], y[at], 1.0, 0.0, offset=None)),
        outcome(lambda: GroupLoss(fusedloss.lifted_structure_loss)(x[at], labels[at], y, labels)),
        outcome(lambda: GroupLoss(fusedloss.clip_loss)(x[at], y, 1.0)),
    ]
    under_ddp("gather")
    return [text for text, _ in found]


def test_what_a_loss_takes_alone_is_refused_over_a_group():
    for clip, siglip, lifted, texts in run(2, refused_over_a_group):
        assert re.match("ValueError: GroupLoss of clip_loss: offset must be 0.* got 1", clip), clip
        assert re.match("ValueError: GroupLoss of siglip_loss: offset must be 0.* got None", siglip), siglip
        assert re.match("ValueError: ref_embeddings must be None over a group", lifted), lifted
        assert re.match("ValueError: GroupLoss of clip_loss: every rank must give a key for each", texts), texts
