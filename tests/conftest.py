"""Which backend a test runs on: the kernels run on a GPU where there is one, otherwise in Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from tests.grid import running


@pytest.fixture(params=["blocked", "triton"])
def backend(request):
    return request.param


@pytest.fixture
def device(backend):
    """Where the tensors of a test go; small tiles, so that a batch of a few rows has several."""
    with running(backend, "small") as device:
        yield device
