"""Where the model's input lies in the original image, and maps laid back onto its pixels."""

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
            InputError: nothing would be left, or far too much, of an image that is a thin strip.
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


@dataclass(frozen=True)
class Timing:
    """When the frames of a model's input are, in the video or sound that they come from.

    Attributes:
        frames: indices of the video's own frames, one for each that the model saw; () if not known.
        seconds: when each of them begins; () if not known.
        duration: seconds of the video or sound; of a sound what the model heard of it; None if not known.
        start: of a sound, the second at which the model began to hear.
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


def _coordinates(frame: Placement, size: Size, axis: int) -> Tensor:
    """Input coordinates of the centres of ``size[axis]`` output pixels that span the original, float64."""
    centres = (torch.arange(size[axis], dtype=torch.float64) + 0.5) * (frame.original[axis] / size[axis])
    return centres * frame.scale[axis] + frame.offset[axis]


def place(maps: Tensor, frame: Placement, cells: PatchGrid, size: Size) -> Tensor:
    """Lay maps on the patch grid onto the original image, bilinearly (align_corners=False).

    Args:
        maps: (..., rows, cols).
        frame: where the model's input lies in the original.
        cells: where the patches lie in the model's input; each value stands at its patch's centre.
        size: (height, width) of the result, which spans the whole original.

    Returns:
        (..., height, width), same dtype; pixels that the model never saw hold the nearest seen value, see ``seen``.
    """
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    y, x = (
        # grid_sample spans the centres of the first and last cell, and half a stride on either side, by -1 to 1
        (_coordinates(frame, size, axis) - (cells.patch[axis] - cells.stride[axis]) / 2)
        / (cells.grid[axis] * cells.stride[axis])
        * 2
        - 1
        for axis in range(2)
    )
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].to(maps.dtype)
    placed = F.grid_sample(flat, points, mode="bilinear", padding_mode="border", align_corners=False)
    return placed.reshape(*maps.shape[:-2], *size)


def along_time(maps: Tensor, frames: int) -> Tensor:
    """(..., tubelets, rows, cols) -> (..., frames, rows, cols), linear between the tubelets' centres."""
    if maps.shape[-3] == frames or not maps.numel():
        return maps if maps.shape[-3] == frames else maps.new_zeros(*maps.shape[:-3], frames, *maps.shape[-2:])
    lines = maps.movedim(-3, -1)
    flat = F.interpolate(lines.reshape(1, -1, maps.shape[-3]), size=frames, mode="linear", align_corners=False)
    return flat.reshape(*lines.shape[:-1], frames).movedim(-1, -3)


def seen(frame: Placement, cells: PatchGrid, size: Size) -> Tensor:
    """(height, width) bool: pixels of the original that lie inside the grid's part of the model's input."""
    inside = []
    for axis in range(2):
        position = _coordinates(frame, size, axis)
        inside.append((position >= 0) & (position <= cells.covered[axis]))
    return inside[0][:, None] & inside[1][None, :]


def as_size(size: int | Sequence[int]) -> Size:
    """An int or a pair -> (height, width), checked."""
    try:
        # bool counts as an int, numpy's integers do not
        given_sides = size if isinstance(size, Sequence) else (size, size)
        sides = [0 if isinstance(side, bool) else operator.index(side) for side in given_sides]
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
