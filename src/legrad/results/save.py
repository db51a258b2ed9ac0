"""An explanation -> its files in a folder, and what the manifest says about them."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from legrad import stages, viz
from legrad.choices import IMAGE_FORMATS, UPSAMPLINGS, ImageFormat, Scale, Upsampling, check_choice, check_scale
from legrad.inputs.ahead import read_ahead
from legrad.names import slug
from legrad.results.archive import arrays_of, packed
from legrad.results.folder import Folder
from legrad.results.surface import Surface
from legrad.results.view import IN_FILES, ImageView, Style

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

_DEFAULT_FRAME_SECONDS = 0.2  # of an animation, where the video's duration is not known
_DRAWN_BYTES = 1 << 30  # of overlays that are drawn at the same time


@dataclass(frozen=True)
class Contents:
    """Which files are written of an image, and how.

    Attributes:
        format: of overlays and figures.
        figures: all targets side by side.
        overlays: one image per target, and a video's animation.
        arrays: raw relevance and scores.
        per_layer: a figure per target with all layers.
        scale, upsampling: of overlays and figures, see ``Explanation.saliency``.
    """

    format: ImageFormat = "png"
    figures: bool = True
    overlays: bool = True
    arrays: bool = True
    per_layer: bool = False
    scale: Scale = "map"
    upsampling: Upsampling = "bilinear"

    def __post_init__(self) -> None:
        check_choice("format", self.format, IMAGE_FORMATS)
        check_scale(self.scale)
        check_choice("upsampling", self.upsampling, UPSAMPLINGS)


def save_images(
    explanation: "Explanation",
    folder: Folder,
    images: Iterable[int],
    style: Style,
    contents: Contents,
    sub_folder: str = "",
    run: Mapping[str, Any] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write some images of an explanation, one after the other; see ``Explanation.save``.

    Args:
        explanation, folder, images, style, contents: what, where and how.
        sub_folder: for the files, with "/" between its parts.
        run: further facts of the run, ready for JSON.
        note: further keys of the images' entries.
    """
    facts = {
        "settings": explanation.settings,
        "axes": ["targets", *explanation.axes],
        "layer_axes": ["targets", "layers", *explanation.axes],
        "style": {"scale": contents.scale, "alpha": style.alpha, "cmap": style.cmap},
        **(run or {}),
    }
    for image in images:
        stages.tell("drawing")
        folder.add([_save_image(explanation, folder, image, style, contents, sub_folder) | dict(note or {})], facts)


def _save_image(
    explanation: "Explanation", folder: Folder, image: int, style: Style, contents: Contents, sub_folder: str
) -> dict[str, Any]:
    """The files of one image, and its entry of the manifest; threads make the overlays meanwhile."""
    figure = None
    targets = explanation.targets_of(image)
    if not (contents.figures or contents.overlays):
        no_files: Iterator[dict[str, bytes]] = iter([{} for _ in targets])
        return _save_files(explanation, folder, image, figure, no_files, style, contents, sub_folder)
    view = explanation.view(image)
    small = view.reduced(IN_FILES)
    how = contents.scale, contents.upsampling
    saliency = small.saliency(explanation.maps_of(image), None, *how)
    jobs: list[Callable[[], dict[str, bytes]]] = [dict for _ in targets]
    if contents.overlays and (small is view or how[0] == "half" or how[1] == "guided"):
        # every map is laid on its pixels once
        maps = saliency if small is view else explanation.target_maps(image, None, *how)[targets]
        jobs = [functools.partial(_map_files, view, values, style, contents.format) for values in maps]
    elif contents.overlays:
        surfaces = explanation.surfaces(image, view, contents.scale)
        jobs = [
            functools.partial(_large_map_files, view, surfaces[index], style, contents.format)
            for index in range(len(targets))
        ]
    # a thread that draws holds an image, twice in Pillow's hands, and its file
    threads = max(1, min(os.cpu_count() or 1, _DRAWN_BYTES // (3 * view.pixels.nbytes)))
    with contextlib.closing(read_ahead([dict, *jobs], threads, 2 * threads)) as files_of_maps:
        next(files_of_maps)  # begins with the others
        if contents.figures:
            figure = viz.encoded(explanation.figure_of(image, small, saliency, style, contents.scale), contents.format)
        return _save_files(explanation, folder, image, figure, files_of_maps, style, contents, sub_folder)


def _save_files(
    explanation: "Explanation",
    folder: Folder,
    image: int,
    figure: bytes | None,
    files_of_maps: Iterator[dict[str, bytes]],
    style: Style,
    contents: Contents,
    sub_folder: str,
) -> dict[str, Any]:
    """Write what was drawn of one image; returns its entry of the manifest."""
    name, targets, ending = explanation.names[image], explanation.targets_of(image), f".{contents.format}"
    stem = folder.stem(name, folder.sub_folder(sub_folder) + slug(Path(name).stem))
    entry: dict[str, Any] = {"image": name, "size": list(explanation.placements[image].original)}
    if figure is not None:
        entry["figure"] = folder.write(folder.name(stem, ending, f"{stem}--figure"), figure)
    if contents.arrays:
        entry["arrays"] = folder.write(folder.name(stem, ".npz"), packed(explanation, image))
        entry["shapes"] = {name: list(value.shape) for name, value in arrays_of(explanation, image).items()}
    entry["targets"] = []
    timing = explanation.timing(image)
    if timing.frames:
        entry["frames"], entry["seconds"] = list(timing.frames), list(timing.seconds)
    if timing.duration is not None:
        entry["duration"] = timing.duration
    for number, (target, files) in enumerate(zip(targets, files_of_maps, strict=True), 1):
        target_label = explanation.labels[image][target]
        record: dict[str, Any] = {
            # as figures name a target whose letters are in no font
            "number": number,
            "target": target_label,
            "score": float(explanation.scores[image, target]),
            "score_kind": explanation.score_kind(image, target),
            "predicted": explanation.predicted is not None and bool(explanation.predicted[image, target]),
            "prompt_independent": bool(explanation.prompt_independent[image, target]),
        }
        label = f"{stem}--{slug(target_label)}"
        endings = {"overlay": ending, "animation": ".gif"}
        record |= {what: folder.write(folder.name(label, endings[what]), data) for what, data in files.items()}
        if contents.per_layer:
            layers_figure = explanation.layer_figure(image, target, style.cmap, style.alpha, contents.scale)
            layers = viz.encoded(layers_figure, contents.format)
            record["layers_figure"] = folder.write(folder.name(f"{label}--layers", ending), layers)
        entry["targets"].append(record)
    return entry


def _large_map_files(view: ImageView, surface: Surface, style: Style, format: ImageFormat) -> dict[str, bytes]:
    """The overlay of one target over a large image."""
    return {"overlay": viz.encoded(view.large_overlay(surface, style), format)}


def _map_files(view: ImageView, saliency: Tensor, style: Style, format: ImageFormat) -> dict[str, bytes]:
    """The overlay of one target, and a video's animation: kind of file -> its bytes."""
    files = {"overlay": viz.encoded(view.overlay(saliency, style), format)}
    if view.is_video:
        frames = [view.overlay(saliency, style, frame) for frame in range(len(saliency))]
        duration = view.timing.duration
        seconds = _DEFAULT_FRAME_SECONDS if duration is None else min(max(duration / len(frames), 0.02), 2)
        files["animation"] = viz.gif(frames, seconds)
    return files
