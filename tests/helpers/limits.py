"""How close numbers have to be: the only place that says so.

A limit is a share of the largest expected value, max|a - b| / max|b|; for maps that is ``twin.distance``. It holds on
every processor, so a test that needs more to see its error computes in float64. What is the same operation on the same
numbers is compared with ``torch.equal``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOAT32 = 1e-5
FLOAT64 = 1e-10
GOLDEN = 1e-5  # of the authors' maps, absolute: they lie between 0 and 1
CORRELATION = 0.99  # at least, between half precision and float32
# which correlation cannot see: the sum of a map in half precision, relative, and a cosine, absolute
HALF_SUM, HALF_COSINE = 0.1, 0.02
DIFFERENT = 1e-3  # at least, where two results must not be the same: far from what rounding does


def error(found: Any, expected: Any) -> float:
    """max|a - b| / max|b| over everything."""
    found, expected = (_tensor(one).double() for one in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


def close(found: Any, expected: Any, maps: bool = False, of: Any = None) -> bool:
    """Whether they are equal to the limit of the coarser of their two types.

    Args:
        found: tensor, array or numbers.
        expected: the same.
        maps: every map (the last two dimensions) of its own largest value; zeros are zeros.
        of: what else the largest value is taken of: all scores where one is compared, the terms of a difference.
    """
    pair = _tensor(found), _tensor(expected)
    limit = FLOAT32 if any(one.is_floating_point() and one.dtype != torch.float64 for one in pair) else FLOAT64
    a, b = (one.double() for one in pair)
    if of is not None:
        largest = _tensor(of).double().abs().max()
    else:
        largest = b.abs().amax((-2, -1), keepdim=True) if maps else b.abs().max()
    return bool((a.isfinite() & b.isfinite() & ((a - b).abs() <= limit * largest)).all())


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
