"""Perturbation: erase what a map calls relevant (positive) or irrelevant (negative), and measure the accuracy.

As in Chefer et al. (CVPR 2021): single pixels of the S x S image, black in [0, 1] space (before mean and std), in all
channels; every step starts from the clean image; y = top-1 accuracy against the data set's label over all images;
AUC = 100 * trapezoid of y over x = 0, 0.1, ..., 0.9, the clean accuracy at x = 0 included and without division by 0.9,
so that a constant accuracy a gives 90 a. Low is good for positive, high for negative.

Equal values are erased in the order of their pixels, row by row, in both directions: a map of a ReLU method is zero
over large areas, and ``torch.topk`` promises no order. ``ties="random"`` shuffles them by a seed instead.

Insertion and deletion (Petsiuk et al., RISE, BMVC 2018) go to x = 1; ``erase`` with the masks inverted inserts.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from legrad.errors import InputError
from legrad.metrics.ranges import is_flat

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = tuple(i / 10 for i in range(1, 10))
FULL_STEPS = tuple(i / 10 for i in range(1, 11))  # of insertion and deletion

Direction = Literal["positive", "negative"]
Ties = Literal["index", "random"]
Fill = Literal["black", "mean", "blur"]


def counts(cells: int, steps: Sequence[float] = STEPS) -> list[int]:
    """How many of ``cells`` pixels are erased at every step: floor(cells * step)."""
    # 100 * 0.29 is 28.999999999999996
    return [math.floor(cells * step + 1e-9) for step in _check(steps)]


def order(
    saliency: "NDArray[Any]", direction: Direction = "positive", ties: Ties = "index", seed: int = 0
) -> "NDArray[np.int64]":
    """The order of erasing: flat indices (H * W,) of a map (H, W); all values of a map without contrast are ties."""
    if direction not in ("positive", "negative") or ties not in ("index", "random"):
        raise InputError(f"direction is positive or negative, ties index or random; got {direction!r} and {ties!r}")
    values = np.zeros(np.size(saliency)) if is_flat(saliency) else np.asarray(saliency, np.float64).ravel()
    if direction == "positive":
        values = -values
    tie = np.random.default_rng(seed).permutation(len(values)) if ties == "random" else np.arange(len(values))
    return np.lexsort((tie, values))


def masks(
    saliency: "NDArray[Any]",
    direction: Direction = "positive",
    steps: Sequence[float] = STEPS,
    patch: int = 1,
    ties: Ties = "index",
    seed: int = 0,
) -> "NDArray[np.bool_]":
    """The pixels that are erased at every step.

    Args:
        saliency: (H, W), in the frame of the model's image.
        direction: "positive": the most relevant pixels go first; "negative": the least relevant.
        steps: shares of the image, ascending, in (0, 1].
        patch: side, in pixels, of the squares that are erased whole, ranked by their mean; 1 = pixels, as published.
        ties: order of equal values, see the module's docstring.
        seed: of ``ties="random"``.

    Returns:
        (steps, H, W) bool, each a part of the next.

    Raises:
        InputError: the map cannot be cut into such patches, or a wrong direction, tie or step.
    """
    height, width = np.shape(saliency)
    if patch < 1 or height % patch or width % patch:
        raise InputError(f"a map of {height} x {width} pixels cannot be cut into patches of {patch} x {patch}")
    rows, cols = height // patch, width // patch
    cells = np.asarray(saliency, np.float64).reshape(rows, patch, cols, patch).mean((1, 3))
    ranked = order(cells, direction, ties, seed)
    erased = np.zeros((len(steps), rows * cols), bool)
    for mask, count in zip(erased, counts(rows * cols, steps), strict=True):
        mask[ranked[:count]] = True
    return erased.reshape(-1, rows, cols).repeat(patch, 1).repeat(patch, 2)


def erase(image: Tensor, erased: "NDArray[np.bool_] | Tensor", fill: Fill = "black") -> Tensor:
    """The image with parts replaced, one batch for all steps; pass ``~masks`` to insert instead.

    Args:
        image: (3, H, W) in [0, 1], not normalised.
        erased: (steps, H, W) bool.
        fill: "black" as published, "mean" of the image per channel, "blur" (Gaussian, 11 pixels, sigma 5).

    Returns:
        (steps, 3, H, W), same dtype and device.

    Raises:
        InputError: an unknown fill.
    """
    if fill == "black":
        replacement = torch.zeros_like(image)
    elif fill == "mean":
        replacement = image.mean((1, 2), keepdim=True).expand_as(image)
    elif fill == "blur":
        from torchvision.transforms.functional import gaussian_blur

        replacement = gaussian_blur(image, [11, 11], [5.0, 5.0])
    else:
        raise InputError(f"fill is black, mean or blur, got {fill!r}")
    replaced = torch.as_tensor(erased, device=image.device)[:, None]
    return torch.where(replaced, replacement, image)


def auc(curve: Sequence[float], steps: Sequence[float] = STEPS) -> float:
    """100 * trapezoid of a curve (clean value first) over x = 0 and ``steps``, as published.

    Linear in the curve: the mean of single images' AUC is the AUC of their accuracy.
    """
    if len(curve) != len(steps) + 1:
        raise InputError(f"a curve has the clean value and one per step, {len(steps) + 1}; got {len(curve)}")
    widths = np.diff([0.0, *_check(steps)])
    heights = (np.asarray(curve[1:]) + np.asarray(curve[:-1])) / 2
    return float(100 * widths @ heights)


def auc_normalised(curve: Sequence[float], steps: Sequence[float] = STEPS) -> float:
    """``auc`` divided by the length of the axis (0.9): the mean height in percent, 100 a for a constant a."""
    return auc(curve, steps) / steps[-1]


def _check(steps: Sequence[float]) -> Sequence[float]:
    """The steps, if they are ascending shares."""
    ascending = all(low < high for low, high in zip([0.0, *steps], steps, strict=False))
    if not steps or not ascending or steps[-1] > 1:
        raise InputError(f"steps are ascending shares in (0, 1], got {list(steps)}")
    return steps
