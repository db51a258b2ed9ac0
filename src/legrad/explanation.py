"""The result: raw relevance, scores, and the ways to show them on the original pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from legrad import geometry, relevance, viz
from legrad.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NORMALIZATIONS = ("map", "shared", None)
_FLAT = 1e-6  # a spread this small, relative to the largest value, is rounding


@dataclass(frozen=True)
class Explanation:
    """Where the model looked, for some pictures and targets. All tensors are detached and on the CPU.

    Attributes:
        relevance: (images, targets, *grid), raw, non-negative, comparable between targets; mean over layers. The grid
            is (rows, cols) or what ``axes`` says; where pictures have grids of their own, zeros follow the smaller ones.
        layer_relevance: (images, targets, layers, *grid), or None unless it was asked for.
        layers: ascending indices of the explained blocks.
        scores: (images, targets), the model's own final answer: cosine similarity or logit.
        valid: (images, targets) bool, False where a picture has fewer targets than others; zeros there.
        labels: the targets' names, ``labels[image][target]``.
        prompt_independent: (images, targets) bool, True where a map hardly depends on the target.
        frames: where each model input lies in its original picture.
        cells: where the patches lie in each model input.
        pictures: originals (H, W, 3) uint8; videos (frames, H, W, 3).
        names: paths of the pictures, or "image 0", ...
        settings: what made this result: model, versions, arguments.
        axes: names of the grid's axes: ("rows", "cols"), ("frames", "rows", "cols") or ("frequency", "time").
        grids: the grid of every picture.
    """

    relevance: Tensor
    layer_relevance: Tensor | None
    layers: tuple[int, ...]
    scores: Tensor
    valid: Tensor
    labels: list[list[str]]
    prompt_independent: Tensor
    frames: list[geometry.Frame]
    cells: list[geometry.Cells]
    pictures: list[Any]
    names: list[str]
    settings: dict[str, Any]
    axes: tuple[str, ...] = ("rows", "cols")

    def __repr__(self) -> str:
        images, targets, *grid = self.relevance.shape
        return (
            f"Explanation({images} images x {targets} targets, grid {' x '.join(map(str, grid))}, "
            f"layers {list(self.layers)}, {self.settings.get('model')})"
        )

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """The grid of every picture, named by ``axes``."""
        frames = tuple(self.relevance.shape[2:-2])
        return [(*frames, *one.grid) for one in self.cells]

    @property
    def seen(self) -> Tensor | list[Tensor]:
        """Which pixels of the originals the model saw: (images, H, W) bool, or a list if the sizes differ."""
        return _stacked([self._seen(image, None) for image in range(len(self.frames))])

    def saliency(self, size: int | Sequence[int] | None = None, normalize: str | None = "map") -> Tensor | list[Tensor]:
        """Relevance on the pixels of the originals.

        Args:
            size: None for the original sizes, else an int or (H, W) that the whole original is resized to.
            normalize: "map" stretches every map to [0, 1] over the pixels that the model saw; "shared" uses one minimum
                and maximum per picture, so that targets compare; None leaves raw relevance.

        Returns:
            (images, targets, H, W) float, or a list of (targets, H, W) if the originals differ in size; videos have
            their frames in front of H. Pixels that the model never saw are 0, see ``seen``.
        """
        return _stacked([self._of_targets(image, size, normalize) for image in range(len(self.frames))])

    def _of_targets(self, image: int, size: int | Sequence[int] | None, normalize: str | None) -> Tensor:
        """(targets, H, W) of one picture; targets that it does not have take no part in the normalisation."""
        if normalize not in NORMALIZATIONS:
            raise InputError(f"normalize is one of {NORMALIZATIONS}, got {normalize!r}")
        valid = self.valid[image]
        maps = self._saliency(image, self.relevance[image, valid], size, normalize)
        result = maps.new_zeros(len(valid), *maps.shape[1:])
        result[valid] = maps
        return result

    def _size(self, image: int, size: int | Sequence[int] | None) -> geometry.Size:
        return self.frames[image].original if size is None else geometry.as_size(size)

    def _seen(self, image: int, size: int | Sequence[int] | None) -> Tensor:
        return geometry.seen(self.frames[image], self.cells[image], self._size(image, size))

    def _saliency(self, image: int, maps: Tensor, size: int | Sequence[int] | None, normalize: str | None) -> Tensor:
        """Maps (..., *grid) of one picture -> (..., H, W), or (..., frames, H, W)."""
        rows, cols = self.cells[image].grid
        maps = maps[..., :rows, :cols]
        video = len(self.axes) == 3
        if video:
            maps = geometry.along_time(maps, len(self.pictures[image]))
        placed = geometry.place(maps, self.frames[image], self.cells[image], self._size(image, size))
        seen = self._seen(image, size)
        if normalize is not None and bool(seen.any()) and placed.numel():
            inside = placed[..., seen]
            dims = 1 + video if normalize == "map" else inside.ndim
            over = tuple(range(-dims, 0))
            high, low = inside.amax(over, keepdim=True), inside.amin(over, keepdim=True)
            # interpolating a flat map leaves rounding errors, which would be stretched to a picture
            inside = inside.masked_fill(high - low <= _FLAT * high.abs(), 0)
            placed = torch.zeros_like(placed)
            placed[..., seen] = relevance.min_max(inside, dims)
        return placed * seen

    def overlay(
        self,
        image: int = 0,
        target: int = 0,
        alpha: float = 0.65,
        cmap: str = "inferno",
        normalize: str | None = "map",
    ) -> "Image":
        """One target's saliency over its picture.

        Args:
            image: index of the picture.
            target: index of the target.
            alpha: opacity of the colours, in [0, 1].
            cmap: any matplotlib colour map; "jet" for the authors' look.
            normalize: as in ``saliency``.

        Returns:
            RGB picture of the original's size; what the model never saw is grey and hatched.
        """
        self._check_index(image, target)
        saliency = self._of_targets(image, None, normalize)[target]
        return viz.overlay(
            self.pictures[image], saliency.numpy(), self._seen(image, None).numpy(), alpha=alpha, cmap=cmap
        )

    def figure(self, image: int = 0, cmap: str = "inferno", alpha: float = 0.65) -> "Figure":
        """The original and the overlays of all targets side by side, with scores and a colour bar."""
        self._check_index(image, 0)
        shown = [t for t in range(self.relevance.shape[1]) if self.valid[image, t]]
        titles = [f"{self.labels[image][t]}\n{self.scores[image, t]:.3f}" for t in shown]
        panels = [self.overlay(image, t, alpha, cmap) for t in shown]
        return viz.figure(self.pictures[image], panels, titles, cmap=cmap, name=Path(self.names[image]).name)

    def layer_figure(self, image: int = 0, target: int = 0, cmap: str = "inferno", alpha: float = 0.65) -> "Figure":
        """One target's overlay for every layer; needs ``keep_layers=True``."""
        self._check_index(image, target)
        if self.layer_relevance is None:
            raise InputError("per-layer maps were not kept; call explain(..., keep_layers=True)")
        maps = self._saliency(image, self.layer_relevance[image, target], None, "map").numpy()
        seen = self._seen(image, None).numpy()
        panels = [viz.overlay(self.pictures[image], layer, seen, alpha=alpha, cmap=cmap) for layer in maps]
        titles = [f"layer {layer}" for layer in self.layers]
        return viz.figure(
            self.pictures[image], panels, titles, cmap=cmap, name=f"{self.labels[image][target]}, per layer"
        )

    def _check_index(self, image: int, target: int) -> None:
        images, targets = self.relevance.shape[:2]
        if not -images <= image < images or not -targets <= target < targets:
            raise InputError(f"no image {image}, target {target}: there are {images} images and {targets} targets")

    def _repr_png_(self) -> bytes:
        return viz.png(self.figure(0))

    def save(
        self, folder: str | os.PathLike[str], per_layer: bool = False, cmap: str = "inferno", alpha: float = 0.65
    ) -> list[Path]:
        """Write overlays, figures, raw arrays (npz) and a manifest (JSON) into a folder; every file atomically.

        Args:
            folder: made if missing; files of the same names are replaced.
            per_layer: add a figure per target with all layers; needs ``keep_layers=True``.
            cmap: matplotlib colour map.
            alpha: opacity of the overlays, in [0, 1].

        Returns:
            The files, manifest last.
        """
        from legrad.saving import Folder

        target = Folder(folder, per_layer, cmap, alpha)
        target.add(self)
        return [*target.files, target.manifest]


def _stacked(maps: list[Tensor]) -> Tensor | list[Tensor]:
    return torch.stack(maps) if len({one.shape for one in maps}) == 1 else maps
