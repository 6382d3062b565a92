"""Equivalences that hold for any batch."""

import pytest
import torch
import torch.nn.functional as F

import fusedloss
from tests.grid import METRICS

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings, strategies

IN_BATCH = [fusedloss.pairwise_contrastive_loss, fusedloss.batch_hard_triplet_loss]
TOLERANCE = dict(rtol=1e-4, atol=1e-5)

batches = strategies.builds(
    lambda N, D, classes, seed: (seed, N, D, classes),
    strategies.integers(2, 21),
    strategies.integers(2, 19),
    strategies.integers(1, 6),
    strategies.integers(0, 2**31),
)


def on_batches(test):
    """Run a test (device, x, labels, ...) on generated batches; few, since the interpreter is slow."""

    @settings(derandomize=True, max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(sizes=batches)
    def run(sizes, device, **parameters):
        seed, N, D, classes = sizes
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(N, D, generator=generator)
        test(x=x.to(device), labels=torch.randint(classes, (N,), generator=generator).to(device), **parameters)

    return run


def values(loss, *tensors, **options):
    return loss(*tensors, **options, reduction="none")
