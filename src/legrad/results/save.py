"""An explanation -> its files in a folder, and what the manifest says about them."""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad import stages, viz
from legrad.choices import IMAGE_FORMATS, ImageFormat, Normalization, check_choice
from legrad.inputs.ahead import read_ahead
from legrad.names import slug
from legrad.results.folder import Folder
from legrad.results.surface import Surface
from legrad.results.view import ImageView, Style

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

_DRAWN_BYTES = 1 << 30  # that all threads may hold at once
_DEFAULT_FRAME_SECONDS = 0.2  # of an animation, where the video's duration is not known


@dataclass(frozen=True)
class Contents:
    """Which files are written of an image, and how.

    Attributes:
        format: of overlays and figures.
        per_layer: a figure per target with all layers.
        figures: all targets side by side.
        overlays: one image per target, and a video's animation.
        arrays: raw relevance and scores.
        normalize: of overlays and figures, see ``Explanation.saliency``.
    """

    format: ImageFormat = "png"
    per_layer: bool = False
    figures: bool = True
    overlays: bool = True
    arrays: bool = True
    normalize: Normalization = "map"

    def __post_init__(self) -> None:
        check_choice("format", self.format, IMAGE_FORMATS)


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
        **(run or {}),
    }
    for image in images:
        stages.tell("drawing")
        entry = _save_image(explanation, folder, image, style, contents, sub_folder)
        folder.add([{**entry, **(note or {})}], facts)


def _save_image(
    explanation: "Explanation", folder: Folder, image: int, style: Style, contents: Contents, sub_folder: str
) -> dict[str, Any]:
    """The files of one image, and its entry of the manifest; threads make the overlays meanwhile."""
    kind = contents.format
    stem = folder.sub_folder(sub_folder) + slug(Path(explanation.names[image]).stem)
    if not (contents.figures or contents.overlays):
        return _save_files(explanation, folder, image, stem, None, iter(()), style, contents)
    view = explanation.view(image)
    small = view.reduced()
    saliency = small.saliency(explanation.maps_of(image), None, contents.normalize)
    nothing: Callable[[], dict[str, bytes]] = dict[str, bytes]
    jobs: list[Callable[[], dict[str, bytes]]] = []
    if not contents.overlays:
        pass
    elif small is view:  # every map is laid on its pixels once
        jobs = [functools.partial(_map_files, view, maps, style, kind) for maps in saliency]
    else:
        surfaces = explanation.surfaces(image, view, contents.normalize)
        jobs = [functools.partial(_large_map_files, view, surfaces[i], style, kind) for i in range(len(saliency))]
    # a thread that draws holds an image, twice for formats that Pillow writes, and its file
    threads = max(1, min(os.cpu_count() or 1, _DRAWN_BYTES // (3 * view.pixels.nbytes)))
    with contextlib.closing(read_ahead([nothing, *jobs], threads, 2 * threads)) as files_of_maps:
        next(files_of_maps)  # begins with the others
        figure = None
        if contents.figures:
            figure = viz.figure_file(explanation.figure_of(image, small, saliency, style), kind)
        return _save_files(explanation, folder, image, stem, figure, files_of_maps, style, contents)


def _save_files(
    explanation: "Explanation",
    folder: Folder,
    image: int,
    stem: str,
    figure: bytes | None,
    files_of_maps: Iterator[dict[str, bytes]],
    style: Style,
    contents: Contents,
) -> dict[str, Any]:
    """Write what was drawn of one image; returns its entry of the manifest."""
    name, targets, ending = explanation.names[image], explanation.targets_of(image), f".{contents.format}"
    stem = folder.stem(name, stem)
    arrays = {"relevance": explanation.relevance[image, targets], "scores": explanation.scores[image, targets]}
    if explanation.layer_relevance is not None:
        arrays["layer_relevance"] = explanation.layer_relevance[image, targets]
    entry: dict[str, Any] = {
        "image": name,
        "size": list(explanation.placements[image].original),
    }
    if figure is not None:
        entry["figure"] = folder.write(folder.name(stem, ending, f"{stem}--figure"), figure)
    if contents.arrays:
        entry["arrays"] = folder.write(folder.name(stem, ".npz"), _npz(arrays))
        entry["shapes"] = {name: list(value.shape) for name, value in arrays.items()}
    entry["targets"] = []
    timing = explanation.timing(image)
    if timing.frames:
        entry["frames"], entry["seconds"] = list(timing.frames), list(timing.seconds)
    if timing.duration is not None:
        entry["duration"] = timing.duration
    for number, target in enumerate(targets, 1):
        target_label = explanation.labels[image][target]
        record: dict[str, Any] = {
            # as figures name a target whose letters are in no font
            "number": number,
            "target": target_label,
            "score": float(explanation.scores[image, target]),
            "predicted": explanation.predicted is not None and bool(explanation.predicted[image, target]),
            "prompt_independent": bool(explanation.prompt_independent[image, target]),
        }
        label = f"{stem}--{slug(target_label)}"
        files, endings = next(files_of_maps, {}), {"overlay": ending, "animation": ".gif"}
        record |= {what: folder.write(folder.name(label, endings[what]), data) for what, data in files.items()}
        if contents.per_layer:
            layers = explanation.layer_figure(image, target, style.cmap, style.alpha)
            data = viz.figure_file(layers, contents.format)
            record["layers_figure"] = folder.write(folder.name(f"{label}--layers", ending), data)
        entry["targets"].append(record)
    return entry


def _large_map_files(view: ImageView, surface: Surface, style: Style, kind: ImageFormat) -> dict[str, bytes]:
    """The overlay of one target over a large image."""
    return {"overlay": view.overlay_file(surface, style, kind)}


def _map_files(view: ImageView, saliency: Tensor, style: Style, kind: ImageFormat) -> dict[str, bytes]:
    """The overlay of one target, and a video's animation: kind of file -> its bytes."""
    files = {"overlay": viz.encoded(view.overlay(saliency, style), kind)}
    if view.is_video:
        frames = [view.overlay(saliency, style, frame) for frame in range(len(saliency))]
        duration = view.timing.duration
        seconds = _DEFAULT_FRAME_SECONDS if duration is None else min(max(duration / len(frames), 0.02), 2)
        files["animation"] = viz.gif(frames, seconds)
    return files


def _npz(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}  # a keyword may be any array
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
