"""An explanation -> its files in a folder, and what the manifest says about them."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad import viz
from legrad.choices import FORMATS, ImageFormat, Normalization, check_choice
from legrad.names import slug
from legrad.results.folder import Folder
from legrad.results.view import ImageView, Style

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

_DEFAULT_FRAME_SECONDS = 0.2  # of an animation, where the video's duration is not known


@dataclass(frozen=True)
class Contents:
    """Which files are written of an image, and how.

    Attributes:
        format: of overlays and figures.
        figures: all targets side by side.
        overlays: one image per target, and a video's animation.
        arrays: raw relevance and scores.
        per_layer: a figure per target with all layers.
        normalize: of overlays and figures, see ``Explanation.saliency``.
    """

    format: ImageFormat = "png"
    figures: bool = True
    overlays: bool = True
    arrays: bool = True
    per_layer: bool = False
    normalize: Normalization = "map"

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)


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
        folder.add([_save_image(explanation, folder, image, style, contents, sub_folder) | dict(note or {})], facts)


def _save_image(
    explanation: "Explanation", folder: Folder, image: int, style: Style, contents: Contents, sub_folder: str
) -> dict[str, Any]:
    """The files of one image, and its entry of the manifest; every map is laid on its pixels once."""
    name, targets, ending = explanation.names[image], explanation.targets_of(image), f".{contents.format}"
    saliency = figure = None
    if contents.figures or contents.overlays:
        saliency = explanation.target_maps(image, None, contents.normalize)[targets]
    if contents.figures:
        figure = viz.encoded(explanation.figure_of(image, saliency, style), contents.format)
    stem = folder.stem(name, folder.sub_folder(sub_folder) + slug(Path(name).stem))
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
    view = explanation.view(image) if contents.overlays else None
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
        if view is not None and saliency is not None:
            record |= _save_maps(folder, label, view, saliency[number - 1], style, contents.format)
        if contents.per_layer:
            layers = viz.encoded(explanation.layer_figure(image, target, style.cmap, style.alpha), contents.format)
            record["layers_figure"] = folder.write(folder.name(f"{label}--layers", ending), layers)
        entry["targets"].append(record)
    return entry


def _save_maps(
    folder: Folder, label: str, view: ImageView, saliency: Tensor, style: Style, format: str
) -> dict[str, str]:
    """The overlay of one target, and a video's animation: kind -> file."""
    overlay = viz.encoded(view.overlay(saliency, style), format)
    files = {"overlay": folder.write(folder.name(label, f".{format}"), overlay)}
    if view.is_video:
        frames = [view.overlay(saliency, style, frame) for frame in range(len(saliency))]
        duration = view.timing.duration
        seconds = _DEFAULT_FRAME_SECONDS if duration is None else min(max(duration / len(frames), 0.02), 2)
        files["animation"] = folder.write(folder.name(label, ".gif"), viz.gif(frames, seconds))
    return files


def _npz(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}  # a keyword may be any array
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
