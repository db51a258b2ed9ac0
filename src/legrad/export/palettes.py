"""Masks as one PNG: an index for every target, and a colour for every index."""

import colorsys
from typing import TYPE_CHECKING

import numpy as np

from legrad.choices import Threshold, Upsampling
from legrad.errors import InputError
from legrad.export.common import images_only, index_of
from legrad.results.explanation import Explanation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_MOST = 255  # of 8 bits, beside the background
_GOLDEN = 0.618033988749895  # hues that follow each other differ


def palette(
    explanation: Explanation,
    image: int = 0,
    threshold: Threshold | float = "half",
    upsampling: Upsampling = "guided",
) -> "Image":
    """The masks of one image as an image of indices with a palette.

    Args:
        explanation: of still images.
        image: index of the image.
        threshold, upsampling: as of ``Explanation.masks``.

    Returns:
        PIL image of mode "P": 0 is background (black), i + 1 target i; where masks overlap, the target whose saliency
        is higher there. ``image.save("masks.png")`` keeps both.

    Raises:
        InputError: no still images, no such image, more than 255 targets, or an argument out of range.
    """
    from PIL import Image

    image = index_of(images_only(explanation, "a palette"), image)
    palette_image = Image.fromarray(indices(explanation, image, threshold, upsampling))
    palette_image.putpalette([0, 0, 0, *(value for target in range(_MOST) for value in colour(target))])
    return palette_image


def indices(
    explanation: Explanation, image: int, threshold: Threshold | float, upsampling: Upsampling
) -> "NDArray[np.uint8]":
    """(H, W): 0 for background, i + 1 for target i.

    Raises:
        InputError: more than 255 targets.
    """
    count = explanation.relevance.shape[1]
    if count > _MOST:
        raise InputError(f"one image of indices holds {_MOST} targets, got {count}; use explanation.masks()")
    masks, saliency = explanation.image_masks(image, threshold, upsampling)
    values = np.where(masks.numpy(), saliency.numpy(), -1.0)
    best = values.argmax(0)
    return np.where(values.max(0) >= 0, best + 1, 0).astype(np.uint8)


def colour(target: int) -> tuple[int, int, int]:
    """A bright colour for a target, another one for each."""
    red, green, blue = colorsys.hsv_to_rgb(target * _GOLDEN % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
