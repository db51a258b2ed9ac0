"""The result: raw relevance, scores, and the ways to show them on the original images."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from legrad import relevance, viz
from legrad.deprecation import renamed_fields
from legrad.errors import InputError
from legrad.inputs import geometry
from legrad.results.folder import Folder, slug, unused

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NORMALIZATIONS = ("map", "shared", None)
_STRIP = 8  # frames of a film strip
_FLAT = 1e-6  # a spread this small, relative to the largest value, is rounding


@renamed_fields(frames="placements", cells="patch_grids", pictures="images")
@dataclass(frozen=True)
class Explanation:
    """Where the model looked, for some images and targets. All tensors are detached and on the CPU.

    Attributes:
        relevance: (images, targets, *grid), raw, non-negative, comparable between targets; mean over layers. Of some
            methods other than LeGrad it is signed: negative values speak against the target. The grid is (rows, cols)
            or what ``axes`` says; where images have grids of their own, zeros follow the smaller ones.
        layer_relevance: (images, targets, layers, *grid), or None unless it was asked for.
        layers: ascending indices of the explained blocks; the last one for methods that know no layers.
        scores: (images, targets), the model's own final answer: cosine similarity or logit.
        valid: (images, targets) bool, False where an image has fewer targets than others; zeros there.
        labels: the targets' names, ``labels[image][target]``.
        prompt_independent: (images, targets) bool, True where a map hardly depends on the target.
        placements: where each model input lies in its original image.
        patch_grids: where the patches lie in each model input.
        images: originals (H, W, 3) uint8; videos (frames, H, W, 3), the frames that the model saw; sounds their
            spectrograms (frequency, time, 3), row 0 the lowest frequency.
        names: paths of the images, or "image 0", ...
        settings: what made this result: model, versions, arguments.
        axes: names of the grid's axes: ("rows", "cols"), ("frames", "rows", "cols") or ("frequency", "time").
        predicted: (images, targets) bool, True where the model chose the class (``PREDICTED``); None for nowhere.
        timings: when the frames of every video, or every sound, are; empty if nothing is known.
        frequencies: the centres of every spectrogram's rows in Hz, lowest first; () where they are not known.
        grids: the grid of every image.
    """

    relevance: Tensor
    layer_relevance: Tensor | None
    layers: tuple[int, ...]
    scores: Tensor
    valid: Tensor
    labels: list[list[str]]
    prompt_independent: Tensor
    placements: list[geometry.Placement]
    patch_grids: list[geometry.PatchGrid]
    images: list[Any]
    names: list[str]
    settings: dict[str, Any]
    axes: tuple[str, ...] = ("rows", "cols")
    predicted: Tensor | None = None
    timings: list[geometry.Timing] = field(default_factory=list)
    frequencies: list[tuple[float, ...]] = field(default_factory=list)

    def __repr__(self) -> str:
        images, targets, *grid = self.relevance.shape
        return (
            f"Explanation({images} images x {targets} targets, grid {' x '.join(map(str, grid))}, "
            f"layers {list(self.layers)}, {self.settings.get('model')})"
        )

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """The grid of every image, named by ``axes``."""
        frames = tuple(self.relevance.shape[2:-2])
        return [(*frames, *one.grid) for one in self.patch_grids]

    @property
    def seen(self) -> Tensor | list[Tensor]:
        """Which pixels of the originals the model saw: (images, H, W) bool, or a list if the sizes differ."""
        return _stacked([self._seen(image, None) for image in range(len(self.placements))])

    def saliency(self, size: int | Sequence[int] | None = None, normalize: str | None = "map") -> Tensor | list[Tensor]:
        """Relevance on the pixels of the originals.

        Args:
            size: None for the original sizes, else an int or (H, W) that the whole original is resized to.
            normalize: "map" stretches every map to [0, 1] over the pixels that the model saw; "shared" uses one minimum
                and maximum per image, so that targets compare; None leaves raw relevance.

        Returns:
            (images, targets, H, W) float, or a list of (targets, H, W) if the originals differ in size; videos have
            their frames in front of H. Pixels that the model never saw are 0, see ``seen``.
        """
        return _stacked([self._of_targets(image, size, normalize) for image in range(len(self.placements))])

    def _of_targets(self, image: int, size: int | Sequence[int] | None, normalize: str | None) -> Tensor:
        """(targets, H, W) of one image; targets that it does not have take no part in the normalisation."""
        if normalize not in NORMALIZATIONS:
            raise InputError(f"normalize is one of {NORMALIZATIONS}, got {normalize!r}")
        valid = self.valid[image]
        maps = self._saliency(image, self.relevance[image, valid], size, normalize)
        result = maps.new_zeros(len(valid), *maps.shape[1:])
        result[valid] = maps
        return result

    def _size(self, image: int, size: int | Sequence[int] | None) -> geometry.Size:
        return self.placements[image].original if size is None else geometry.as_size(size)

    def _seen(self, image: int, size: int | Sequence[int] | None) -> Tensor:
        return geometry.seen(self.placements[image], self.patch_grids[image], self._size(image, size))

    def _saliency(self, image: int, maps: Tensor, size: int | Sequence[int] | None, normalize: str | None) -> Tensor:
        """Maps (..., *grid) of one image -> (..., H, W), or (..., frames, H, W)."""
        rows, cols = self.patch_grids[image].grid
        maps = maps[..., :rows, :cols]
        if self._video:
            maps = geometry.along_time(maps, len(self.images[image]))
        placed = geometry.place(maps, self.placements[image], self.patch_grids[image], self._size(image, size))
        seen = self._seen(image, size)
        if normalize is not None and bool(seen.any()) and placed.numel():
            inside = placed[..., seen]
            dims = 1 + self._video if normalize == "map" else inside.ndim
            over = tuple(range(-dims, 0))
            high, low = inside.amax(over, keepdim=True), inside.amin(over, keepdim=True)
            # interpolating a flat map leaves rounding errors, which would be stretched to an image
            inside = inside.masked_fill(high - low <= _FLAT * high.abs(), 0)
            placed = torch.zeros_like(placed)
            placed[..., seen] = relevance.min_max(inside, dims)
        return placed * seen

    def overlay(
        self,
        image: int = 0,
        target: int | str = 0,
        alpha: float = 0.65,
        cmap: str = "inferno",
        normalize: str | None = "map",
        frame: int | None = None,
    ) -> "Image":
        """One target's saliency over its image, over one frame of its video, or over its spectrogram.

        Args:
            image: index of the image.
            target: index of the target, or its label.
            alpha: opacity of the colours, in [0, 1].
            cmap: any matplotlib colour map; "jet" for the authors' look.
            normalize: as in ``saliency``.
            frame: index of a video's frame; default the one where the map is strongest.

        Returns:
            RGB image of the original's size; what the model never saw is grey and hatched. Low frequencies of a
            spectrogram are at the bottom.
        """
        target = self._index(image, target)
        saliency = self._of_targets(image, None, normalize)[target]
        if frame is not None and not (self._video and -len(saliency) <= frame < len(saliency)):
            raise InputError(f"no frame {frame}: image {image} has {len(saliency) if self._video else 'no'} frames")
        return self._drawn(image, saliency, alpha, cmap, frame)

    def animation(
        self,
        image: int = 0,
        target: int | str = 0,
        alpha: float = 0.65,
        cmap: str = "inferno",
        normalize: str | None = "map",
    ) -> "list[Image]":
        """The overlays of all frames of a video; arguments as for ``overlay``.

        Normalised over the whole video: a frame without colour matters less than others.
        """
        target = self._index(image, target)
        if not self._video:
            raise InputError(f"only videos have an animation; this explanation's axes are {self.axes}")
        saliency = self._of_targets(image, None, normalize)[target]
        return [self._drawn(image, saliency, alpha, cmap, frame) for frame in range(len(saliency))]

    def figure(self, image: int = 0, cmap: str = "inferno", alpha: float = 0.65) -> "Figure":
        """The original and the overlays of all targets side by side, with scores and a colour bar.

        Of a video a film strip for every target.
        """
        self._index(image, 0)
        shown = [t for t in range(self.relevance.shape[1]) if self.valid[image, t]]
        titles = [f"{self.labels[image][t]}\n{self.scores[image, t]:.3f}" for t in shown]
        maps = self._of_targets(image, None, "map")[shown]
        return self._figure(image, maps, titles, Path(self.names[image]).name, cmap, alpha)

    def layer_figure(
        self, image: int = 0, target: int | str = 0, cmap: str = "inferno", alpha: float = 0.65
    ) -> "Figure":
        """One target's overlay for every layer; needs ``keep_layers=True``."""
        target = self._index(image, target)
        if self.layer_relevance is None:
            raise InputError("per-layer maps were not kept; call explain(..., keep_layers=True)")
        maps = self._saliency(image, self.layer_relevance[image, target], None, "map")
        titles = [f"layer {layer}" for layer in self.layers]
        name = f"{Path(self.names[image]).name}\n{self.labels[image][target]}"
        return self._figure(image, maps, titles, name, cmap, alpha, "each layer is scaled by itself")

    @property
    def _video(self) -> bool:
        return self.axes[0] == "frames"

    def _drawn(self, image: int, saliency: Tensor, alpha: float, cmap: str, frame: int | None = None) -> "Image":
        """One map of an image, (H, W) or (frames, H, W), as an overlay."""
        pixels = self.images[image]
        if self._video:
            frame = int(saliency.flatten(1).amax(1).argmax()) if frame is None else frame
            pixels, saliency = pixels[frame], saliency[frame]
        shown = viz.overlay(pixels, saliency.numpy(), self._seen(image, None).numpy(), alpha=alpha, cmap=cmap)
        return viz.upside_down(shown) if self.axes[0] == "frequency" else shown

    def timing(self, image: int = 0) -> geometry.Timing:
        """When the frames of a video, or a sound, are in the original."""
        return self.timings[image] if self.timings else geometry.Timing()

    def _moment(self, image: int, frame: int) -> str:
        """The caption of a frame that the model saw: its place in the original video."""
        timing = self.timing(image)
        own = f"frame {timing.frames[frame] if timing.frames else frame}"
        return f"{own}, {timing.seconds[frame]:.2f} s" if timing.seconds else own

    def _figure(
        self, image: int, maps: Tensor, titles: list[str], name: str, cmap: str, alpha: float, note: str = ""
    ) -> "Figure":
        """The original next to maps (n, H, W), or film strips of (n, frames, H, W)."""
        pixels = self.images[image]
        unseen = "" if bool(self._seen(image, None).all()) else "grey with stripes: never seen by the model"
        note = "; ".join(filter(None, (note, unseen)))
        if self._video:
            count = min(_STRIP, len(pixels))
            frames = [int((i + 0.5) * len(pixels) / count) for i in range(count)]
            rows = [[self._drawn(image, one, alpha, cmap, frame) for frame in frames] for one in maps]
            labels = [self._moment(image, frame) for frame in frames]
            return viz.film([list(pixels[frames]), *rows], [name, *titles], labels, cmap, note)
        panels = [self._drawn(image, one, alpha, cmap) for one in maps]
        if self.axes[0] == "frequency":
            axes = self._spectrogram_axes(image)
            return viz.figure(pixels[::-1], panels, titles, cmap, name, columns=2, axes=axes, note=note)
        return viz.figure(pixels, panels, titles, cmap, name, note=note)

    def _spectrogram_axes(self, image: int) -> tuple[viz.Axis, viz.Axis]:
        """Seconds and Hz where they are known, else columns and rows of the spectrogram."""
        timing, (bins, steps) = self.timing(image), self.images[image].shape[:2]
        time = viz.Axis("time (spectrogram frames)", steps)
        if timing.duration is not None:
            time = viz.Axis("time (seconds)", timing.duration, start=timing.start)
        centres = self.frequencies[image] if self.frequencies else ()
        if not centres:
            return time, viz.Axis("frequency (mel bins)", bins)
        return time, viz.Axis("frequency (Hz)", bins, viz.uneven_ticks(centres))

    def _index(self, image: int, target: int | str) -> int:
        """The index of a target, given as such or by its label."""
        images, targets = self.relevance.shape[:2]
        if not -images <= image < images:
            raise InputError(f"no image {image}, target {target}: there are {images} images and {targets} targets")
        if isinstance(target, str):
            known = [label for label, there in zip(self.labels[image], self.valid[image], strict=True) if there]
            if target not in known:
                raise InputError(f"image {image} has no target {target!r}, only {', '.join(map(repr, known))}")
            return self.labels[image].index(target)
        if not -targets <= target < targets:
            raise InputError(f"no image {image}, target {target}: there are {images} images and {targets} targets")
        return target

    def _repr_png_(self) -> bytes:
        return viz.png(self.figure(0))

    def save(
        self,
        folder: str | os.PathLike[str] | Folder,
        per_layer: bool = False,
        cmap: str = "inferno",
        alpha: float = 0.65,
    ) -> list[Path]:
        """Write overlays, figures, raw arrays (npz) and a manifest (JSON) into a folder; every file atomically.

        Videos get an animated GIF for every target too.

        Args:
            folder: made if missing; files of the same names are replaced. An open ``results.folder.Folder`` collects
                several explanations.
            per_layer: add a figure per target with all layers; needs ``keep_layers=True``.
            cmap: matplotlib colour map.
            alpha: opacity of the overlays, in [0, 1].

        Returns:
            All files of the folder so far, manifest last.

        Raises:
            InputError: per-layer maps that were not kept, or a file that cannot be written.
        """
        target = folder if isinstance(folder, Folder) else Folder(folder)
        if per_layer and self.layer_relevance is None:
            raise InputError("per-layer maps were not kept; call explain(..., keep_layers=True)")
        style = _Style(cmap, alpha, per_layer)
        entries = [self._write_image(target, image, style) for image in range(len(self.names))]
        facts = {
            "settings": self.settings,
            "axes": ["targets", *self.axes],
            "layer_axes": ["targets", "layers", *self.axes],
        }
        target.add(entries, facts)
        return [*target.files, target.manifest]

    def _write_image(self, folder: Folder, image: int, style: "_Style") -> dict[str, Any]:
        """All files of one image -> its entry in the manifest."""
        stem = folder.stem(Path(self.names[image]).stem)
        targets = [target for target, valid in enumerate(self.valid[image]) if valid]
        arrays = {"relevance": self.relevance[image, targets], "scores": self.scores[image, targets]}
        if self.layer_relevance is not None:
            arrays["layer_relevance"] = self.layer_relevance[image, targets]
        buffer = io.BytesIO()
        numbers: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
        np.savez_compressed(buffer, **numbers)
        entry: dict[str, Any] = {
            "image": self.names[image],
            "size": list(self.placements[image].original),
            "figure": folder.write(f"{stem}.png", viz.png(self.figure(image, style.cmap, style.alpha))),
            "arrays": folder.write(f"{stem}.npz", buffer.getvalue()),
            "shapes": {name: list(value.shape) for name, value in arrays.items()},
            "targets": [],
        }
        timing = self.timing(image)
        if timing.frames:
            entry["frames"], entry["seconds"] = list(timing.frames), list(timing.seconds)
        if timing.duration is not None:
            entry["duration"] = timing.duration
        slugs: set[str] = set()
        for target in targets:
            name = f"{stem}--{unused(slug(self.labels[image][target]), slugs)}"
            entry["targets"].append(self._write_target(folder, image, target, name, style))
        return entry

    def _write_target(self, folder: Folder, image: int, target: int, name: str, style: "_Style") -> dict[str, Any]:
        """All files of one target -> its record in the image's entry."""
        overlay = self.overlay(image, target, style.alpha, style.cmap)
        record: dict[str, Any] = {
            "target": self.labels[image][target],
            "score": float(self.scores[image, target]),
            "predicted": self.predicted is not None and bool(self.predicted[image, target]),
            "prompt_independent": bool(self.prompt_independent[image, target]),
            "overlay": folder.write(f"{name}.png", viz.png(overlay)),
        }
        if self.axes[0] == "frames":
            frames = self.animation(image, target, style.alpha, style.cmap)
            duration = self.timing(image).duration
            seconds = 0.2 if duration is None else min(max(duration / len(frames), 0.02), 2)
            record["animation"] = folder.write(f"{name}.gif", viz.gif(frames, seconds))
        if style.per_layer:
            layers = self.layer_figure(image, target, style.cmap, style.alpha)
            record["layers_figure"] = folder.write(f"{name}--layers.png", viz.png(layers))
        return record


@dataclass(frozen=True)
class _Style:
    """How saved overlays look, and whether layers are drawn."""

    cmap: str
    alpha: float
    per_layer: bool


def _stacked(maps: list[Tensor]) -> Tensor | list[Tensor]:
    return torch.stack(maps) if len({one.shape for one in maps}) == 1 else maps
