"""The examples, as a user starts them: they end, and print the number that one process prints."""

import re

import pytest
import torch.distributed as dist

from tests import torchrun

pytest.importorskip("sklearn", reason="needs the extra `examples`")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

EXAMPLES = torchrun.ROOT / "examples"
LEAST = {"ddp_supcon": 0.93, "clip_two_towers": 0.85, "sharded_arcface": 0.85}  # of the number after 3 epochs


def run(name, *arguments, processes):
    """The losses of the epochs, and the number that it prints, once."""
    printed = torchrun.run(EXAMPLES / f"{name}.py", "--quick", *arguments, processes=processes)
    (number,) = re.findall(r"^(?:Recall|Accuracy).* (\d\.\d+)$", printed, re.MULTILINE)
    return [float(loss) for loss in re.findall(r"^epoch \d+: loss (\d+\.\d+)", printed, re.MULTILINE)], float(number)


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*LEAST}


def test_supcon_learns_the_same_in_any_number_of_processes():
    """Under DDP and under FSDP2, with gathered rows and with a ring, the results are the same."""
    losses, number = run("ddp_supcon", processes=1)
    assert len(losses) == 3 and number >= LEAST["ddp_supcon"]
    for arguments in ((), ("--fsdp", "--mode", "ring")):
        found, again = run("ddp_supcon", *arguments, processes=2)
        assert found == pytest.approx(losses, abs=2e-3) and again == pytest.approx(number, abs=0.01)


@pytest.mark.parametrize("name", [name for name in LEAST if name != "ddp_supcon"])
def test_other_examples(name):
    losses, number = run(name, processes=2)
    assert len(losses) == 3 and losses[-1] < losses[0] and number >= LEAST[name]
