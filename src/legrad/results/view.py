"""One image of an explanation: maps on its patch grid -> saliency on its pixels, overlays and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from legrad import relevance, viz
from legrad.choices import Normalization, Opacity
from legrad.errors import InputError
from legrad.inputs import geometry

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image

_STRIP = 8  # frames of a film strip
_FLAT = 1e-6  # a spread this small, relative to the largest value, is rounding


_BARS = {
    "map": "saliency (per map)",
    "shared": "saliency (one scale for all)",
    None: "raw relevance",
}


@dataclass(frozen=True)
class Style:
    """How saliency is drawn over an image.

    Attributes:
        alpha: opacity in [0, 1], or "saliency".
        cmap: matplotlib's name of a colour map.
        normalize: how relevance becomes saliency, see ``Explanation.saliency``.
    """

    alpha: Opacity = "saliency"
    cmap: str = "inferno"
    normalize: Normalization = "map"

    def __post_init__(self) -> None:
        viz.check_alpha(self.alpha)
        viz.check_cmap(self.cmap)
        _check_normalization(self.normalize)

    @property
    def bar(self) -> str:
        """What the colour bar shows."""
        return _BARS[self.normalize]


def _check_normalization(normalize: Normalization) -> None:
    if normalize is not None and (not isinstance(normalize, str) or normalize not in ("map", "shared")):
        raise InputError(f"normalize is one of ('map', 'shared', None), got {normalize!r}")


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
        _check_normalization(normalize)
        rows, cols = self.patch_grid.grid
        maps = maps[..., :rows, :cols]
        if self.is_video:
            maps = geometry.along_time(maps, len(self.pixels))
        resampled = geometry.place(maps, self.placement, self.patch_grid, self._size(size))
        seen = self.seen(size)
        if normalize is not None and bool(seen.any()) and resampled.numel():
            inside = resampled[..., seen]
            dims = 1 + self.is_video if normalize == "map" else inside.ndim
            over = tuple(range(-dims, 0))
            high, low = inside.amax(over, keepdim=True), inside.amin(over, keepdim=True)
            # interpolating a flat map leaves rounding errors, which would be stretched to an image
            inside = inside.masked_fill(high - low <= _FLAT * high.abs(), 0)
            resampled = torch.zeros_like(resampled)
            resampled[..., seen] = relevance.min_max(inside, dims)
        return resampled * seen

    def overlay(self, saliency: Tensor, style: Style, frame: int | None = None) -> "Image":
        """Saliency (H, W) over the image, or (frames, H, W) over one frame: by default where it is strongest."""
        pixels = self.pixels
        if self.is_video:
            frame = int(saliency.flatten(1).amax(1).argmax()) if frame is None else frame
            pixels, saliency = pixels[frame], saliency[frame]
        image = viz.overlay(pixels, saliency.numpy(), self.seen().numpy(), alpha=style.alpha, cmap=style.cmap)
        return viz.upside_down(image) if self.is_spectrogram else image

    def figure(
        self,
        saliency: Tensor,
        titles: Sequence[str],
        name: str,
        style: Style,
        note: str = "",
        layout: viz.Layout = viz.USUAL_LAYOUT,
    ) -> "Figure":
        """The original next to its overlays; of a video film strips.

        Args:
            saliency: (n, H, W), or (n, frames, H, W).
            titles: n of them.
            name: title of the original.
            style: of the overlays.
            note: a line below, before the explanation of what is hatched.
            layout: of the panels.
        """
        from legrad import figures

        unseen = self._unseen_note()
        note = "; ".join(filter(None, (note, unseen)))
        if self.is_video:
            count = min(_STRIP, len(self.pixels))
            frames = [int((i + 0.5) * len(self.pixels) / count) for i in range(count)]
            strips: list[list[Any]] = [[self.overlay(film, style, frame) for frame in frames] for film in saliency]
            captions = [self._caption(frame) for frame in frames]
            rows = [list(self.pixels[frames]), *strips]
            return figures.film(rows, [name, *titles], captions, style.cmap, note, style.alpha, style.bar, layout)
        panels = [self.overlay(panel, style) for panel in saliency]
        axes = self._spectrogram_axes() if self.is_spectrogram else None
        pixels = self.pixels[::-1] if self.is_spectrogram else self.pixels
        return figures.figure(pixels, panels, titles, style.cmap, name, axes, note, style.alpha, style.bar, layout)

    def _unseen_note(self) -> str:
        seen = self.seen()
        if bool(seen.all()):
            return ""
        share = 1 - float(seen.double().mean())
        note = f"grey with stripes: never seen by the model ({100 * share:.0f} % of the image"
        return f"{note}; fit='squash' or 'pad' shows it all)" if self.axes[0] == "rows" else f"{note})"

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
