"""The comparison itself can fail: a wrong value, a wrong gradient and an unwritten element are all found."""

import pytest
import torch

from fusedloss import reference
from tests.compare import check, poisoned_memory
from tests.grid import batch, covering


def scaled(value, gradient):
    """The reference with its value and its gradients multiplied by factors."""

    def loss(embeddings, labels):
        out = reference.batch_hard_triplet_loss(embeddings, labels, margin=1.0)
        return (out * gradient + out.detach() * (value - gradient)).to(torch.promote_types(out.dtype, torch.float32))

    return loss


def arguments():
    x, labels = batch(23, 37)
    return dict(embeddings=x, labels=labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("value", "gradient", "named"), [(1.001, 1, "value"), (1, 1.001, "embeddings")])
def test_an_error_of_a_thousandth_is_found(value, gradient, named, dtype):
    exact = scaled(1, 1)
    check(exact, arguments(), dtype, oracle=exact)
    with pytest.raises(AssertionError, match=f"{named}: L"):
        check(scaled(value, gradient), arguments(), dtype, oracle=exact)


def test_a_gradient_error_of_two_percent_is_found_in_bfloat16():
    def widened(factor):
        return lambda embeddings, labels: scaled(1, factor)(embeddings.float(), labels)

    check(widened(1), arguments(), torch.bfloat16, oracle=scaled(1, 1))
    with pytest.raises(AssertionError, match="embeddings: L"):
        check(widened(1.02), arguments(), torch.bfloat16, oracle=scaled(1, 1))


def test_nan_a_missing_gradient_and_nothing_to_compare_are_found():
    exact = scaled(1, 1)
    with pytest.raises(AssertionError, match="value is not finite"):
        check(scaled(torch.nan, 1), arguments(), oracle=exact)
    with pytest.raises(AssertionError, match="there are gradients of"):
        check(lambda embeddings, labels: exact(embeddings, labels).detach().requires_grad_(), arguments(), oracle=exact)
    with pytest.raises(AssertionError, match="nothing is compared"):
        check(scaled(0, 0), arguments(), oracle=scaled(0, 0))


def test_fresh_memory_is_poisoned():
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2, dtype=torch.float16)).isnan().all()
        assert (torch.empty(3, dtype=torch.int64) == -7).all()


def test_a_covering_grid_has_every_pair_of_values():
    axes = dict(a=(1, 2, 3), b="xyz", c=(True, False), d=(None, 0))
    grid = covering(axes, 2)
    for one in axes:
        for other in axes.keys() - {one}:
            assert {(case[one], case[other]) for case in grid} == {(v, w) for v in axes[one] for w in axes[other]}
    assert len(grid) < 15
