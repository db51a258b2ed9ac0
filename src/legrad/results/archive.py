"""One image of an explanation as an NPZ file: its arrays, and all else as JSON in the array "explanation".

Nothing in it is pickled: ``numpy.load(path, allow_pickle=False)`` opens it. The original is named, not copied, where it
is a file; what was given in memory is kept as pixels.
"""

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from legrad.atomic import parse_json
from legrad.checks import brief, first_line
from legrad.errors import InputError
from legrad.inputs import geometry
from legrad.inputs.originals import AbsentImage, ImageFile, shown_again, source_of, stamp_of
from legrad.inputs.readers import image_reader, video_reader

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

VERSION = 1
_KEY, _FORMAT = "explanation", "legrad explanation"
_ARRAYS = ("relevance", "scores", "layer_relevance", "pixels")
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def arrays_of(explanation: "Explanation", image: int) -> dict[str, Any]:
    """Of one image: relevance (targets, *grid), scores (targets,), layer_relevance (targets, layers, *grid) if kept."""
    targets = explanation.targets_of(image)
    arrays = {"relevance": explanation.relevance[image, targets], "scores": explanation.scores[image, targets]}
    if explanation.layer_relevance is not None:
        arrays["layer_relevance"] = explanation.layer_relevance[image, targets]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def packed(explanation: "Explanation", image: int) -> bytes:
    """The NPZ file of one image."""
    targets = explanation.targets_of(image)
    original = source_of(explanation.images, image)
    arrays, facts = arrays_of(explanation, image), _facts(explanation, image, targets)
    if isinstance(original, ImageFile):
        facts["file"] = {"path": original.path, "bytes": original.stamp[1]}
    elif not isinstance(original, AbsentImage):
        arrays["pixels"] = original
    arrays[_KEY] = np.array(json.dumps(facts))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _facts(explanation: "Explanation", image: int, targets: list[int]) -> dict[str, Any]:
    predicted = explanation.predicted
    return {
        "format": _FORMAT,
        "version": VERSION,
        "name": explanation.names[image],
        "labels": [explanation.labels[image][target] for target in targets],
        "score_kinds": [explanation.score_kind(image, target) for target in targets],
        "predicted": None if predicted is None else predicted[image, targets].tolist(),
        "prompt_independent": explanation.prompt_independent[image, targets].tolist(),
        "layers": list(explanation.layers),
        "axes": list(explanation.axes),
        "settings": explanation.settings,
        "placement": asdict(explanation.placements[image]),
        "patch_grid": asdict(explanation.patch_grids[image]),
        "timing": asdict(explanation.timings[image]) if explanation.timings else None,
        "frequencies": list(explanation.frequencies[image]) if explanation.frequencies else None,
    }


def unpacked(path: Path, make: Callable[..., "Explanation"]) -> "Explanation":
    """The explanation of one image.

    Args:
        path: of an NPZ file.
        make: ``Explanation``.

    Raises:
        InputError: no such file, or one that is foreign, newer or damaged.
    """
    arrays = _arrays(path)
    try:
        facts = parse_json(str(arrays[_KEY][()])) if arrays[_KEY].dtype.kind == "U" else {}
    except (ValueError, TypeError, AttributeError, KeyError):
        facts = {}
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        what = "was saved by a legrad whose files hold no geometry: explain the image again"
        if "relevance" not in arrays:
            what = "is no explanation of legrad; give what Explanation.save or `legrad explain --out` wrote"
        raise InputError(f"{path} {what}")
    version = facts.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"{path} was written by a newer legrad: its format is {version}, this one reads up to {VERSION}; update "
            "legrad (pip install -U legrad)"
        )
    try:
        return make(**_fields(arrays, facts, path))
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): explain the image again") from error


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file; none with Python objects in it is loaded."""
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path} is no NPZ file, or only a part of one; expected what Explanation.save wrote")
            file.seek(0)
            with np.load(file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in (*_ARRAYS, _KEY) if name in loaded.files} | dict.fromkeys(
                    [_KEY] if _KEY not in loaded.files else [], np.array("")
                )
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except _DAMAGE as error:
        raise InputError(f"{path} cannot be read, it is damaged or no file of legrad's: {first_line(error)}") from error


def _fields(arrays: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Arguments of ``Explanation``; anything that does not fit together raises a ``ValueError`` or its like."""
    axes, labels, layers = (
        tuple(map(str, facts["axes"])),
        list(map(str, facts["labels"])),
        tuple(map(int, facts["layers"])),
    )
    relevance, scores = arrays["relevance"], arrays["scores"]
    _expect("relevance", relevance, (len(labels), *[None] * len(axes)))
    _expect("scores", scores, (len(labels),))
    per_layer = arrays.get("layer_relevance")
    if per_layer is not None:
        _expect("layer_relevance", per_layer, (len(labels), len(layers), *relevance.shape[1:]))
    placement, grid = _placement(facts["placement"]), _patch_grid(facts["patch_grid"])
    if any(cells > held for cells, held in zip(grid.grid, relevance.shape[-2:], strict=True)):
        raise ValueError(f"a grid of {grid.grid} does not fit relevance {relevance.shape}")
    timing = facts["timing"]
    fields: dict[str, Any] = {
        "relevance": torch.from_numpy(relevance)[None],
        "layer_relevance": None if per_layer is None else torch.from_numpy(per_layer)[None],
        "layers": layers,
        "scores": torch.from_numpy(scores)[None],
        "valid": torch.ones(1, len(labels), dtype=torch.bool, device="cpu"),
        "labels": [labels],
        "score_kinds": [_kinds(facts.get("score_kinds"), len(labels))],
        "prompt_independent": _switches(facts["prompt_independent"], len(labels)),
        "placements": [placement],
        "patch_grids": [grid],
        "names": [str(facts["name"])],
        "settings": dict(facts["settings"]),
        "axes": axes,
        "predicted": None if facts["predicted"] is None else _switches(facts["predicted"], len(labels)),
        "timings": [] if timing is None else [_timing(timing)],
        "frequencies": [] if facts["frequencies"] is None else [tuple(map(float, facts["frequencies"]))],
    }
    frames = len(fields["timings"][0].frames) if axes[0] == "frames" and fields["timings"] else None
    fields["images"] = shown_again([_original(arrays.get("pixels"), facts, path, placement, frames)])
    return fields


def _expect(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    fits = len(array.shape) == len(shape) and all(
        expected in (None, held) for expected, held in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} is {array.dtype} {array.shape}")


def _switches(values: Any, count: int) -> Any:
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, bool) for value in values):
        raise ValueError(f"{brief(values)} are no {count} switches")
    return torch.tensor([values], dtype=torch.bool, device="cpu").reshape(1, count)


def _sides(values: Any) -> tuple[int, int]:
    height, width = map(int, values)
    if min(height, width) < 1:
        raise ValueError(f"{brief(values)} is no size")
    return height, width


def _pair(values: Any) -> tuple[float, float]:
    first, second = map(float, values)
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ValueError(f"{brief(values)} are no numbers")
    return first, second


def _placement(values: Mapping[str, Any]) -> geometry.Placement:
    return geometry.Placement(
        _sides(values["original"]), _sides(values["input"]), _pair(values["scale"]), _pair(values["offset"])
    )


def _patch_grid(values: Mapping[str, Any]) -> geometry.PatchGrid:
    patch, stride = (_pair(values[name]) for name in ("patch", "stride"))
    whole: Any = [tuple(int(side) if side.is_integer() else side for side in pair) for pair in (patch, stride)]
    if min(*patch, *stride) <= 0:
        raise ValueError(f"patches of {patch} pixels")
    return geometry.PatchGrid(_sides(values["grid"]), *whole)


def _timing(values: Mapping[str, Any]) -> geometry.Timing:
    duration = values["duration"]
    return geometry.Timing(
        tuple(map(int, values["frames"])),
        tuple(map(float, values["seconds"])),
        None if duration is None else float(duration),
        float(values["start"]),
    )


def _original(
    pixels: Any, facts: Mapping[str, Any], path: Path, placement: geometry.Placement, frames: int | None
) -> Any:
    """The image: out of the file, read again from where it was, or beside the results, or absent."""
    if pixels is not None:
        if pixels.dtype != np.uint8 or pixels.shape[-3:] != (*placement.original, 3):
            raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, the image is {placement.original}")
        return pixels
    name = str(facts["name"])
    if "file" not in facts:
        return AbsentImage(
            f"the original of {name} was not kept when it was explained; stream(..., keep_images=True) keeps it"
        )
    known, size = str(facts["file"]["path"]), facts["file"]["bytes"]
    value_range = facts["settings"].get("value_range")
    value_range = None if value_range is None else _pair(value_range)
    read = image_reader(value_range) if frames is None else video_reader(frames, value_range)
    for place in dict.fromkeys((known, name, str(path.parent / Path(known).name))):
        try:
            stamp = stamp_of(place)
        except (OSError, ValueError):
            continue
        if stamp[1] == size and os.path.isfile(place):
            return ImageFile(os.path.abspath(place), stamp, read)
    return AbsentImage(
        f"the original {known} is gone or was changed since it was explained; put it back, or beside {path}"
    )


def _kinds(values: Any, count: int) -> list[str]:
    """What the scores are; files of earlier versions do not say."""
    kinds = [""] * count if values is None else list(map(str, values))
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} kinds of scores for {count} targets")
    return kinds
