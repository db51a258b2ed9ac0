"""The result: raw relevance, scores, and the ways to show them on the original images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from legrad.checks import brief, check_switch, whole_number
from legrad.choices import ImageFormat, Opacity, Scale, Upsampling, check_scale
from legrad.deprecation import other_names, renamed_fields
from legrad.errors import InputError
from legrad.inputs import geometry
from legrad.report.page import html, write_page
from legrad.results.collection import Collection
from legrad.results.drawing import Drawings
from legrad.results.folder import Folder
from legrad.results.page import page_record
from legrad.results.presence import Asker, Present
from legrad.results.regions import Regions
from legrad.results.save import Contents, save_images
from legrad.results.surface import Surface
from legrad.results.view import ImageView, Style

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@renamed_fields(frames="placements", cells="patch_grids", pictures="images")
@dataclass(frozen=True, eq=False)
class Explanation(Collection, Drawings, Regions, Present):
    """Where the model looked, for some images and targets. All tensors are detached and on the CPU.

    Two explanations are equal if they are the same object.

    Attributes:
        relevance: (images, targets, *grid), raw, non-negative, comparable between targets; mean over layers. Of some
            methods other than LeGrad it is signed: negative values speak against the target. The grid is (rows, cols)
            or what ``axes`` says; where images have grids of their own, zeros follow the smaller ones.
        layer_relevance: (images, targets, layers, *grid), or None unless it was asked for.
        layers: ascending indices of the explained blocks; the last one for methods that know no layers.
        scores: (images, targets), the model's own final answer: cosine similarity or logit, a callable's own value; 0
            where a method was asked without targets.
        valid: (images, targets) bool, False where an image has fewer targets than others; zeros there.
        labels: the targets' names, ``labels[image][target]``.
        prompt_independent: (images, targets) bool, True where a map correlates > 0.99 with the mean map of the other
            targets (texts, classes, ...), or with the null target's map.
        placements: where each model input lies in its original image.
        patch_grids: where the patches lie in each model input.
        images: originals (H, W, 3) uint8; videos (frames, H, W, 3), the frames that the model saw; sounds their
            spectrograms (frequency, time, 3), row 0 the lowest frequency. Of many large files the later ones are read
            again when they are shown; a file that changed or is gone by then is an ``InputError``.
        names: paths of the images, or "image 0", ...
        settings: what made this result: model, versions, arguments.
        axes: names of the grid's axes: ("rows", "cols"), ("frames", "rows", "cols") or ("frequency", "time").
        predicted: (images, targets) bool, True where the model chose the class (``PREDICTED``); None for nowhere.
        timings: when the frames of every video, or every sound, are; empty if nothing is known.
        frequencies: the centres of every spectrogram's rows in Hz, lowest first; () where they are not known.
        score_kinds: what the scores are, ``score_kinds[image][target]``, see ``score_kind``; empty if nothing is known.
        answers: the model's own answer, (images, features): embeddings or logits; None where it is not known.
        named: (images, targets) bool, which targets are texts or classes; None where it is not known.
        asker: who can be asked for ``presence``.
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
    images: "Sequence[NDArray[np.uint8]]"
    names: list[str]
    settings: dict[str, Any]
    axes: tuple[str, ...] = ("rows", "cols")
    predicted: Tensor | None = None
    timings: list[geometry.Timing] = field(default_factory=list)
    frequencies: list[tuple[float, ...]] = field(default_factory=list)
    score_kinds: list[list[str]] = field(default_factory=list)
    answers: Tensor | None = None
    named: Tensor | None = None
    asker: Asker = field(default_factory=Asker, repr=False)

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
        return [(*frames, *patch_grid.grid) for patch_grid in self.patch_grids]

    @property
    def seen(self) -> Tensor | list[Tensor]:
        """Which pixels of the originals the model saw: (images, H, W) bool, or a list if the sizes differ."""
        return _stacked([self.view(image).seen() for image in range(len(self.placements))])

    @other_names(normalize="scale")
    def saliency(
        self,
        size: int | Sequence[int] | None = None,
        scale: Scale = "map",
        upsampling: Upsampling = "bilinear",
    ) -> Tensor | list[Tensor]:
        """Relevance on the pixels of the originals.

        >>> explanation = legrad.load("embedded").explain(next(legrad.embedded.scenes(1)).image, ["a cow", "a pig"])
        >>> explanation.saliency().shape, explanation.saliency(size=64).max()
        (torch.Size([1, 2, 192, 192]), tensor(1.))

        Args:
            size: None for the original sizes, else an int or (H, W) that the whole original is resized to.
            scale: "map" stretches every map to [0, 1] over the pixels that the model saw; "shared" uses one minimum
                and maximum per image, so that targets compare; "half" gives every map a zero and a threshold that mean
                something: 0.5 is half of the way from its background (the median) to its peak (the highest 3 %);
                None leaves raw relevance. All of them are monotone: they change no order of the pixels of a map.
                ``normalize`` is another name of this argument.
            upsampling: "bilinear", or "guided": edges of the map go where the image has edges (guided filter, windows
                of one patch to each side). Texture inside an object, things thinner than a patch and things of the
                background's colour mislead it. Raw maps may leave the range of ``relevance`` a little.

        Returns:
            (images, targets, H, W) float, or a list of (targets, H, W) if the originals differ in size; videos have
            their frames in front of H. Pixels that the model never saw are 0, see ``seen``.

        Raises:
            InputError: no such size, scale or upsampling.
        """
        images = range(len(self.placements))
        return _stacked([self.target_maps(image, size, scale, upsampling) for image in images])

    @other_names(normalize="scale")
    def overlay(
        self,
        image: int = 0,
        target: int | str = 0,
        alpha: Opacity = "saliency",
        cmap: str = "inferno",
        scale: Scale = "map",
        frame: int | None = None,
        upsampling: Upsampling = "bilinear",
    ) -> "Image":
        """One target's saliency over its image, over one frame of its video, or over its spectrogram.

        >>> explanation = legrad.load("embedded").explain(next(legrad.embedded.scenes(1)).image, ["a cow", "a pig"])
        >>> explanation.overlay(0, "a cow").size
        (192, 192)

        Args:
            image: index of the image.
            target: index of the target, or its label.
            alpha: opacity of the colours, in [0, 1], such as 0.65; "saliency": it grows with the saliency, so that what
                is not salient keeps its brightness.
            cmap: any matplotlib colour map; "jet" for the authors' look.
            scale: as in ``saliency``; also called ``normalize``.
            frame: index of a video's frame; default the one where the map is strongest.
            upsampling: as in ``saliency``.

        Returns:
            RGB image of the original's size; what the model never saw is grey and hatched. Low frequencies of a
            spectrogram are at the bottom.

        Raises:
            InputError: no such image, target, frame, colour map, scale or upsampling, or ``alpha`` is out of range.
        """
        image, target = self.indices(image, target)
        view, style = self.view(image), Style(alpha, cmap)
        frame = None if frame is None else _whole(frame, "frame")
        check_scale(scale)
        is_stretched = upsampling == "bilinear" and scale != "half"
        if is_stretched and view.is_large and frame is None and self.valid[image, target]:
            surfaces = self.surfaces(image, view, scale)
            return view.large_overlay(surfaces[self.targets_of(image).index(target)], style)
        saliency = self._target_map(image, target, scale, upsampling)
        if frame is not None and not (view.is_video and -len(saliency) <= frame < len(saliency)):
            raise InputError(f"no frame {frame}: image {image} has {len(saliency) if view.is_video else 'no'} frames")
        return view.overlay(saliency, style, frame)

    @other_names(normalize="scale")
    def animation(
        self,
        image: int = 0,
        target: int | str = 0,
        alpha: Opacity = "saliency",
        cmap: str = "inferno",
        scale: Scale = "map",
        upsampling: Upsampling = "bilinear",
    ) -> "list[Image]":
        """The overlays of all frames of a video; arguments as for ``overlay``.

        Normalised over the whole video: a frame without colour matters less than others.

        Returns:
            RGB images of the original's size, one per frame that the model saw.

        Raises:
            InputError: as of ``overlay``, or the image is no video.
        """
        image, target = self.indices(image, target)
        view, style = self.view(image), Style(alpha, cmap)
        if not view.is_video:
            raise InputError(f"only videos have an animation; this explanation's axes are {self.axes}")
        saliency = self._target_map(image, target, scale, upsampling)
        return [view.overlay(saliency, style, frame) for frame in range(len(saliency))]

    def timing(self, image: int = 0) -> geometry.Timing:
        """When the frames of a video, or a sound, are in the original; an empty record where nothing is known.

        Raises:
            InputError: no such image.
        """
        image, _ = self.indices(image, 0)
        return self.timings[image] if self.timings else geometry.Timing()

    def view(self, image: int) -> ImageView:
        """What is needed to draw maps of one image."""
        return ImageView(
            lambda: self.images[image],
            self.placements[image],
            self.patch_grids[image],
            self.axes,
            self.timing(image),
            self.frequencies[image] if self.frequencies else (),
        )

    def targets_of(self, image: int) -> list[int]:
        """Indices of the targets that the image has."""
        return [target for target in range(self.relevance.shape[1]) if self.valid[image, target]]

    def maps_of(self, image: int) -> Tensor:
        """(targets of this image, *grid), padding included."""
        return self.relevance[image, self.valid[image]]

    def surfaces(self, image: int, view: ImageView, scale: Scale = "map") -> Surface:
        """What ``saliency`` gives of the targets that the image has, for some rows at a time.

        Raises:
            InputError: there is no such scale.
        """
        check_scale(scale)
        return view.surface(self.maps_of(image), None, scale)

    def target_maps(
        self, image: int, size: int | Sequence[int] | None, scale: Scale, upsampling: Upsampling = "bilinear"
    ) -> Tensor:
        """(targets, H, W) of one image; targets that it does not have take no part in the scale."""
        valid = self.valid[image]
        maps = self.view(image).saliency(self.maps_of(image), size, scale, upsampling)
        if bool(valid.all()):
            return maps
        result = maps.new_zeros(len(valid), *maps.shape[1:])
        result[valid] = maps
        return result

    def _target_map(self, image: int, target: int, scale: Scale, upsampling: Upsampling) -> Tensor:
        """(H, W) of one target; all of them are laid on the pixels only where they share their range."""
        if not self.valid[image, target] or (isinstance(scale, str) and scale == "shared"):
            return self.target_maps(image, None, scale, upsampling)[target]
        return self.view(image).saliency(self.relevance[image, [target]], None, scale, upsampling)[0]

    def layers_of(self, image: int, target: int) -> Tensor:
        """(layers, *grid) of one target; raises ``InputError`` if they were not kept."""
        self._check_layers()
        assert self.layer_relevance is not None
        return self.layer_relevance[image, target]

    def _check_layers(self) -> None:
        if self.layer_relevance is None:
            raise InputError("per-layer maps were not kept; call explain(..., keep_layers=True)")

    def index_of(self, image: int) -> int:
        """The index of an image, which may count from the end, from 0 on; raises ``InputError`` if there is none."""
        return self.indices(image, 0)[0]

    def indices(self, image: int, target: int | str) -> tuple[int, int]:
        """The indices of an image and of a target, given as such or by its label, from 0 on."""
        images, targets = self.relevance.shape[:2]
        image = _whole(image, "image")
        if isinstance(target, str) and -images <= image < images:
            labels = [self.labels[image][index] for index in self.targets_of(image)]
            if target not in labels:
                raise InputError(f"image {image} has no target {target!r}, only {', '.join(map(repr, labels))}")
            return image % images, self.labels[image].index(target)
        index = 0 if isinstance(target, str) else _whole(target, "target, unless it is a label,")
        if not (-images <= image < images and -targets <= index < targets):
            raise InputError(f"no image {image}, target {target}: there are {images} images and {targets} targets")
        return image % images, index % targets

    def to_html(
        self, path: "str | os.PathLike[str] | None" = None, cmap: str = "inferno", alpha: float = 0.8
    ) -> "str | Path":
        """One HTML file that shows all maps: prompts, layers and opacity to choose, values under the pointer.

        It needs no network and holds no script but its own; images are reduced to 768 pixels.

        Args:
            path: where to write it, atomically; None returns the text.
            cmap: matplotlib colour map.
            alpha: opacity of the colours at first, in [0, 1].

        Returns:
            The text, or the file's path.

        Raises:
            InputError: an argument that cannot be used, or a file that is there already and not ours.
        """
        style = Style(alpha, cmap)
        if isinstance(style.alpha, str):
            raise InputError(f"alpha of a page is a number in [0, 1], got {alpha!r}")
        text = html(page_record(self, range(len(self.names)), style.cmap, style.alpha))
        if path is None:
            return text
        write_page(Path(path), text)
        return Path(path)

    @other_names(normalize="scale")
    def save(
        self,
        folder: str | os.PathLike[str] | Folder,
        per_layer: bool = False,
        cmap: str = "inferno",
        alpha: Opacity = "saliency",
        format: ImageFormat = "png",
        figures: bool = True,
        overlays: bool = True,
        arrays: bool = True,
        scale: Scale = "map",
    ) -> list[Path]:
        """Write overlays, figures, raw arrays (npz) and a manifest (JSON) into a folder; every file atomically.

        >>> explanation = legrad.load("embedded").explain(next(legrad.embedded.scenes(1)).image, ["a cow", "a pig"])
        >>> [path.name for path in explanation.save("out")]
        ['image-0.png', 'image-0.npz', 'image-0--a-cow.png', 'image-0--a-pig.png', 'manifest.json']

        Videos get an animated GIF for every target too.

        Args:
            folder: made if missing. Earlier results for images of the same names are replaced, once the new ones are
                complete; other results stay in the manifest. Files that we did not write are never touched: a name
                that is taken gets a number. An open ``Folder`` collects several explanations under one manifest.
            per_layer: add a figure per target with all layers; needs ``keep_layers=True``.
            cmap, alpha, scale: as for ``overlay``.
            format: of overlays and figures: "png", or "jpg" or "webp", which take a fifth of the
                bytes for photographs.
            figures, overlays, arrays: what is written: the figures with all targets, the overlays of single ones (and
                animations), the npz files.

        Returns:
            The files, manifest last.

        Raises:
            InputError: the folder cannot be written, another run writes into it, layers were not kept, there is no
                such colour map, opacity or format, or an image is too large for the format.
        """
        if check_switch("per_layer", per_layer):
            self._check_layers()
        contents = Contents(
            format,
            check_switch("figures", figures),
            check_switch("overlays", overlays),
            check_switch("arrays", arrays),
            per_layer,
            scale,
        )
        style = Style(alpha, cmap)
        destination = folder if isinstance(folder, Folder) else Folder(folder)
        with destination:
            start = len(destination.files)
            save_images(self, destination, range(len(self.names)), style, contents)
        return [*destination.files[start:], destination.manifest]


def _whole(value: Any, what: str) -> int:
    number = whole_number(value)
    if number is None:
        raise InputError(f"{what} is a whole number, got {brief(value)}")
    return number


def _stacked(maps: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor where the sizes allow it."""
    if len(maps) == 1:  # without a copy
        return maps[0][None]
    return torch.stack(maps) if len({image_maps.shape for image_maps in maps}) == 1 else maps
