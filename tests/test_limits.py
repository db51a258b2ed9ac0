"""The tests' own measure: it must not call equal what is not."""

import numpy as np
import pytest
import torch
from helpers import limits


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, limits.FLOAT32), (torch.float64, limits.FLOAT64)])
def test_close_is_a_share_of_the_largest(dtype, limit):
    values = torch.tensor([[1.0, -8.0], [0.0, 2.0]], dtype=dtype)
    for share, same in ((0.5, True), (2, False)):
        other = values.double() + torch.tensor([0, 0, 8 * limit * share, 0]).view(2, 2)
        assert limits.close(other.to(dtype), values) == same
        assert limits.close(other.to(dtype).tolist(), values) == same
        assert limits.close(other.to(dtype), values, of=values / 8) == (same and share < 1 / 8)


def test_the_coarser_type_counts():
    values = torch.rand(3, dtype=torch.float64)
    assert limits.close(values.float(), values)
    assert not limits.close(values.float().double(), values)
    assert limits.close(values.numpy(), values)
    assert limits.close(np.float32(0.1), 0.1)
    assert not limits.close(float(np.float32(0.1)), 0.1)


def test_every_map_of_its_own_largest_value():
    maps = torch.stack([torch.ones(2, 2), torch.full((2, 2), 1e-6), torch.zeros(2, 2)])
    other = maps.clone()
    other[1] *= 1.1
    assert limits.close(other, maps)
    assert not limits.close(other, maps, maps=True)
    other = maps.clone()
    assert limits.close(other, maps, maps=True)
    other[2, 0, 0] = 1e-30
    assert not limits.close(other, maps, maps=True)


def test_what_is_no_number_is_not_close():
    for wrong in (torch.nan, torch.inf):
        assert not limits.close(torch.tensor([1.0, wrong]), torch.tensor([1.0, 2.0]))
        assert not limits.close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, wrong]))
    assert not limits.error(torch.zeros(2), torch.zeros(2)) > limits.DIFFERENT
