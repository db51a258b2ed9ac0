"""Where the model's input lies in the original image, and maps resampled onto the original's pixels."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.errors import InputError

Size = tuple[int, int]  # (height, width), or (rows, cols)

_MOST_PIXELS = 100_000_000  # a strip of 1 x 10000 pixels must not become one of 224 x 2240000 and fill the memory


@dataclass(frozen=True)
class Placement:
    """How the model's input pixels map to the original image, both in (height, width) order.

    ``input = scale * original + offset``, on pixel edges (0 is the edge of the first pixel).

    Attributes:
        original: size of the upright original image.
        input: size of the model's input.
        scale: per axis.
        offset: per axis, in input pixels; negative where the image was cropped, positive where it was padded.
    """

    original: Size
    input: Size
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def resized(self, size: Size) -> "Placement":
        """After resizing the whole input to ``size``.

        Raises:
            InputError: a thin strip of an image would have no pixels, or far too many.
        """
        if min(size) < 1 or size[0] * size[1] > _MOST_PIXELS:
            raise InputError(
                f"an image of {self.original[0]} x {self.original[1]} pixels is too thin: preprocessing would resize "
                f"it to {size[0]} x {size[1]}; cut it first, or use fit='squash'"
            )
        factor = tuple(new / old for new, old in zip(size, self.input, strict=True))
        return Placement(
            self.original,
            size,
            (self.scale[0] * factor[0], self.scale[1] * factor[1]),
            (self.offset[0] * factor[0], self.offset[1] * factor[1]),
        )

    def moved(self, top: int, left: int, size: Size) -> "Placement":
        """After cropping to a window whose corner is (top, left); negative numbers are padding."""
        return Placement(self.original, size, self.scale, (self.offset[0] - top, self.offset[1] - left))

    def part(self, size: Size, top: int, left: int, sides: Size) -> "Placement":
        """Of a part of the original, resized to ``size``: its upper left corner and its sides in pixels of ``size``."""
        scale = tuple(s * old / new for s, old, new in zip(self.scale, self.original, size, strict=True))
        offset = self.offset[0] + top * scale[0], self.offset[1] + left * scale[1]
        return Placement(sides, self.input, (scale[0], scale[1]), offset)


@dataclass(frozen=True)
class Timing:
    """When the model's input is, in the video or sound that it comes from.

    Attributes:
        frames: indices in the video, one for each frame of the input; () if not known.
        seconds: when each of these frames begins; () if not known.
        duration: of the video, or of the part of a sound that is in the input, in seconds; None if not known.
        start: where in a sound that part begins, in seconds.
    """

    frames: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    duration: float | None = None
    start: float = 0.0


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches lie in the model's input: cell i covers ``[i * stride, i * stride + patch)`` of its axis.

    Attributes:
        grid: (rows, cols).
        patch: (height, width) in pixels.
        stride: (height, width) in pixels, equal to ``patch`` where patches lie side by side.
    """

    grid: Size
    patch: Size
    stride: Size

    @property
    def covered(self) -> Size:
        """(height, width) of the input under the patches."""
        rows, cols = ((n - 1) * s + p for n, p, s in zip(self.grid, self.patch, self.stride, strict=True))
        return rows, cols


def _coordinates(placement: Placement, size: Size, axis: int) -> Tensor:
    """Input coordinates of the centres of ``size[axis]`` output pixels that span the original, float64."""
    centres = (torch.arange(size[axis], dtype=torch.float64, device="cpu") + 0.5) * (
        placement.original[axis] / size[axis]
    )
    return centres * placement.scale[axis] + placement.offset[axis]


def place(maps: Tensor, placement: Placement, patch_grid: PatchGrid, size: Size) -> Tensor:
    """Lay maps on the patch grid onto the original image, bilinearly (align_corners=False).

    Args:
        maps: (..., rows, cols).
        placement: where the model's input lies in the original.
        patch_grid: where the patches lie in the model's input; each value stands at its patch's centre.
        size: (height, width) of the result, which spans the whole original.

    Returns:
        (..., height, width), same dtype. Pixels outside the model's input hold the value at its nearest edge, see
        ``seen``.
    """
    channels = maps.reshape(1, -1, *maps.shape[-2:])  # grid_sample takes (batch, channels, rows, cols)
    y, x = (
        # grid_sample spans the centres of the first and last cell, and half a stride on either side, by -1 to 1
        (_coordinates(placement, size, axis) - (patch_grid.patch[axis] - patch_grid.stride[axis]) / 2)
        / (patch_grid.grid[axis] * patch_grid.stride[axis])
        * 2
        - 1
        for axis in range(2)
    )
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].to(maps.dtype)
    resampled = F.grid_sample(channels, points, mode="bilinear", padding_mode="border", align_corners=False)
    return resampled.reshape(*maps.shape[:-2], *size)


def along_time(maps: Tensor, frames: int) -> Tensor:
    """(..., tubelets, rows, cols) -> (..., frames, rows, cols), linear between the tubelets' centres."""
    if maps.shape[-3] == frames or not maps.numel():
        return maps if maps.shape[-3] == frames else maps.new_zeros(*maps.shape[:-3], frames, *maps.shape[-2:])
    lines = maps.movedim(-3, -1)
    flat = F.interpolate(lines.reshape(1, -1, maps.shape[-3]), size=frames, mode="linear", align_corners=False)
    return flat.reshape(*lines.shape[:-1], frames).movedim(-1, -3)


def seen(placement: Placement, patch_grid: PatchGrid, size: Size) -> Tensor:
    """(height, width) bool: pixels of the original that lie inside the grid's part of the model's input."""
    inside = []
    for axis in range(2):
        position = _coordinates(placement, size, axis)
        inside.append((position >= 0) & (position <= patch_grid.covered[axis]))
    return inside[0][:, None] & inside[1][None, :]


def as_size(size: int | Sequence[int]) -> Size:
    """An int or (height, width) of a user -> (height, width).

    Raises:
        InputError: something else, sides below 1, or more than 1e8 pixels.
    """
    try:
        # bool counts as an int, numpy's integers do not
        both = size if isinstance(size, Sequence) else (size, size)
        sides = [0 if isinstance(side, bool) else operator.index(side) for side in both]
    except TypeError:
        sides = []
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"size is a positive int or (height, width), got {size!r}")
    if sides[0] * sides[1] > _MOST_PIXELS:
        raise InputError(f"size={size!r} asks for {sides[0]} x {sides[1]} pixels, at most {_MOST_PIXELS} are made")
    return sides[0], sides[1]


def pair(size: Any) -> Size:
    """An int or a pair of a library's configuration -> (height, width), not checked; see ``as_size`` for users'."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
