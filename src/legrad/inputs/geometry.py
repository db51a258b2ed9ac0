"""Where the model's input lies in the original image, and maps resampled onto the original's pixels."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.errors import InputError
from legrad.pixels import bands

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


class Resampler:
    """Lays maps on the patch grid onto the original image, bilinearly between the patches' centres.

    Args:
        placement: where the model's input lies in the original.
        patch_grid: where the patches lie in the model's input; each value stands at its patch's centre.
        size: (height, width) of the result, which spans the whole original.

    Attributes:
        size: of the result.
        inside: rows and columns of the pixels that lie inside the grid's part of the model's input.
    """

    def __init__(self, placement: Placement, patch_grid: PatchGrid, size: Size) -> None:
        self.size = size
        self._axes = [_Axis.of(placement, patch_grid, size, axis) for axis in range(2)]
        self.inside = tuple(axis.inside for axis in self._axes)

    @property
    def sees_nothing(self) -> bool:
        """No pixel is inside."""
        return any(part.start >= part.stop for part in self.inside)

    def rows(self, maps: Tensor, rows: slice) -> Tensor:
        """(..., rows, cols) on the CPU -> (..., pixel rows, width), same dtype.

        Pixels outside the model's input hold the value at its nearest edge.
        """
        lines = self._axes[0].between(maps.numpy(force=True), rows, -2)
        return torch.from_numpy(self._axes[1].between(lines, slice(None), -1))

    def extremes(self, maps: Tensor) -> Tensor:
        """Some pixels inside, (..., n, m): the smallest and the largest of all of them are there.

        Between four centres the surface has its extremes at the corners.
        """
        y, x = (axis.corners() for axis in self._axes)
        lines = self._axes[0].between(maps.numpy(force=True), y, -2)
        return torch.from_numpy(self._axes[1].between(lines, x, -1))


@dataclass(frozen=True, eq=False)
class _Axis:
    """Between which two cells every pixel of an axis lies.

    Attributes:
        low: index of the cell before it.
        high: of the one behind it, the same at the border.
        share: of ``high``, in [0, 1].
        inside: pixels that lie inside the grid's part of the model's input.
    """

    low: Any
    high: Any
    share: Any
    inside: slice

    @classmethod
    def of(cls, placement: Placement, patch_grid: PatchGrid, size: Size, axis: int) -> "_Axis":
        patch, stride, count = patch_grid.patch[axis], patch_grid.stride[axis], patch_grid.grid[axis]
        position = _coordinates(placement, size, axis)
        cells = ((position - (patch - stride) / 2) / stride - 0.5).clamp(0, count - 1)
        low = cells.floor().long()
        seen_pixels = ((position >= 0) & (position <= patch_grid.covered[axis])).nonzero()[:, 0].tolist()
        inside = slice(seen_pixels[0], seen_pixels[-1] + 1) if seen_pixels else slice(0, 0)
        return cls(low.numpy(), (low + 1).clamp(max=count - 1).numpy(), (cells - low).numpy(), inside)

    def between(self, values: Any, pixels: Any, axis: int) -> Any:
        """Values of the cells along an axis of an array -> of some pixels."""
        share = self.share[pixels].astype(values.dtype)
        share = share[:, None] if axis == -2 else share
        result = values.take(self.low[pixels], axis) * (1 - share)
        result += values.take(self.high[pixels], axis) * share
        return result

    def corners(self) -> Any:
        """The first and the last pixel between every two neighbouring cells, of those inside."""
        low = self.low[self.inside]
        starts = np.flatnonzero(np.diff(low, prepend=-1))
        ends = np.append(starts[1:], len(low)) - 1
        return np.unique(np.concatenate([starts, ends])) + self.inside.start


def place(maps: Tensor, placement: Placement, patch_grid: PatchGrid, size: Size) -> Tensor:
    """Lay maps on the patch grid onto the original image, bilinearly.

    Args:
        maps: (..., rows, cols) on the CPU.
        placement: where the model's input lies in the original.
        patch_grid: where the patches lie in the model's input; each value stands at its patch's centre.
        size: (height, width) of the result, which spans the whole original.

    Returns:
        (..., height, width), same dtype. Pixels outside the model's input hold the value at its nearest edge, see
        ``seen``.
    """
    resampler = Resampler(placement, patch_grid, size)
    result = maps.new_empty(*maps.shape[:-2], *size)
    for rows in bands(*size):
        result[..., rows, :] = resampler.rows(maps, rows)
    return result


def along_time(maps: Tensor, frames: int) -> Tensor:
    """(..., tubelets, rows, cols) -> (..., frames, rows, cols), linear between the tubelets' centres."""
    if maps.shape[-3] == frames or not maps.numel():
        return maps if maps.shape[-3] == frames else maps.new_zeros(*maps.shape[:-3], frames, *maps.shape[-2:])
    lines = maps.movedim(-3, -1)
    flat = F.interpolate(lines.reshape(1, -1, maps.shape[-3]), size=frames, mode="linear", align_corners=False)
    return flat.reshape(*lines.shape[:-1], frames).movedim(-1, -3)


def seen(placement: Placement, patch_grid: PatchGrid, size: Size) -> Tensor:
    """(height, width) bool: pixels of the original that lie inside the grid's part of the model's input."""
    result = torch.zeros(size, dtype=torch.bool, device="cpu")
    result[Resampler(placement, patch_grid, size).inside] = True
    return result


def seen_share(placement: Placement, patch_grid: PatchGrid) -> float:
    """How much of the original lies inside the grid's part of the model's input, in [0, 1]."""
    inside = Resampler(placement, patch_grid, placement.original).inside
    parts = zip(inside, placement.original, strict=True)
    return math.prod(max(0, pixels.stop - pixels.start) / side for pixels, side in parts)


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
