"""The faults of `python -m tests.faults` can be planted in the code as it is."""

import pytest

from tests.faults import FAULTS, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}-{fault.new[:30]}")
def test_a_fault_changes_one_place(fault):
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.old != fault.new and fault.why
    assert all((ROOT / "tests" / name).exists() for name in fault.tests.partition(":")[0].split())


def test_there_are_faults_of_every_part():
    assert len(FAULTS) == len(set(FAULTS)) >= 40
    for part in ("kernels/", "fusedloss/backends/triton", "fusedloss/backends/blocked", "fusedloss/losses"):
        assert sum(fault.file.startswith(part) for fault in FAULTS) >= 4
