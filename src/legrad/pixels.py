"""Pixels of overlays, a band of rows at a time: little memory, and as fast as the processor's cache.

Colours are mixed by table: there are few levels of saliency and 256 values of a pixel.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND = 1 << 18  # pixels of a band: their indices stay in the second-level cache
_HATCH = 12  # pixels from one line to the next


def bands(height: int, width: int) -> Iterator[slice]:
    """All rows of an image, a band at a time."""
    step = max(1, _BAND // max(1, width))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


class Mixture:
    """Colours over pixels.

    Args:
        colours: (levels, 3) uint8, the colour of each level of saliency, lowest first.
        opacity: of the colours, in [0, 1]; one number, or one for each level.
    """

    def __init__(self, colours: "NDArray[np.uint8]", opacity: "float | NDArray[Any]") -> None:
        self._count = len(colours)
        weight = np.broadcast_to(np.asarray(opacity, np.float64), (self._count,))[:, None]
        values = np.arange(256, dtype=np.float64)
        # a table (levels, 256) for each channel
        mixed = [values * (1 - weight) + colours[:, channel, None] * weight for channel in range(3)]
        self._tables = [np.clip(table, 0, 255).round().astype(np.uint8).ravel() for table in mixed]

    def __call__(self, pixels: "NDArray[np.uint8]", saliency: "NDArray[Any]") -> "NDArray[np.uint8]":
        """(rows, W, 3) uint8 and (rows, W) in [0, 1], NaN for 0 -> (rows, W, 3) uint8."""
        share = np.fmin(np.fmax(saliency, 0), 1)
        level = np.minimum(share * self._count, self._count - 1).astype(np.intp) << 8
        result, index, values = np.empty(pixels.shape, np.uint8), np.empty_like(level), np.empty(level.shape, np.uint8)
        for channel, table in enumerate(self._tables):
            np.bitwise_or(level, pixels[..., channel], out=index)
            # the indices are in range by construction; "raise" would copy the output
            result[..., channel] = table.take(index, out=values, mode="clip")
        return result


def hatched(pixels: "NDArray[np.uint8]", first_row: int) -> "NDArray[np.uint8]":
    """Grey with stripes, for what the model never saw: (rows, W, 3), whose first row is row ``first_row``."""
    grey = pixels.mean(-1, keepdims=True) * 0.35 + 110
    y, x = np.ogrid[first_row : first_row + pixels.shape[0], 0 : pixels.shape[1]]
    grey = np.where(((x + y) % _HATCH < 2)[..., None], grey * 0.6, grey)
    return np.repeat(np.clip(grey, 0, 255).round().astype(np.uint8), 3, -1)


def overlay_bands(
    image: "NDArray[np.uint8]",
    mix: Mixture,
    saliency: "Callable[[slice], NDArray[Any]]",
    seen: "Callable[[slice], NDArray[np.bool_] | None]",
) -> "Iterator[NDArray[np.uint8]]":
    """The rows of an overlay, from top to bottom.

    Args:
        image: (H, W, 3).
        mix: lays colours over pixels.
        saliency: of some rows, in [0, 1].
        seen: of some rows, False where the model saw nothing; None for all.
    """
    for rows in bands(*image.shape[:2]):
        result, visible = mix(image[rows], saliency(rows)), seen(rows)
        if visible is not None and not visible.all():
            result = np.where(visible[..., None], result, hatched(image[rows], rows.start))
        yield result


def joined(height: int, width: int, rows: "Iterable[NDArray[np.uint8]]") -> "NDArray[np.uint8]":
    """Rows, from top to bottom, as one image (H, W, 3)."""
    result, start = np.empty((height, width, 3), np.uint8), 0
    for band in rows:
        result[start : start + len(band)] = band
        start += len(band)
    return result


def reduced(pixels: "NDArray[np.uint8]", factor: int) -> "NDArray[np.uint8]":
    """Means over squares of ``factor`` pixels, (..., H, W, 3) uint8; smaller ones at the lower and right edge."""
    from PIL import Image

    if pixels.ndim > 3:
        return np.stack([reduced(part, factor) for part in pixels])
    height, width = pixels.shape[:2]
    step = factor * max(1, _BAND // (factor * width))
    parts = [Image.fromarray(pixels[start : start + step]).reduce(factor) for start in range(0, height, step)]
    return np.concatenate([np.asarray(part) for part in parts])
