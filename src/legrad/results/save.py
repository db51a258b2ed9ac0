"""An explanation -> its files in a folder, and what the manifest says about them."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad import viz
from legrad.names import slug
from legrad.results import drawing
from legrad.results.folder import Folder
from legrad.results.view import ImageView, Style

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

_DEFAULT_FRAME_SECONDS = 0.2  # of an animation, where the video's duration is not known


def save_images(
    explanation: "Explanation", folder: Folder, images: Iterable[int], style: Style, per_layer: bool
) -> None:
    """Write some images of an explanation, one after the other; see ``Explanation.save``."""
    facts = {
        "settings": explanation.settings,
        "axes": ["targets", *explanation.axes],
        "layer_axes": ["targets", "layers", *explanation.axes],
        "style": {"normalize": style.normalize, "alpha": style.alpha, "cmap": style.cmap},
    }
    for image in images:
        folder.add([_save_image(explanation, folder, image, style, per_layer)], facts)


def _save_image(
    explanation: "Explanation", folder: Folder, image: int, style: Style, per_layer: bool
) -> dict[str, Any]:
    """The files of one image, and its entry of the manifest; every map is laid on its pixels once."""
    name, targets = explanation.names[image], explanation.targets_of(image)
    view, saliency = explanation.view(image), explanation.target_maps(image, None, style.normalize)[targets]
    figure = viz.png(drawing.figure_of(explanation, image, targets, saliency, style))
    stem = folder.stem(name, slug(Path(name).stem))
    arrays = {"relevance": explanation.relevance[image, targets], "scores": explanation.scores[image, targets]}
    if explanation.layer_relevance is not None:
        arrays["layer_relevance"] = explanation.layer_relevance[image, targets]
    entry: dict[str, Any] = {
        "image": name,
        "size": list(explanation.placements[image].original),
        "figure": folder.write(folder.name(stem, ".png", f"{stem}--figure"), figure),
        "arrays": folder.write(folder.name(stem, ".npz"), _npz(arrays)),
        "shapes": {name: list(value.shape) for name, value in arrays.items()},
        "targets": [],
    }
    timing = explanation.timing(image)
    if timing.frames:
        entry["frames"], entry["seconds"] = list(timing.frames), list(timing.seconds)
    if timing.duration is not None:
        entry["duration"] = timing.duration
    for number, (target, maps) in enumerate(zip(targets, saliency, strict=True), 1):
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
        record |= _save_maps(folder, label, view, maps, style)
        if per_layer:
            layers = viz.png(explanation.layer_figure(image, target, style.cmap, style.alpha, style.normalize))
            record["layers_figure"] = folder.write(folder.name(f"{label}--layers", ".png"), layers)
        entry["targets"].append(record)
    return entry


def _save_maps(folder: Folder, label: str, view: ImageView, saliency: Tensor, style: Style) -> dict[str, str]:
    """The overlay of one target, and a video's animation: kind -> file."""
    overlay = viz.png(view.overlay(saliency, style))
    files = {"overlay": folder.write(folder.name(label, ".png"), overlay)}
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
