"""Compiled code: one graph for all batch sizes and numbers, `mark_dynamic`, `export`, and memory banks."""

import inspect

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

import fusedloss
from fusedloss.losses.catalog import CATALOG, Role
from tests.grid import FULL, IN_BATCH, LEARNABLE, LOSSES, SAMPLE, WITH_CLASSES, example, in_full, named, reductions

SIZES = (16, 24, 33, 47, 64, 65, 66, 80, 97, 128, 200)
REFERENCES = [(loss, False) for loss in LOSSES] + [(loss, True) for loss in (*IN_BATCH, fusedloss.info_nce_loss)]


def front(cases):
    """Cases for a sample of the losses in `make test`, and for all in `make test-all`: a compilation takes a second."""
    return [case for case in cases if FULL or (case[0] if isinstance(case, tuple) else case) in SAMPLE]


def graphs(function, calls, backend="aot_eager"):
    """How many graphs torch.compile makes of a function for these calls, whose results must be eager's."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for arguments in calls:
        rows = [v.requires_grad_() for v in arguments.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
        outcomes = []
        for each in (compiled, function):
            value = each(**arguments)
            outcomes.append((value, *torch.autograd.grad(value.sum(), rows)))
        torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)
    return counter.frame_count


def sized(loss, refs, sizes=SIZES, **options):
    return [example(loss, N, M=N // 2 + 3, refs=refs) | options for N in sizes]


@pytest.mark.parametrize(("loss", "refs"), REFERENCES)
def test_all_batch_sizes_share_two_graphs(loss, refs):
    assert graphs(loss, sized(loss, refs)) <= 2


def options():
    """(loss, options): each value of a choice, each switch, and the variants of the catalog."""
    for loss in LOSSES:
        for p in inspect.signature(loss).parameters.values():
            if isinstance(p.default, bool) and p.name != "overwrite_logits":
                yield loss, {p.name: not p.default}
        yield from ((loss, variant) for variant in CATALOG[loss.__name__].variants)
        yield from ((loss, {"reduction": reduction}) for reduction in reductions(loss) if reduction != "mean")


@pytest.mark.parametrize(("loss", "chosen"), front(options()), ids=named)
def test_so_do_they_with_every_option(loss, chosen):
    refs = loss is fusedloss.info_nce_loss and "symmetric" not in chosen  # a queue of negatives
    assert graphs(loss, sized(loss, refs, SIZES[:5], **chosen)) <= 2


@pytest.mark.parametrize("loss", front(IN_BATCH))
def test_so_do_they_with_the_batch_among_the_references(loss):
    def calls():
        for arguments in sized(loss, True, SIZES[:5]):
            x, labels = arguments["embeddings"], arguments["labels"]
            refs = torch.cat([arguments["ref_embeddings"].detach(), x]).detach()
            at = dict(ref_embeddings=refs, ref_labels=torch.cat([arguments["ref_labels"], labels]))
            yield arguments | at | dict(ref_offset=arguments["ref_labels"].shape[0])

    assert graphs(loss, calls()) <= 2


@pytest.mark.parametrize("loss", front([*IN_BATCH, *WITH_CLASSES]))
def test_so_do_they_with_rows_that_are_ignored(loss):
    assert graphs(loss, sized(loss, loss in IN_BATCH, SIZES[:4], ignore_index=1)) <= 2
    assert graphs(loss, [example(loss, 33) | dict(ignore_index=label) for label in (1, 3, 0, -5)]) <= 3  # 0 is its own


@pytest.mark.parametrize(("loss", "name"), front(LEARNABLE))
def test_so_do_they_with_a_learned_number(loss, name):
    assert graphs(loss, [arguments | {name: torch.tensor(0.6)} for arguments in sized(loss, False, SIZES[:4])]) <= 2


NUMBERS = [
    (loss, p.name)
    for loss in LOSSES
    for p in inspect.signature(loss).parameters.values()
    if str(p.annotation).startswith("float") and p.name != "logit_bias"
]


@pytest.mark.parametrize(("loss", "name"), front(NUMBERS))
def test_a_changed_number_compiles_nothing_anew(loss, name):
    assert graphs(loss, [example(loss) | {name: value} for value in (0.31, 0.42, 0.53, 0.64, 0.75)]) <= 2


@pytest.mark.parametrize(("loss", "refs"), REFERENCES if FULL else [(fusedloss.supcon_loss, True)])
def test_inductor_needs_no_more_graphs(loss, refs):
    assert graphs(loss, sized(loss, refs, SIZES[:4]), "inductor") <= 2


def batched(arguments, N):
    return [name for name, v in arguments.items() if v.dim() and v.shape[0] == N]


@pytest.mark.parametrize(("loss", "refs"), front(REFERENCES))
def test_a_batch_size_may_be_marked_dynamic(loss, refs):
    arguments = example(loss, 16, refs=refs)
    for name in batched(arguments, 16):
        torch._dynamo.mark_dynamic(arguments[name], 0)
    assert graphs(loss, [arguments, example(loss, 33, refs=refs), example(loss, 64, refs=refs)]) == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("loss", "refs"), front(REFERENCES))
def test_it_is_exported_with_a_dynamic_batch(loss, refs, strict):
    class Step(torch.nn.Module):
        def forward(self, *tensors):
            return loss(*tensors)

    tensors = [*example(loss, 16, refs=refs).values()]
    shapes = tuple({0: Dim("batch", min=2)} if v.dim() and v.shape[0] == 16 else None for v in tensors)
    program = export(Step(), tuple(tensors), dynamic_shapes={"tensors": shapes}, strict=strict)
    others = [*example(loss, 33, refs=refs).values()]
    torch.testing.assert_close(program.module()(*others), loss(*others))


def test_graphs_of_one_loss_do_not_count_for_another():
    """torch.compile keeps eight graphs per code object; one wrapper for all losses would be full with four losses."""
    modules = [getattr(fusedloss, name) for name in fusedloss.__all__ if name.endswith("Loss")]
    for functions in (LOSSES, [module.forward for module in modules]):
        assert len({id(function.__code__) for function in functions}) == len(functions) == len(LOSSES)
    torch._dynamo.reset()
    for loss in LOSSES[:9]:
        torch.compile(loss, fullgraph=True, backend="eager")(**example(loss))


@pytest.mark.parametrize("backend", ["aot_eager", *in_full("inductor")])
@pytest.mark.parametrize("loss", [fusedloss.supcon_loss, fusedloss.batch_hard_triplet_loss, fusedloss.info_nce_loss])
def test_a_memory_bank_compiles_to_two_graphs_while_it_fills(loss, backend):
    torch._dynamo.reset()
    banks = [fusedloss.MemoryBank(loss, 40, 5) for _ in range(2)]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(banks[0], fullgraph=True, backend=counter)
    takes_labels = bool(CATALOG[loss.__name__].named(Role.LABELS))
    for seed in range(8):  # of which the sixth fills it
        torch.manual_seed(seed)
        x, y = torch.randn(8, 5), torch.randint(3, (8,)) if takes_labels else torch.randn(8, 5)
        torch.testing.assert_close(compiled(x, y), banks[1](x, y))
    assert counter.frame_count <= 2
    torch.testing.assert_close(*(bank.state_dict() for bank in banks))


def test_so_does_one_of_thousands_of_rows_in_a_training_loop_with_keys_and_chosen_rows():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, bank = torch.nn.Linear(5, 5), fusedloss.MemoryBank(fusedloss.SupConLoss(), 4096, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def loss_of(x, labels, keys, store):
        return bank(model(x), labels, keys, store=store)

    for _ in range(20):  # of which the 16th fills it
        x, labels = torch.randn(300, 5), torch.randint(9, (300,))
        loss_of(x, labels, x / 2, torch.randperm(300)[:260]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count <= 2 and bank.filled == 4096 and bank.position == 20 * 260
