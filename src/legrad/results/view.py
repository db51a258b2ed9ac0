"""One image of an explanation: maps on its patch grid -> saliency on its pixels, overlays and figures."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from PIL.Image import fromarray
from torch import Tensor

from legrad import pixels, relevance, viz
from legrad.choices import UPSAMPLINGS, Opacity, Scale, Upsampling, check_choice, check_scale
from legrad.inputs import geometry, views
from legrad.results.surface import FLAT, Surface
from legrad.results.upsampling import CUT, fit_size, guided, half_maximum

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

_STRIP = 8  # frames of a film strip
# pixels of the longer side: more than a panel of figures has at 300 dots per inch, and in files of ours
IN_FIGURES, IN_FILES = 1024, 704


@dataclass(frozen=True)
class Style:
    """How saliency is drawn over an image.

    Attributes:
        alpha: opacity in [0, 1], or "saliency", see ``Explanation.overlay``.
        cmap: matplotlib's name of a colour map.
    """

    alpha: Opacity = "saliency"
    cmap: str = "inferno"

    def __post_init__(self) -> None:
        viz.check_alpha(self.alpha)
        viz.check_cmap(self.cmap)


@dataclass(frozen=True, eq=False)
class ImageView:
    """What is needed to draw maps of one image; attributes as in ``Explanation``, of this image only.

    Attributes:
        original: gives the ``pixels``.
        placement: where the model's input lies in the original.
        patch_grid: where the patches lie in the model's input.
        axes: names of the grid's axes.
        timing: of a video's frames or a sound.
        frequencies: centres of a spectrogram's rows in Hz; () if not known.
    """

    original: "Callable[[], NDArray[np.uint8]]"
    placement: geometry.Placement
    patch_grid: geometry.PatchGrid
    axes: tuple[str, ...]
    timing: geometry.Timing
    frequencies: tuple[float, ...]

    @functools.cached_property
    def pixels(self) -> "NDArray[np.uint8]":
        """(H, W, 3) uint8; of a video (frames, H, W, 3); of a sound (frequency, time, 3), lowest frequency first."""
        return viz.rgb(self.original())

    @property
    def is_video(self) -> bool:
        """Whether maps and pixels have frames in front."""
        return self.axes[0] == "frames"

    @property
    def is_spectrogram(self) -> bool:
        """Whether the image is drawn from a sound, lowest frequency in row 0."""
        return self.axes[0] == "frequency"

    def shrunk(self, longest: int) -> "ImageView":
        """The same view on an original whose longer side has at most so many pixels; not of videos."""
        height, width = self.placement.original
        factor = min(1.0, longest / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        (y, x), (rows, cols) = self.placement.scale, size
        placement = replace(self.placement, original=size, scale=(y * height / rows, x * width / cols))
        return replace(
            self, original=lambda: np.asarray(PIL.Image.fromarray(self.pixels).resize(size[::-1])), placement=placement
        )

    def seen(self, size: int | Sequence[int] | None = None) -> Tensor:
        """(H, W) bool: which pixels the model saw, of the original or of the original resized to ``size``."""
        return geometry.seen(self.placement, self.patch_grid, self._size(size))

    def saliency(
        self,
        maps: Tensor,
        size: int | Sequence[int] | None = None,
        scale: Scale = "map",
        upsampling: Upsampling = "bilinear",
        cut: float = CUT,
    ) -> Tensor:
        """Maps (..., *grid), padding included -> (..., H, W), or (..., frames, H, W); see ``Explanation.saliency``.

        Args:
            maps: raw relevance.
            size, scale, upsampling: as of ``Explanation.saliency``.
            cut: of the half-maximum scale.

        Raises:
            InputError: there is no such scale or upsampling.
        """
        check_scale(scale)
        check_choice("upsampling", upsampling, UPSAMPLINGS)
        if upsampling == "bilinear" and scale != "half":
            surface = self.surface(maps, size, scale)
            values = geometry.place(surface.maps, self.placement, self.patch_grid, surface.resampler.size)
            return surface.stretched(values, slice(0, values.shape[-2]))
        rows, cols = self.patch_grid.grid
        maps = maps[..., :rows, :cols]
        if self.is_video:
            maps = geometry.along_time(maps, len(self.timing.frames) or len(self.pixels))
        seen = self.seen(size)
        result = maps.new_zeros(*maps.shape[:-2], *seen.shape)
        if not bool(seen.any()) or not result.numel():
            return result
        # what the model saw is a rectangle
        in_rows, in_cols = (_extent(seen.any(1 - axis)) for axis in range(2))
        if upsampling == "guided":
            inside = self._guided(maps, (seen.shape[0], seen.shape[1]), in_rows, in_cols)
        else:
            inside = geometry.place(maps, self.placement, self.patch_grid, self._size(size))[..., in_rows, in_cols]
        result[..., in_rows, in_cols] = inside if scale is None else self._scaled(inside, scale, cut)
        return result

    def _scaled(self, inside: Tensor, scale: Scale, cut: float) -> Tensor:
        """The pixels that the model saw, (..., H, W) or (..., frames, H, W), on a scale from 0 to 1."""
        dims = inside.ndim if scale == "shared" else 2 + self.is_video
        over = tuple(range(-dims, 0))
        high, low = inside.amax(over, keepdim=True), inside.amin(over, keepdim=True)
        # interpolating a flat map leaves rounding errors, which would be stretched to an image
        inside = inside.masked_fill(high - low <= FLAT * high.abs(), 0)
        if scale == "half":
            return half_maximum(inside.flatten(-dims), cut).view_as(inside)
        return relevance.min_max(inside, dims)

    def _guided(self, maps: Tensor, size: geometry.Size, in_rows: slice, in_cols: slice) -> Tensor:
        """Maps (..., rows, cols) on a rectangle of the image, resized to ``size``, along the contours there."""
        sides = in_rows.stop - in_rows.start, in_cols.stop - in_cols.start
        part = self.placement.part(size, in_rows.start, in_cols.start, sides)
        radius = self.patch_grid.patch[0] / part.scale[0], self.patch_grid.patch[1] / part.scale[1]
        # rounding is small beside a map that goes from 0 to 1, and a flat map stays flat
        low = maps.amin((-2, -1), keepdim=True)
        spread = maps.amax((-2, -1), keepdim=True) - low
        placed = geometry.place(relevance.min_max(maps), part, self.patch_grid, fit_size(sides, radius))
        frames = self.pixels if self.is_video else self.pixels[None]
        placed = placed if self.is_video else placed[..., None, :, :]
        result = placed.new_empty(*placed.shape[:-2], *sides)
        for frame, image in enumerate(frames):
            guide = torch.tensor(np.ascontiguousarray(image)).to(maps.dtype) / 255
            if size != image.shape[:2]:
                guide = F.interpolate(guide.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0]
                guide = guide.permute(1, 2, 0)
            flat = placed[..., frame, :, :].reshape(-1, *placed.shape[-2:])
            result[..., frame, :, :] = guided(flat, guide[in_rows, in_cols], radius).view(*placed.shape[:-3], *sides)
        return (result if self.is_video else result[..., 0, :, :]).mul_(spread).add_(low)

    def surface(self, maps: Tensor, size: int | Sequence[int] | None, scale: Scale) -> Surface:
        """What ``saliency`` gives with bilinear upsampling and a scale other than "half", for some rows at a time."""
        rows, cols = self.patch_grid.grid
        maps = maps[..., :rows, :cols]
        if self.is_video:
            maps = geometry.along_time(maps, len(self.timing.frames) or len(self.pixels))
        resampler = geometry.Resampler(self.placement, self.patch_grid, self._size(size))
        return Surface.of(maps, resampler, scale, 2 + self.is_video)

    @property
    def is_large(self) -> bool:
        """An image whose saliency is not to be held as a whole."""
        return self.axes == ("rows", "cols") and max(self.placement.original) > IN_FIGURES

    def reduced(self, longest: int = IN_FIGURES) -> "ImageView":
        """The same scene with about as many pixels a side; the view itself where it has no more, and of other kinds."""
        factor = -(-max(self.placement.original) // longest)
        if self.axes != ("rows", "cols") or factor == 1:
            return self
        image = pixels.reduced(self.pixels, factor)
        return replace(self, original=lambda: image, placement=views.of_size(self.placement, image.shape))

    def large_overlay(self, surface: Surface, style: Style) -> "Image":
        """The overlay of one map over a still image."""
        height, width = self.pixels.shape[:2]
        return fromarray(pixels.joined(height, width, self._rows(surface, style)))

    def _rows(self, surface: Surface, style: Style) -> "Iterator[NDArray[np.uint8]]":
        def seen(rows: slice) -> "NDArray[np.bool_] | None":
            visible = surface.seen(rows)
            return None if visible is None else visible.numpy()

        mix = viz.mixture(style.cmap, style.alpha)
        return pixels.overlay_bands(self.pixels, mix, lambda rows: surface.rows(rows).numpy(), seen)

    def overlay(self, saliency: Tensor, style: Style, frame: int | None = None) -> "Image":
        """Saliency (H, W) over the image, or (frames, H, W) over one frame: by default where it is strongest."""
        original = self.pixels
        if self.is_video:
            frame = int(saliency.flatten(1).amax(1).argmax()) if frame is None else frame
            original, saliency = original[frame], saliency[frame]
        image = viz.overlay(original, saliency.numpy(), self.seen().numpy(), alpha=style.alpha, cmap=style.cmap)
        return viz.upside_down(image) if self.is_spectrogram else image

    def plain(self) -> "Image":
        """The original, right way up; of a video the frame in the middle."""
        original = self.pixels[len(self.pixels) // 2] if self.is_video else self.pixels
        image = fromarray(np.ascontiguousarray(original))
        return viz.upside_down(image) if self.is_spectrogram else image

    def figure(
        self,
        saliency: Tensor,
        titles: Sequence[str],
        name: str,
        style: Style,
        note: str = "",
        bar: str = "saliency",
        layout: viz.Layout = viz.USUAL_LAYOUT,
        absent: Sequence[bool] = (),
    ) -> "Figure":
        """The original next to its overlays; of a video film strips.

        Args:
            saliency: (n, H, W), or (n, frames, H, W).
            titles: n of them.
            name: title of the original.
            style: of the overlays.
            note: a line below, before the explanation of what is hatched.
            bar: what the colour bar shows.
            layout: of the panels.
            absent: which of the n are greyed out; none of them if empty.
        """
        from legrad import figures

        note = "; ".join(filter(None, (note, self._unseen_note())))
        if self.is_video:
            count = min(_STRIP, len(self.pixels))
            frames = [int((i + 0.5) * len(self.pixels) / count) for i in range(count)]
            strips: list[list[Any]] = [[self.overlay(film, style, frame) for frame in frames] for film in saliency]
            for index in range(len(absent)):
                strips[index] = list(map(viz.greyed, strips[index])) if absent[index] else strips[index]
            captions = [self.caption(frame) for frame in frames]
            rows = [list(self.pixels[frames]), *strips]
            return figures.film(rows, [name, *titles], captions, style.cmap, note, style.alpha, bar, layout)
        panels = [self.overlay(panel, style) for panel in saliency]
        for index in range(len(absent)):
            panels[index] = viz.greyed(panels[index]) if absent[index] else panels[index]
        axes = self._spectrogram_axes() if self.is_spectrogram else None
        original = self.pixels[::-1] if self.is_spectrogram else self.pixels
        return figures.figure(original, panels, titles, style.cmap, name, axes, note, style.alpha, bar, layout)

    def _unseen_note(self) -> str:
        share = 1 - geometry.seen_share(self.placement, self.patch_grid)
        if share == 0:
            return ""
        note = f"grey with stripes: never seen by the model ({100 * share:.0f} % of the image"
        return f"{note}; fit='squash' or 'pad' shows it all)" if self.axes[0] == "rows" else f"{note})"

    def _size(self, size: int | Sequence[int] | None) -> geometry.Size:
        return self.placement.original if size is None else geometry.as_size(size)

    def caption(self, frame: int) -> str:
        """Which frame of the original video it is that the model saw, and when."""
        timing = self.timing
        caption = f"frame {timing.frames[frame] if timing.frames else frame}"
        return f"{caption}, {timing.seconds[frame]:.2f} s" if timing.seconds else caption

    def _spectrogram_axes(self) -> tuple[viz.Axis, viz.Axis]:
        """Seconds and Hz where they are known, else columns and rows of the spectrogram."""
        bins, steps = self.pixels.shape[:2]
        time = viz.Axis("time (spectrogram frames)", steps)
        if self.timing.duration is not None:
            time = viz.Axis("time (seconds)", self.timing.duration, start=self.timing.start)
        if not self.frequencies:
            return time, viz.Axis("frequency (mel bins)", bins)
        return time, viz.Axis("frequency (Hz)", bins, viz.uneven_ticks(self.frequencies))


def _extent(line: Tensor) -> slice:
    """From the first to the last True of a line that has one."""
    places = line.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)
