"""Values of any depth -> 8 bits: by the range that the user gives, that the file declares, or a guess that is told."""

import math
import numbers
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad.checks import brief
from legrad.errors import InputError, warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

Range = tuple[float, float]  # (black, white)

_LEAST = 0.1  # share of its range that an image uses; with less it has hardly any contrast
_LARGEST = 1e300
_SAMPLE = 64  # rows and columns of the sample that tells most images of full contrast
_TIFF_BITS, _TIFF_WHITE = 258, 281  # tags: bits per sample, largest sample value


def checked(value_range: Any) -> Range | None:
    """The values that a user wants black and white.

    Raises:
        InputError: not two finite numbers, the lower first.
    """
    if value_range is None:
        return None
    ends = value_range.tolist() if hasattr(value_range, "tolist") else value_range  # arrays and tensors
    if isinstance(ends, list | tuple) and len(ends) == 2 and all(_is_number(end) for end in ends):
        low, high = (float(end) for end in ends)
        if low < high and math.isfinite(high - low):
            return low, high
    raise InputError(
        "value_range is (low, high), the values that become black and white, two numbers with low < high; got "
        f"{brief(value_range)}"
    )


def _is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and bool(-_LARGEST < value < _LARGEST)


def declared(image: Image.Image) -> Range | None:
    """(black, white) of an opened file whose pixels are not loaded yet; None if nothing declares it.

    Sixteen bits are 0 to 65,535 unless the file declares fewer: a PNG in its sBIT chunk, a TIFF in its tags.
    """
    if _bits16_colour(image):
        return _of_bits(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _of_bits(image)
    return None if image.mode in ("I", "F") else (0.0, 255.0)


def _bits16_colour(image: Image.Image) -> bool:
    """Colour of 16 bits, of which Pillow keeps the upper eight."""
    tiles = getattr(image, "tile", None) or []
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in _raw_mode(tile) for tile in tiles)


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple | list) and arguments else arguments
    return first if isinstance(first, str) else ""


def _of_bits(image: Image.Image) -> Range:
    if image.format == "PNG":
        significant = _png_significant_bits(getattr(image, "fp", None))
        return 0.0, float((1 << significant) - 1)
    tags = getattr(image, "tag_v2", {})
    bits, white = tags.get(_TIFF_BITS, (16,)), tags.get(_TIFF_WHITE, (0,))
    bits, white = (max(value) if isinstance(value, tuple) else value for value in (bits, white))
    if isinstance(white, int) and white > 255 and (white & (white + 1)) == 0:
        return 0.0, float(white)  # all ones: a depth, not the brightest pixel of this image
    return 0.0, float((1 << bits) - 1) if 8 < bits <= 16 else 65535.0


def _png_significant_bits(file: Any) -> int:
    """The largest number in the sBIT chunk, 16 without one; the file's position is kept."""
    if file is None:
        return 16
    position = file.tell()
    try:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"sBIT":
                bits = max(file.read(min(length, 4)), default=16)
                return bits if 8 < bits < 16 else 16
            if kind in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, 1)
    finally:
        file.seek(position)
    return 16


def deep_in_8_bits(
    image: Image.Image, name: str, declared_range: Range | None, value_range: Range | None
) -> Image.Image:
    """An image of one channel with more than 8 bits (mode I or F, or a kind of I;16) -> mode L.

    Args:
        image: loaded.
        name: for messages.
        declared_range: its range, see ``declared``.
        value_range: of the user, who is always right.

    Warns:
        UserWarning: the range is a guess, or hardly any of it is used, or there are NaN or infinite values.
    """
    values = np.asarray(image, np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        warn(f"{name} holds {int((~finite).sum())} NaN or infinite values; they become black")
    low, high = (float(end) for end in (values[finite].min(), values[finite].max())) if finite.any() else (0.0, 0.0)
    # a file that says 12 of 16 bits may hold them as the upper ones, as it should
    if declared_range is not None and high > declared_range[1]:
        declared_range = (0.0, 65535.0)
    limits = value_range or declared_range or _guessed(low, high, image.mode, name)
    pixels = scaled(np.where(finite, values, limits[0]), limits)
    if value_range is not None:
        _warn_of_nothing_left(pixels, low, high, value_range, name)
    elif declared_range is not None:
        _warn_of_little_contrast(low, high, declared_range, name)
    return Image.fromarray(pixels)


def _guessed(low: float, high: float, mode: str, name: str) -> Range:
    """The range of values that nothing declares: usual ones as they are, others stretched, which is told."""
    if mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and high <= 255:
        return 0.0, 255.0
    if mode == "I" and low >= 0 and high <= 65535:
        _warn_of_little_contrast(low, high, (0.0, 65535.0), name)
        return 0.0, 65535.0
    if mode == "F" and low >= -1 and high <= 1:
        limits = (-1.0, 1.0)
    else:
        limits = (min(0.0, low), high) if low >= 0 else (low, high if high > low else low + 1)
    warn(
        f"{name} does not say what its values {low:g} to {high:g} mean: {limits[0]:g} is taken for black and "
        f"{limits[1]:g} for white; give value_range=(low, high) to choose"
    )
    return limits


def scaled(values: "NDArray[Any]", limits: Range) -> "NDArray[np.uint8]":
    """Values of any type -> uint8, black and white at the ends of a range and beyond."""
    low, high = limits
    share = (np.asarray(values, np.float64) - low) / (high - low)
    return np.asarray((np.clip(share, 0, 1) * 255).round(), np.uint8)


def colours_in_range(image: Image.Image, name: str, declared_range: Range, value_range: Range | None) -> Image.Image:
    """An RGB image of 8 bits, or of more of which 8 are left, stretched to a range in the file's own values.

    Args:
        image: RGB.
        name: for messages.
        declared_range: (0, 255), or what ``declared`` says of colours of 16 bits.
        value_range: of the user.

    Warns:
        UserWarning: hardly any of the range is used.
    """
    # the eight bits that Pillow keeps are the upper ones of 16, whatever the file says of its depth
    unit = 257.0 if declared_range[1] > 255 else 1.0
    low, high = _extrema(image)
    if value_range is None and declared_range[1] in (255.0, 65535.0):
        _warn_of_little_contrast(low * unit, high * unit, declared_range, name)
        return image
    limits = value_range or (declared_range if high * unit <= declared_range[1] + unit else (0.0, 65535.0))
    if limits == (0.0, 255.0 * unit):
        return image
    pixels = scaled(np.asarray(image, np.float64) * unit, limits)
    if value_range is not None:
        _warn_of_nothing_left(pixels, low * unit, high * unit, value_range, name)
    return Image.fromarray(pixels)


def _extrema(image: Image.Image) -> Range:
    """Smallest and largest value of an image; equal if no channel varies. Exact only where they are close together."""
    sample = image.resize((min(_SAMPLE, image.width), min(_SAMPLE, image.height)), Image.Resampling.NEAREST)
    low, high = _ends(sample)
    return (low, high) if high - low >= _LEAST * 255 else _ends(image)


def _ends(image: Image.Image) -> Range:
    pairs: Any = image.getextrema()
    if all(low == high for low, high in pairs):
        return float(pairs[0][0]), float(pairs[0][0])
    return float(min(low for low, _ in pairs)), float(max(high for _, high in pairs))


def _warn_of_little_contrast(low: float, high: float, declared_range: Range, name: str) -> None:
    """Of an image that uses under a tenth of its range; a plain one is meant to be so."""
    share = (high - low) / (declared_range[1] - declared_range[0])
    if not 0 < share < _LEAST:
        return
    bits = 2 ** math.ceil(math.log2(max(high, 1) + 1)) - 1
    warn(
        f"{name} uses {share:.1%} of its range, values {low:g} to {high:g} of {declared_range[0]:g} to "
        f"{declared_range[1]:g}: the model sees "
        f"hardly any contrast. If they mean another range, give value_range=(low, high), such as (0, {bits})"
    )


def _warn_of_nothing_left(pixels: "NDArray[np.uint8]", low: float, high: float, limits: Range, name: str) -> None:
    if low < high and pixels.min() == pixels.max():
        warn(
            f"{name}: no pixel differs within value_range=({limits[0]:g}, {limits[1]:g}); its values go from {low:g} "
            f"to {high:g}"
        )
