"""Type checkers see the real constructors, calls and options: verdicts of mypy, line by line."""

import re
import subprocess
import sys

import pytest

from bench.files import ROOT
from tests import stubs

# Lines that end in `# error: text` are wrong by that, all others are right.
CALLS = """
import torch
from torch import Tensor, nn

import fusedloss as f
from fusedloss.distributed import GroupLoss, ShardedArcFaceLoss

x, labels = torch.ones(2, 3), torch.ones(2)

f.NTXentLoss(temperature=0.1)
f.NTXentLoss(temperature=nn.Parameter(torch.ones(())), reduction="sum")
f.NTXentLoss(temprature=0.1)  # error: Unexpected keyword argument "temprature"
f.NTXentLoss(0.07)  # error: Too many positional arguments
f.NTXentLoss(temperature="a")  # error: incompatible type "str"
f.NTXentLoss()(x, x).backward()
f.NTXentLoss()(x)  # error: Missing positional argument "z2"
f.NTXentLoss()(x, x, x)  # error: Too many positional arguments
f.NTXentLoss()(x, x, temperature=0.2)
f.NTXentLoss()(x, x, tau=0.2)  # error: Unexpected keyword argument "tau"
f.NTXentLoss().forward(x, [1.0])  # error: incompatible type "list[float]"
f.TripletMarginLoss(0.5)(x, x, x)
f.TripletMarginLoss()(x, x, x, 1.0)  # error: Too many positional arguments
f.triplet_margin_loss(x, x, x, 0.5, swap=True)
f.SupConLoss()(x, labels, x, labels, ref_offset=0)
f.SupConLoss()(x, labels, ref_emb=x)  # error: Unexpected keyword argument "ref_emb"
f.ArcFaceLoss(5, 3, margin=0.3, device="cpu", dtype=torch.float16)(x, labels)
f.ArcFaceLoss(dim=3)  # error: Missing positional argument "num_classes"
f.ArcFaceLoss(embedding_size=6)  # error: "embedding_size"
f.ArcFaceLoss(5, 3)(x, x, labels)  # error: Too many positional arguments
f.LinearCrossEntropyLoss(5, 3, bias=True)
f.ClipLoss(logit_scale=10.0)(x, x)
f.ClipLoss()(x, x, 10.0)
f.ClipLoss(logit_scale="a")  # error: incompatible type "str"
ShardedArcFaceLoss(5, 3, scale=32.0, sample_rate=0.1)(x, labels).backward()
ShardedArcFaceLoss(5, 3, rate=0.1)  # error: Unexpected keyword argument "rate"
ShardedArcFaceLoss(5, 3)(x)  # error: Missing positional argument "target"
GroupLoss(f.SupConLoss(), mode="ring", even=True)
GroupLoss(f.SupConLoss(), ring=True)  # error: Unexpected keyword argument "ring"
f.supcon_loss(x, labels, temperature=0.1)
f.supcon_loss(x, labels, tau=0.1)  # error: Unexpected keyword argument "tau"
f.supcon_loss(x, temperature=0.1)  # error: Missing positional argument "labels"
f.nt_xent_loss(x, x, temperature="a")  # error: incompatible type "str"
total: Tensor = f.supcon_loss(x, labels)
total = f.hardest_pairs(x, labels)  # error: incompatible types in assignment


class Derived(f.NTXentLoss):
    def __init__(self, k: int) -> None:
        super().__init__(temperature=0.1)
        self.k = k


Derived(3)(x, x).backward()
Derived("a")  # error: incompatible type "str"
"""


@pytest.mark.parametrize("module", stubs.HEADS)
def test_the_stub_is_that_of_the_signatures(module):
    assert stubs.path(module).read_text() == stubs.stub(module), "run `python -m tests.stubs`"


def test_wrong_calls_are_errors_and_right_ones_are_none(tmp_path, pytestconfig):
    pytest.importorskip("mypy")
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    cache = pytestconfig.cache.mkdir("mypy")  # the first run reads all of torch, and takes ten times as long
    command = ["-m", "mypy", "--config-file=", f"--cache-dir={cache}", "--hide-error-context", "--no-pretty", file]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if match := re.match(r"(.+):(\d+): error: (.*)", line):
            assert match[1].endswith("calls.py"), line
            found[int(match[2])] = match[3]
    for number, line in enumerate(CALLS.splitlines(), 1):
        _, wrong, text = line.partition("  # error: ")
        assert (number in found) == bool(wrong), (line, found.get(number))
        assert text.lower() in found.get(number, "").lower(), (line, found[number])
