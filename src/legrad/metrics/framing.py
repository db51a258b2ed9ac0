"""Bring image, mask and points into the S x S frame in which the published metrics are computed."""

import importlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from legrad.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Geometry = Literal["squash", "crop", "prs_compat"]
Interpolation = Literal["bilinear", "bicubic"]
_GEOMETRIES = {
    # geometry -> (is the image cropped, is its mask)
    "squash": (False, False),
    "crop": (True, True),
    "prs_compat": (True, False),
}


def _crops(geometry: str, part: Literal[0, 1]) -> bool:
    """Whether a geometry crops the image (part 0) or the mask (part 1)."""
    if geometry not in _GEOMETRIES:
        raise InputError(f"geometry is one of {', '.join(_GEOMETRIES)}, got {geometry!r}")
    return _GEOMETRIES[geometry][part]


def frame_image(
    image: Image.Image, size: int, geometry: Geometry = "squash", interpolation: Interpolation = "bicubic"
) -> Image.Image:
    """The image as the model gets it.

    Args:
        image: RGB, any size.
        size: S, side of the result in pixels; 224 in the published segmentation and perturbation tests.
        geometry: "squash": width and height to S, as Chefer et al. and the authors of LeGrad do. "crop": short side to
            S, then the centre, as DenseAV does. "prs_compat": the same, but masks are squashed, see ``frame_mask``.
        interpolation: "bicubic" as in the CLIP lineage, "bilinear" as in Chefer et al. and DenseAV.

    Returns:
        S x S image.

    Raises:
        InputError: an unknown geometry or interpolation.
    """
    crop = _crops(geometry, 0)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    if interpolation not in filters:
        raise InputError(f"interpolation is bilinear or bicubic, got {interpolation!r}")
    return _to_frame(image, size, crop, filters[interpolation])


def frame_mask(mask: "NDArray[Any]", size: int, geometry: Geometry = "squash") -> "NDArray[Any]":
    """A mask in the same frame, by nearest neighbours.

    With "prs_compat" the mask is squashed although the image was cropped: the two do not fit together unless the
    image is square. The published code of TextSpan does this; use it only to compare with its numbers.

    Args:
        mask: (H, W) bool or uint8.
        size: S.
        geometry: as for ``frame_image``.

    Returns:
        (S, S), same dtype.
    """
    resized = _to_frame(Image.fromarray(mask.astype(np.uint8)), size, _crops(geometry, 1), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(mask.dtype)


def frame_points(
    points: "NDArray[Any]", image_size: tuple[int, int], size: int, geometry: Geometry = "squash"
) -> "NDArray[np.int64]":
    """Pixels of the frame in which points lie: (floor(X * S), floor(Y * S)) of relative X, Y, clipped to the range.

    Args:
        points: (P, 2) x, y in pixels of the original.
        image_size: the original's (width, height).
        size: S.
        geometry: only "squash": a crop loses points.

    Returns:
        (P, 2) x, y as indices.

    Raises:
        InputError: another geometry.
    """
    if geometry != "squash":
        raise InputError(f"points are placed with geometry='squash', got {geometry!r}: a crop would lose some of them")
    # X * W / W may fall short of X by rounding and drop to the pixel before
    pixel_points = np.floor(np.asarray(points, np.float64) / image_size * size + 1e-9).astype(np.int64)
    return np.asarray(pixel_points.reshape(-1, 2).clip(0, size - 1))


def _to_frame(image: Image.Image, size: int, crop: bool, resample: Image.Resampling) -> Image.Image:
    if not crop:
        return image.resize((size, size), resample)
    functional = importlib.import_module("torchvision.transforms.functional")
    mode = {0: "nearest", 2: "bilinear", 3: "bicubic"}[int(resample)]
    resized = functional.resize(image, size, functional.InterpolationMode(mode))
    return functional.center_crop(resized, [size, size])
