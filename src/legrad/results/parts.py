"""Explanations taken apart, put together, and loaded from files."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.atomic import WriteError
from legrad.checks import brief
from legrad.errors import InputError
from legrad.inputs.originals import shown_again, source_of
from legrad.results.archive import unpacked
from legrad.results.manifest import Manifest, folder_path, manifest_path

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

# what has to be alike in explanations that become one
_SAME = ("model", "method", "readout")


def of_images(explanation: "Explanation", images: Sequence[int]) -> dict[str, Any]:
    """The fields of an explanation for some of its images, with no more targets and cells than those have."""
    rows = list(images)
    valid = explanation.valid[rows]
    targets = valid.any(0).nonzero()[:, 0].tolist()
    patch_grids = [explanation.patch_grids[row] for row in rows]
    return _of_targets(explanation, rows, targets) | {
        "placements": [explanation.placements[row] for row in rows],
        "patch_grids": patch_grids,
        "images": shown_again([source_of(explanation.images, row) for row in rows]),
        "names": [explanation.names[row] for row in rows],
        "timings": [explanation.timings[row] for row in rows if explanation.timings],
        "frequencies": [explanation.frequencies[row] for row in rows if explanation.frequencies],
        "answers": None if explanation.answers is None else explanation.answers[rows],
    }


def of_label(explanation: "Explanation", label: str) -> dict[str, Any]:
    """The fields of an explanation for one target, which the images without it do not have.

    Raises:
        InputError: no image has it.
    """
    images = range(len(explanation.names))
    places = [
        next((target for target in explanation.targets_of(image) if explanation.labels[image][target] == label), None)
        for image in images
    ]
    if all(place is None for place in places):
        known = dict.fromkeys(explanation.labels[i][t] for i in images for t in explanation.targets_of(i))
        raise InputError(f"no target {brief(label)}; there are {', '.join(map(brief, known))}")
    rows = list(images)
    columns = torch.tensor([0 if place is None else place for place in places], device="cpu")
    absent = torch.tensor([place is None for place in places], device="cpu")

    def column(values: Tensor) -> Tensor:
        chosen = values[rows, columns][:, None].clone()
        chosen[absent] = 0
        return chosen

    layers, predicted = explanation.layer_relevance, explanation.predicted
    return {
        "relevance": column(explanation.relevance),
        "layer_relevance": None if layers is None else column(layers),
        "scores": column(explanation.scores),
        "valid": ~absent[:, None],
        "prompt_independent": column(explanation.prompt_independent),
        "predicted": None if predicted is None else column(predicted),
        "named": None if explanation.named is None else column(explanation.named),
        "labels": [["" if place is None else label] for place in places],
        "score_kinds": explanation.score_kinds
        and [["" if place is None else explanation.score_kinds[i][place]] for i, place in enumerate(places)],
    }


def _of_targets(explanation: "Explanation", rows: list[int], targets: list[int]) -> dict[str, Any]:
    height, width = (max(explanation.patch_grids[row].grid[axis] for row in rows) for axis in range(2))

    def chosen(values: Tensor) -> Tensor:
        return values[rows][:, targets]

    layers, predicted = explanation.layer_relevance, explanation.predicted
    return {
        "relevance": chosen(explanation.relevance)[..., :height, :width].clone(),
        "layer_relevance": None if layers is None else chosen(layers)[..., :height, :width].clone(),
        "scores": chosen(explanation.scores),
        "valid": chosen(explanation.valid),
        "prompt_independent": chosen(explanation.prompt_independent),
        "predicted": None if predicted is None else chosen(predicted),
        "named": None if explanation.named is None else chosen(explanation.named),
        "labels": [[explanation.labels[row][target] for target in targets] for row in rows],
        "score_kinds": explanation.score_kinds
        and [[explanation.score_kinds[row][target] for target in targets] for row in rows],
    }


def joined(parts: Sequence["Explanation"]) -> dict[str, Any]:
    """The fields of one explanation of all images of several; zeros follow smaller grids and shorter lists of targets.

    Raises:
        InputError: none, or they differ in model, method, read-out, layers or axes.
    """
    if not parts:
        raise InputError("no explanations to put together")
    first = parts[0]
    for part in parts[1:]:
        different = {name: (first.settings.get(name), part.settings.get(name)) for name in _SAME}
        different |= {"layers": (list(first.layers), list(part.layers)), "axes": (first.axes, part.axes)}
        for name, (a, b) in different.items():
            if a != b:
                raise InputError(
                    f"explanations of one {name} become one, got {brief(a)} for {first.names[0]} and {brief(b)} for "
                    f"{part.names[0]}; keep them apart"
                )
    count = max(part.relevance.shape[1] for part in parts)
    sides = [max(part.relevance.shape[axis] for part in parts) for axis in range(2, first.relevance.ndim)]

    def stacked(values: list[Tensor], dims: int = 0) -> Tensor:
        padded = []
        for value in values:
            widths = [0] * (2 * value.ndim)
            for axis in range(dims):
                widths[2 * axis + 1] = sides[-1 - axis] - value.shape[-1 - axis]
            widths[2 * (value.ndim - 2) + 1] = count - value.shape[1]
            padded.append(F.pad(value, widths))
        return torch.cat(padded)

    layers = [part.layer_relevance for part in parts if part.layer_relevance is not None]
    predicted = [torch.zeros_like(p.valid) if p.predicted is None else p.predicted for p in parts]
    answers = [part.answers for part in parts if part.answers is not None]
    named = [part.named for part in parts if part.named is not None]
    timings = [part.timing(image) for part in parts for image in range(len(part.names))]
    frequencies = [part.frequencies or [()] * len(part.names) for part in parts]
    return {
        "relevance": stacked([part.relevance for part in parts], len(sides)),
        "layer_relevance": stacked(layers, len(sides)) if len(layers) == len(parts) else None,
        "layers": first.layers,
        "scores": stacked([part.scores for part in parts]),
        "valid": stacked([part.valid for part in parts]),
        "labels": [[*row, *[""] * (count - len(row))] for part in parts for row in part.labels],
        "score_kinds": [
            [part.score_kind(image, target) for target in range(part.relevance.shape[1])]
            + [""] * (count - part.relevance.shape[1])
            for part in parts
            for image in range(len(part.names))
        ],
        "prompt_independent": stacked([part.prompt_independent for part in parts]),
        "placements": [placement for part in parts for placement in part.placements],
        "patch_grids": [patch_grid for part in parts for patch_grid in part.patch_grids],
        "images": shown_again([source_of(part.images, i) for part in parts for i in range(len(part.names))]),
        "names": [name for part in parts for name in part.names],
        # what is not the same for all says nothing about the whole
        "settings": {
            key: value for key, value in first.settings.items() if all(p.settings.get(key) == value for p in parts)
        },
        "axes": first.axes,
        "answers": torch.cat(answers) if len(answers) == len(parts) else None,
        "named": stacked(named) if len(named) == len(parts) else None,
        "asker": first.asker,
        "predicted": None if all(part.predicted is None for part in parts) else stacked(predicted),
        "timings": timings if any(part.timings for part in parts) else [],
        "frequencies": [row for rows in frequencies for row in rows] if any(p.frequencies for p in parts) else [],
    }


def loaded(source: Any, make: Any) -> "list[Explanation]":
    """The explanations of a folder's images, or of one NPZ file.

    Args:
        source: a folder of results, its manifest, or an NPZ file.
        make: ``Explanation``.

    Raises:
        InputError: nothing there, or a file that is foreign, newer or damaged.
    """
    path = folder_path(source)
    if path.suffix == ".npz" and not path.is_dir():
        return [unpacked(path, make)]
    if not os.path.exists(path):
        raise InputError(f"no file or folder {str(path)!r}; give what Explanation.save or `legrad explain --out` wrote")
    try:
        manifest = path if path.is_file() else manifest_path(path)
    except WriteError as error:
        raise InputError(f"{path} is no folder of results: {error}") from error
    content = Manifest.read(manifest)
    if content is None:
        raise InputError(
            f"{path} holds no explanations of legrad: no manifest.json of its own; give a folder of Explanation.save, "
            "or one of its .npz files"
        )
    names = [_name(entry, manifest) for entry in content.entries]
    if not names:
        raise InputError(f"{path} holds no explanations: its manifest names no image")
    return [unpacked(manifest.parent / name, make) for name in names]


def _name(entry: Any, manifest: Path) -> str:
    name = entry.get("arrays")
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{manifest} is damaged: an image without arrays, or with some outside of its folder")
    return name


def all_explanations(explanations: Iterable[Any], kind: type) -> list[Any]:
    """A list of what ``Explanation.cat`` got; raises ``InputError`` for anything else."""
    parts = list(explanations) if isinstance(explanations, Iterable) else [explanations]
    for part in parts:
        if not isinstance(part, kind):
            raise InputError(f"Explanation.cat takes explanations, got {brief(part)} among them; leave failures out")
    return parts
