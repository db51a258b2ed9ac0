"""One image of an explanation: maps on its patch grid -> saliency on its pixels, overlays and figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL.Image import fromarray
from torch import Tensor

from legrad import pixels, viz
from legrad.choices import ImageFormat, Normalization
from legrad.errors import InputError
from legrad.inputs import geometry, views
from legrad.results.surface import Surface

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

_STRIP = 8  # frames of a film strip
LARGEST_IN_FIGURES = 1024  # pixels of the longer side: a panel of 3.2 inches has them at 300 dots per inch


def check_normalization(normalize: Any) -> None:
    """Raise ``InputError`` unless there is such a normalisation."""
    if normalize is not None and (not isinstance(normalize, str) or normalize not in ("map", "shared")):
        raise InputError(f"normalize is one of ('map', 'shared', None), got {normalize!r}")


@dataclass(frozen=True)
class Style:
    """How saliency is drawn over an image: opacity in [0, 1], and matplotlib's name of a colour map."""

    alpha: float
    cmap: str

    def __post_init__(self) -> None:
        viz.check_alpha(self.alpha)
        viz.check_cmap(self.cmap)


@dataclass(frozen=True, eq=False)
class ImageView:
    """What is needed to draw maps of one image; attributes as in ``Explanation``, of this image only.

    Attributes:
        pixels: (H, W, 3) uint8; of a video (frames, H, W, 3); of a sound (frequency, time, 3), lowest frequency first.
        placement: where the model's input lies in the original.
        patch_grid: where the patches lie in the model's input.
        axes: names of the grid's axes.
        timing: of a video's frames or a sound.
        frequencies: centres of a spectrogram's rows in Hz; () if not known.
    """

    pixels: "NDArray[np.uint8]"
    placement: geometry.Placement
    patch_grid: geometry.PatchGrid
    axes: tuple[str, ...]
    timing: geometry.Timing
    frequencies: tuple[float, ...]

    @property
    def is_video(self) -> bool:
        """Whether maps and pixels have frames in front."""
        return self.axes[0] == "frames"

    @property
    def is_spectrogram(self) -> bool:
        """Whether the image is drawn from a sound, lowest frequency in row 0."""
        return self.axes[0] == "frequency"

    def seen(self, size: int | Sequence[int] | None = None) -> Tensor:
        """(H, W) bool: which pixels the model saw, of the original or of the original resized to ``size``."""
        return geometry.seen(self.placement, self.patch_grid, self._size(size))

    def saliency(self, maps: Tensor, size: int | Sequence[int] | None, normalize: Normalization) -> Tensor:
        """Maps (..., *grid), padding included -> (..., H, W), or (..., frames, H, W); see ``Explanation.saliency``.

        Raises:
            InputError: there is no such normalisation.
        """
        check_normalization(normalize)
        surface = self.surface(maps, size, normalize)
        values = geometry.place(surface.maps, self.placement, self.patch_grid, surface.resampler.size)
        return surface.stretched(values, slice(0, values.shape[-2]))

    def surface(self, maps: Tensor, size: int | Sequence[int] | None, normalize: Normalization) -> Surface:
        """What ``saliency`` gives as a whole, for some rows at a time."""
        rows, cols = self.patch_grid.grid
        maps = maps[..., :rows, :cols]
        if self.is_video:
            maps = geometry.along_time(maps, len(self.pixels))
        resampler = geometry.Resampler(self.placement, self.patch_grid, self._size(size))
        return Surface.of(maps, resampler, normalize, 2 + self.is_video)

    @property
    def is_large(self) -> bool:
        """An image whose saliency is not to be held as a whole, nor drawn in figures."""
        return self.axes == ("rows", "cols") and self._reduction > 1

    @property
    def _reduction(self) -> int:
        return -(-max(self.placement.original) // LARGEST_IN_FIGURES)

    def reduced(self) -> "ImageView":
        """The same scene, no larger than figures show it; the view itself where it is not larger."""
        if not self.is_large:
            return self
        placement, image = views.with_view(self.placement, pixels.reduced(self.pixels, self._reduction))
        return replace(self, pixels=image, placement=placement)

    def overlay_file(self, surface: Surface, style: Style, kind: ImageFormat) -> bytes:
        """The overlay of one map over a still image as the bytes of a file, a few rows at a time."""
        height, width = self.pixels.shape[:2]
        if kind == "png":
            return pixels.png(height, width, self._rows(surface, style))
        return viz.encoded(self.large_overlay(surface, style), kind)

    def large_overlay(self, surface: Surface, style: Style) -> "Image":
        """The overlay of one map over a still image."""
        return fromarray(pixels.joined(*self.pixels.shape[:2], self._rows(surface, style)))

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

    def figure(self, saliency: Tensor, titles: Sequence[str], name: str, style: Style, note: str = "") -> "Figure":
        """The original next to its overlays; of a video film strips.

        Args:
            saliency: (n, H, W), or (n, frames, H, W).
            titles: n of them.
            name: title of the original.
            style: of the overlays.
            note: a line below, before the explanation of what is hatched.
        """
        unseen = "" if bool(self.seen().all()) else "grey with stripes: never seen by the model"
        note = "; ".join(filter(None, (note, unseen)))
        if self.is_video:
            count = min(_STRIP, len(self.pixels))
            frames = [int((i + 0.5) * len(self.pixels) / count) for i in range(count)]
            strips: list[list[Any]] = [[self.overlay(film, style, frame) for frame in frames] for film in saliency]
            captions = [self._caption(frame) for frame in frames]
            return viz.film([list(self.pixels[frames]), *strips], [name, *titles], captions, style.cmap, note)
        panels = [self.overlay(panel, style) for panel in saliency]
        if self.is_spectrogram:
            axes = self._spectrogram_axes()
            return viz.figure(self.pixels[::-1], panels, titles, style.cmap, name, columns=2, axes=axes, note=note)
        return viz.figure(self.pixels, panels, titles, style.cmap, name, note=note)

    def _size(self, size: int | Sequence[int] | None) -> geometry.Size:
        return self.placement.original if size is None else geometry.as_size(size)

    def _caption(self, frame: int) -> str:
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
