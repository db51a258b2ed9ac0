"""The figures of an explanation: all targets of one image, all layers of one target, a contact sheet of all images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad.errors import InputError
from legrad.results.view import Style
from legrad.viz import USUAL_LAYOUT, Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from legrad.results.explanation import Explanation

_SHEET = 12  # images of a contact sheet
_MOST_TARGETS = 7  # of an image there
_DECIMALS = {"cosine": 2, "cosine difference": 2, "probability": 2, "logit": 1, "logit difference": 1}


def figure(
    explanation: "Explanation",
    image: int,
    targets: Any,
    style: Style,
    layout: Layout = USUAL_LAYOUT,
) -> "Figure":
    """The figure of one image; arguments as of ``Explanation.figure``.

    Raises:
        InputError: no such targets, or none.
    """
    chosen = _chosen(explanation, image, targets)
    if style.normalize == "shared":  # with the targets that are not shown
        saliency = explanation.target_maps(image, None, "shared")[chosen]
    else:
        saliency = explanation.view(image).saliency(explanation.relevance[image, chosen], None, style.normalize)
    return figure_of(explanation, image, chosen, saliency, style, layout)


def figure_of(
    explanation: "Explanation",
    image: int,
    targets: Sequence[int],
    saliency: Tensor,
    style: Style,
    layout: Layout = USUAL_LAYOUT,
) -> "Figure":
    """The figure of an image out of the saliency of some targets: (targets, H, W)."""
    titles = [_title(explanation, image, target) for target in targets]
    name = Path(explanation.names[image]).name
    return explanation.view(image).figure(saliency, titles, name, style, layout=layout)


def layer_figure(explanation: "Explanation", image: int, target: int, maps: Tensor, style: Style) -> "Figure":
    """One target's overlay for every layer: maps (layers, *grid)."""
    view = explanation.view(image)
    saliency = view.saliency(maps, None, style.normalize)
    titles = [f"layer {layer}" for layer in explanation.layers]
    name = f"{Path(explanation.names[image]).name}\n{explanation.labels[image][target]}"
    note = "each layer is scaled by itself" if style.normalize == "map" else ""
    return view.figure(saliency, titles, name, style, note)


def contact_sheet(explanation: "Explanation", style: Style) -> "Figure":
    """The first images with their overlays; a single image has its figure."""
    count = len(explanation.names)
    if count == 1:
        return figure(explanation, 0, None, style)
    from legrad import figures

    rows = []
    for image in range(min(count, _SHEET)):
        view, targets = explanation.view(image), explanation.targets_of(image)
        saliency = explanation.target_maps(image, None, style.normalize)
        more = len(targets) - _MOST_TARGETS
        name = Path(explanation.names[image]).name + (f"\n(and {more} more targets)" if more > 0 else "")
        row: list[tuple[Any, str]] = [(view.overlay(saliency[0], replace(style, alpha=0)), name)]
        row += [
            (view.overlay(saliency[target], style), _title(explanation, image, target))
            for target in targets[:_MOST_TARGETS]
        ]
        rows.append(row)
    note = f"the first {_SHEET} of {count} images, and {count - _SHEET} more" if count > _SHEET else ""
    return figures.contact_sheet(rows, note, style.cmap, style.alpha, style.bar)


def score_text(kind: str, score: float) -> str:
    """What a score is and how large: "cosine 0.26", "logit 7.1"; the number alone where it is not known."""
    if not kind:
        return f"{score:.3f}"
    return f"{kind} {score:.{_DECIMALS[kind]}f}" if kind in _DECIMALS else f"{kind} {score:.3g}"


def _title(explanation: "Explanation", image: int, target: int) -> str:
    kind, label = explanation.score_kind(image, target), explanation.labels[image][target]
    score = score_text(kind, float(explanation.scores[image, target]))
    return label if kind == "none" else f"{label}\n{score}"


def _chosen(explanation: "Explanation", image: int, targets: Any) -> list[int]:
    if targets is None:
        return explanation.targets_of(image)
    several = isinstance(targets, list | tuple | range | np.ndarray | Tensor) and getattr(targets, "ndim", 1) == 1
    indices = [explanation.index_of(image, target) for target in (targets if several else [targets])]
    if not indices:
        raise InputError("targets is empty: give indices or labels of targets, or None for all")
    return indices
