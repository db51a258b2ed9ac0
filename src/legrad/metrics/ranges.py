"""Scale maps to [0, 1], as the published metrics expect them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unit_range(saliency: "NDArray[Any]") -> "NDArray[np.float64]":
    """Min-max of one map over its pixels, after upsampling; a map without contrast becomes NaN throughout.

    A map that spans [0, 1] already does not change. There is no epsilon: a constant map is
    0 / 0 in the published code too, and the metrics say what NaN counts as.
    """
    values = np.asarray(saliency, np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high) or high <= low:
        return np.full(values.shape, np.nan)
    return np.asarray((values - low) / (high - low))


def is_flat(saliency: "NDArray[Any]") -> bool:
    """Whether a map has no contrast, or holds NaN or infinite values."""
    return bool(np.isnan(unit_range(saliency)).all())


def check_shapes(saliency: "NDArray[Any]", mask: "NDArray[Any]") -> None:
    """Raise ``InputError`` unless a map and its mask have the same shape (H, W)."""
    if np.ndim(saliency) != 2 or np.shape(saliency) != np.shape(mask) or not np.size(mask):
        raise InputError(f"a map and its mask have one shape (H, W), got {np.shape(saliency)} and {np.shape(mask)}")
