"""An explanation -> its files in a folder, and what the manifest says about them."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from legrad import stages, viz
from legrad.choices import ImageFormat
from legrad.inputs.ahead import read_ahead
from legrad.names import slug
from legrad.results.archive import arrays_of, packed
from legrad.results.folder import Folder
from legrad.results.surface import Surface
from legrad.results.view import ImageView, Style

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

_DRAWN_BYTES = 1 << 30  # that all threads may hold at once
_DEFAULT_FRAME_SECONDS = 0.2  # of an animation, where the video's duration is not known


def save_images(
    explanation: "Explanation",
    folder: Folder,
    images: Iterable[int],
    style: Style,
    per_layer: bool,
    kind: ImageFormat = "png",
) -> None:
    """Write some images of an explanation, one after the other; see ``Explanation.save``."""
    facts = {
        "settings": explanation.settings,
        "axes": ["targets", *explanation.axes],
        "layer_axes": ["targets", "layers", *explanation.axes],
    }
    for image in images:
        stages.tell("drawing")
        folder.add([_save_image(explanation, folder, image, style, per_layer, kind)], facts)


def _save_image(
    explanation: "Explanation", folder: Folder, image: int, style: Style, per_layer: bool, kind: ImageFormat
) -> dict[str, Any]:
    """The files of one image, and its entry of the manifest; threads make the overlays meanwhile."""
    view = explanation.view(image)
    small = view.reduced()
    saliency = small.saliency(explanation.maps_of(image), None, "map")
    jobs: list[Callable[[], dict[str, bytes]]]
    if small is view:  # every map is laid on its pixels once
        jobs = [functools.partial(_map_files, view, maps, style, kind) for maps in saliency]
    else:
        surfaces = explanation.surfaces(image, view)
        jobs = [functools.partial(_large_map_files, view, surfaces[i], style, kind) for i in range(len(saliency))]
    # a thread that draws holds an image, twice for formats that Pillow writes, and its file
    threads = max(1, min(os.cpu_count() or 1, _DRAWN_BYTES // (3 * view.pixels.nbytes)))
    with contextlib.closing(read_ahead([dict, *jobs], threads, 2 * threads)) as files_of_maps:
        next(files_of_maps)  # begins with the others
        figure = viz.png(explanation.figure_of(image, small, saliency, style))
        return _save_files(explanation, folder, image, figure, files_of_maps, style, per_layer, kind)


def _save_files(
    explanation: "Explanation",
    folder: Folder,
    image: int,
    figure: bytes,
    files_of_maps: Iterator[dict[str, bytes]],
    style: Style,
    per_layer: bool,
    kind: ImageFormat,
) -> dict[str, Any]:
    """Write what was drawn of one image; returns its entry of the manifest."""
    name, targets = explanation.names[image], explanation.targets_of(image)
    stem = folder.stem(name, slug(Path(name).stem))
    entry: dict[str, Any] = {
        "image": name,
        "size": list(explanation.placements[image].original),
        "figure": folder.write(folder.name(stem, ".png", f"{stem}--figure"), figure),
        "arrays": folder.write(folder.name(stem, ".npz"), packed(explanation, image)),
        "shapes": {name: list(value.shape) for name, value in arrays_of(explanation, image).items()},
        "targets": [],
    }
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
            "predicted": explanation.predicted is not None and bool(explanation.predicted[image, target]),
            "prompt_independent": bool(explanation.prompt_independent[image, target]),
        }
        label = f"{stem}--{slug(target_label)}"
        endings = {"overlay": f".{kind}", "animation": ".gif"}
        record |= {what: folder.write(folder.name(label, endings[what]), data) for what, data in files.items()}
        if per_layer:
            layers = viz.png(explanation.layer_figure(image, target, style.cmap, style.alpha))
            record["layers_figure"] = folder.write(folder.name(f"{label}--layers", ".png"), layers)
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
