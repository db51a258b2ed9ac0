"""Does a map fall on its object? Pointing game, energy in the mask, prompt-swap.

Maps without contrast score as chance would: their pixels are all maxima, their energy is spread evenly, their
comparisons are ties.
"""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.errors import InputError
from legrad.metrics.ranges import check_shapes, is_flat

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = dict[str, float]


def pointing(saliency: "NDArray[Any]", mask: "NDArray[Any]", tolerance: float = 0) -> float | None:
    """Pointing game (Zhang et al., ECCV 2016): does the map's maximum lie in the mask?

    Args:
        saliency: (H, W).
        mask: (H, W) bool.
        tolerance: pixels that the maximum may lie away from the mask; 15 in the original paper, 0 in exact masks.

    Returns:
        1 or 0; of several equal maxima the share that hits; None for an empty mask.
    """
    check_shapes(saliency, mask)
    target = np.asarray(mask, bool)
    if not target.any():
        return None
    if tolerance > 0:
        try:
            ndimage = importlib.import_module("scipy.ndimage")
        except ImportError as error:
            raise InputError("tolerance is computed with scipy: pip install 'legrad[bench]'") from error
        target = ndimage.distance_transform_edt(~target) <= tolerance
    values = _without_flat(saliency)
    return float(target[values == values.max()].mean())


def energy(saliency: "NDArray[Any]", mask: "NDArray[Any]") -> float | None:
    """Energy-based pointing game (Wang et al., Score-CAM, 2020): the share of the map's positive part in the mask.

    Returns:
        in [0, 1]; None for an empty mask.
    """
    check_shapes(saliency, mask)
    target = np.asarray(mask, bool)
    if not target.any():
        return None
    values = np.nan_to_num(np.asarray(saliency, np.float64), nan=0, posinf=0, neginf=0).clip(min=0)
    total = values.sum()
    return float(values[target].sum() / total) if total else float(target.mean())


def swaps(maps: "NDArray[Any]", targets: "NDArray[Any]") -> tuple[float, int]:
    """Prompt-swap: for every ordered pair of objects A, B, is the map of A higher over A's mask than over B's?

    Args:
        maps: (K, H, W), one per object.
        targets: (K, H, W) bool, none empty.

    Returns:
        (pairs won, number of pairs K (K - 1)); means over the masks are compared, a tie is half.
    """
    values = np.stack([_without_flat(saliency).ravel() for saliency in maps])
    weights = np.asarray(targets, np.float64).reshape(len(values), -1)
    means = values @ weights.T / weights.sum(1)  # (map, mask)
    on_own_mask = means.diagonal()[:, None]
    # the means of equal values over two masks differ by rounding
    tied = np.isclose(on_own_mask, means, rtol=1e-9, atol=0)
    wins = np.where(tied, 0.5, on_own_mask > means)
    np.fill_diagonal(wins, 0)
    return float(wins.sum()), len(values) * (len(values) - 1)


def measure(maps: "NDArray[Any]", targets: "NDArray[Any]", tolerance: float = 0) -> Item:
    """The counts of one image: sums over its objects, and the numbers to divide them by.

    Args:
        maps: (K, H, W).
        targets: (K, H, W) bool; objects with an empty mask are left out, ``objects`` counts the others.
        tolerance: of the pointing game.

    Raises:
        InputError: the shapes differ.
    """
    maps, targets = np.asarray(maps), np.asarray(targets, bool)
    if maps.ndim != 3 or maps.shape != targets.shape:
        raise InputError(f"maps and masks have one shape (objects, H, W), got {maps.shape} and {targets.shape}")
    visible = targets.any((1, 2))
    maps, targets = maps[visible], targets[visible]
    wins, pairs = swaps(maps, targets) if len(maps) else (0.0, 0)
    return {
        "objects": len(maps),
        "hits": sum(pointing(saliency, mask, tolerance) or 0 for saliency, mask in zip(maps, targets, strict=True)),
        "energy": sum(energy(saliency, mask) or 0 for saliency, mask in zip(maps, targets, strict=True)),
        "swaps_won": wins,
        "swaps": pairs,
        "flat": sum(is_flat(saliency) for saliency in maps),
    }


def _without_flat(saliency: "NDArray[Any]") -> "NDArray[np.float64]":
    """A map in float64; zeros if it has no contrast."""
    return np.zeros(np.shape(saliency)) if is_flat(saliency) else np.asarray(saliency, np.float64)
