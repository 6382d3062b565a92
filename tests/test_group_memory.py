"""The memory and traffic for the loss of a whole batch: the forms agree, and traffic is as predicted."""

import json

import pytest
import torch

from bench import files, group_cost, group_memory
from bench.group_memory import FORMS, LOSSES, PAIRS, off, ran
from bench.traffic import Traffic, imagined
from fusedloss import use_backend
from fusedloss.distributed import GroupLoss
from fusedloss.distributed.agreement import MOST, Told

(RESULT,) = (files.ROOT / "bench" / "results").glob("group-memory-*.json")
ROWS = {row["loss"]: row for row in json.loads(RESULT.read_text())["group_memory"]}
TOLD = 8 * (2 + MOST * len(Told()))  # bytes that a process tells before its rows
ALIKE = 1e-5  # of the largest entry, in float32


def test_the_page_has_the_costs_of_the_code():
    pytest.importorskip("triton")
    (found,) = group_cost.MARKERS.findall((files.ROOT / "docs" / "distributed.md").read_text())
    assert found == group_cost.table(), "python -m bench.group_cost --page docs/distributed.md"


@pytest.mark.parametrize("mode", ["ring", "gather"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_imagined_process_sends_what_a_real_one_sent(loss, mode):
    from fusedloss.backends.triton.launch import recording

    row = ROWS[loss]
    x, y = (torch.empty(row["n"], row["d"], device="meta", requires_grad=True) for _ in range(2))
    given = (x, y) if loss in PAIRS else (x, torch.empty(row["n"], dtype=torch.int64, device="meta"))
    with use_backend("triton"), recording("sm_90"), imagined(row["world"]) as traffic:
        GroupLoss(LOSSES[loss], mode=mode, even=True)(*given).backward()
    told = (row["world"] - 1) * TOLD
    assert (traffic.sent + told, traffic.received + told) == (row[mode]["sent"], row[mode]["received"])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_measured_forms_agree_and_the_ring_takes_least(loss):
    row = ROWS[loss]
    assert max(row[form][of] for form in FORMS for of in ("value_off", "gradient_off")) <= ALIKE
    rest = [row[form]["peak_bytes"] for form in FORMS if form not in ("ring", "gather")]
    assert row["ring"]["peak_bytes"] < row["gather"]["peak_bytes"] < min(rest)


@pytest.mark.parametrize("loss", ["SupConLoss", "ClipLoss"])
def test_forms_agree_in_processes_of_now(loss):
    (most, value, gradients), *others = (ran(2, loss, form, 32, 8) for form in (group_memory.BASE, "ring", "own rows"))
    assert most["peak_bytes"] > 0 and most["sent"] == most["received"] > 0
    for _, own, of in others:
        assert off(own, value) <= ALIKE and max(map(off, of, gradients)) <= ALIKE


def test_traffic_is_that_of_a_ring_of_processes():
    traffic, own = Traffic(4), torch.empty(6, 2)
    traffic.all_gather_into_tensor(torch.empty(24, 2), own)
    traffic.reduce_scatter_tensor(own, torch.empty(24, 2))
    traffic.all_reduce(own)
    assert (traffic.sent, traffic.received, traffic.exchanges) == (3 * 48 + 3 * 48 + 72, 3 * 48 + 3 * 48 + 72, 3)
    traffic.scatter(own, [own] * 4)
    traffic.scatter(own, None, src=1)
    assert (traffic.sent, traffic.received) == (360 + 3 * 48, 360 + 48)
