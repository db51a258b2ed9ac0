"""Saliency of maps on the pixels of an image, as many rows at a time as are needed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from legrad.choices import Scale
from legrad.inputs.geometry import Resampler

FLAT = 1e-6  # a spread this small, relative to the largest value, is rounding


@dataclass(frozen=True, eq=False)
class Surface:
    """Maps over an image, and what they are stretched by.

    Attributes:
        maps: (..., rows, cols), of videos (..., frames, rows, cols).
        resampler: lays them on the image.
        low: what becomes 0, broadcastable to ``maps``; None where nothing is stretched.
        high: what becomes 1.
    """

    maps: Tensor
    resampler: Resampler
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def of(cls, maps: Tensor, resampler: Resampler, scale: Scale, dims: int) -> "Surface":
        """Stretched to [0, 1] over the pixels that the model saw.

        Args:
            maps: as above.
            resampler: lays them on the image.
            scale: "map" each by itself, "shared" all together, None not at all.
            dims: how many dimensions a map has.
        """
        if scale is None or resampler.sees_nothing or not maps.numel():
            return cls(maps, resampler)
        values = resampler.extremes(maps)
        over = tuple(range(-(dims if scale == "map" else values.ndim), 0))
        return cls(maps, resampler, values.amin(over, keepdim=True), values.amax(over, keepdim=True))

    def __getitem__(self, index: int) -> "Surface":
        """The surface of one map, stretched as among the others."""
        if self.low is None or self.high is None:
            return Surface(self.maps[index], self.resampler)
        ends = (end[index if len(end) > 1 else 0] for end in (self.low, self.high))
        return Surface(self.maps[index], self.resampler, *ends)

    def rows(self, rows: slice) -> Tensor:
        """(..., pixel rows, width)."""
        return self.stretched(self.resampler.rows(self.maps, rows), rows)

    def stretched(self, values: Tensor, rows: slice) -> Tensor:
        """Resampled values of some rows, which are overwritten -> saliency; 0 where the model saw nothing."""
        if self.low is not None and self.high is not None:
            spread = self.high - self.low
            # interpolating a flat map leaves rounding errors, which would be stretched to an image
            flat = spread <= FLAT * self.high.abs()
            values.sub_(self.low).div_(spread.masked_fill(flat, 1)).clamp_(0, 1).masked_fill_(flat, 0)
        y, x = self.resampler.inside
        height = values.shape[-2]
        values[..., : min(max(y.start - rows.start, 0), height), :] = 0
        values[..., min(max(y.stop - rows.start, 0), height) :, :] = 0
        values[..., : x.start] = 0
        values[..., x.stop :] = 0
        return values

    def seen(self, rows: slice) -> Tensor | None:
        """(pixel rows, width) bool, which of them the model saw; None for all."""
        height, width = self.resampler.size
        y, x = self.resampler.inside
        if (y.start, y.stop, x.start, x.stop) == (0, height, 0, width):
            return None
        result = torch.zeros(rows.stop - rows.start, width, dtype=torch.bool, device="cpu")
        result[max(y.start - rows.start, 0) : max(y.stop - rows.start, 0), x] = True
        return result
