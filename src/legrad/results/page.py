"""An explanation -> what its HTML page shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad import viz
from legrad.inputs import geometry
from legrad.report import record
from legrad.results.drawing import score_text

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation
    from legrad.results.view import ImageView

_FRAMES = 8  # of a video, at most


def page_record(
    explanation: "Explanation",
    images: Sequence[int],
    cmap: str,
    opacity: float,
    failures: Sequence[tuple[str, str]] = (),
) -> record.PageRecord:
    """The page of some images of an explanation.

    Args:
        explanation: shown.
        images: indices, in the order of the page.
        cmap: matplotlib colour map.
        opacity: at the beginning, in [0, 1].
        failures: (name, message) of images that could not be explained.
    """
    names = [Path(explanation.names[image]).name for image in images]
    settings = {name: _words(value) for name, value in explanation.settings.items() if value is not None}
    layers = [] if explanation.layer_relevance is None else [f"layer {layer}" for layer in explanation.layers]
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return record.PageRecord(
        f"Where did the model look? {names[0] if len(names) == 1 else f'{len(names)} images'}",
        settings,
        layers,
        record.text_of(viz.colours(ramp, cmap).tobytes()),
        opacity,
        [_image_record(explanation, image, len(names)) for image in images],
        list(failures),
    )


def _image_record(explanation: "Explanation", image: int, count: int) -> record.ImageRecord:
    view = explanation.view(image)
    pixels = view.pixels[::-1] if view.is_spectrogram else view.pixels
    size = record.shown_size(*view.placement.original, count)
    rows, cols = (_axis(view, size, axis) for axis in range(2))
    shown = min(_FRAMES, len(pixels)) if view.is_video else 1
    frames = [int((i + 0.5) * len(pixels) / shown) for i in range(shown)]
    kind = "video" if view.is_video else "sound" if view.is_spectrogram else "image"
    return record.ImageRecord(
        Path(explanation.names[image]).name,
        kind,
        record.data_uris([pixels[frame] for frame in frames] if view.is_video else [pixels], size),
        [view.caption(frame) for frame in frames] if view.is_video else [""],
        rows.reversed() if view.is_spectrogram else rows,
        cols,
        [_target_record(explanation, view, image, target, frames) for target in explanation.targets_of(image)],
    )


def _target_record(
    explanation: "Explanation", view: "ImageView", image: int, target: int, frames: Sequence[int]
) -> record.TargetRecord:
    merged = _frames_of(view, explanation.relevance[image, target], frames)
    layers: list[list[Any]] = []
    if explanation.layer_relevance is not None:
        layers = [_frames_of(view, maps, frames) for maps in explanation.layer_relevance[image, target]]
    note = "does not depend on the prompt" if bool(explanation.prompt_independent[image, target]) else ""
    score = float(explanation.scores[image, target])
    return record.TargetRecord(
        explanation.labels[image][target],
        score,
        score_text(explanation.score_kind(image, target), score),
        [
            [record.map_record(merged[index]), *(record.map_record(maps[index], 255) for maps in layers)]
            for index in range(len(frames))
        ],
        record.entropy(explanation.relevance[image, target].numpy()),
        note,
    )


def _frames_of(view: "ImageView", maps: Tensor, frames: Sequence[int]) -> list[Any]:
    """Maps (*grid) without padding -> (rows, cols) for every frame that is shown."""
    rows, cols = view.patch_grid.grid
    maps = maps[..., :rows, :cols]
    if not view.is_video:
        return [maps.numpy()]
    along = geometry.along_time(maps, len(view.pixels))
    return [along[frame].numpy() for frame in frames]


def _axis(view: "ImageView", size: geometry.Size, axis: int) -> record.AxisRecord:
    """As ``geometry.place`` and ``geometry.seen`` have it."""
    placement, grid = view.placement, view.patch_grid
    per_pixel = placement.original[axis] / size[axis] * placement.scale[axis]
    first_centre = per_pixel / 2 + placement.offset[axis]
    stride = grid.stride[axis]
    inside = view.seen(size).any(1 - axis).nonzero()[:, 0]
    return record.AxisRecord(
        size[axis],
        grid.grid[axis],
        per_pixel / stride,
        (first_centre - (grid.patch[axis] - stride) / 2) / stride - 0.5,
        int(inside[0]) if len(inside) else 1,
        int(inside[-1]) if len(inside) else 0,
        placement.original[axis],
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {content}" for name, content in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
