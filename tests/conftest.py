"""Which backend a test runs on: the kernels run on a GPU where there is one, otherwise in Triton's interpreter."""

import os
import tempfile

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

# Tiles that someone tuned on this machine are not those under test.
os.environ["FUSEDLOSS_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), "fusedloss-tests")
os.environ.pop("FUSEDLOSS_AUTOTUNE", None)

from tests import grid, interpreter
from tests.grid import running

interpreter.quicken()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the whole grids: `make test-all`")


def pytest_configure(config):
    grid.FULL = config.getoption("--full")  # before the tests are imported, whose cases depend on it


def pytest_runtest_teardown(item):
    if grid.DRAWN:
        item.user_properties.append(("seeds", [*grid.DRAWN]))
        grid.DRAWN.clear()


SEEDS = []  # the seeds of all tests, including those in other processes


def pytest_runtest_logreport(report):
    if report.when == "teardown":
        SEEDS.extend(seed for name, seeds in report.user_properties if name == "seeds" for seed in seeds)


def pytest_terminal_summary(terminalreporter):
    if SEEDS:
        terminalreporter.write_line(f"property tests: {len(SEEDS)} batches, of {len(set(SEEDS))} seeds")


@pytest.fixture(params=["blocked", "triton"])
def backend(request):
    return request.param


@pytest.fixture
def device(backend):
    """The device for the tensors of a test. Tiles are small, so that a batch of a few rows has several."""
    with running(backend, "small") as device:
        yield device
