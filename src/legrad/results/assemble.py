"""What the passes found -> one ``Explanation``: layers merged, flat and insensitive maps told, null target applied."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad import relevance
from legrad.core.score import ResolvedTarget
from legrad.errors import FlatMapWarning
from legrad.inputs import geometry
from legrad.inputs.prepare import Input
from legrad.results.explanation import Explanation

_INSENSITIVE = 0.99
_FLAT = 1e-6


@dataclass(frozen=True)
class PassResult:
    """The result of one pass over images of one size.

    Attributes:
        rows: which of the inputs.
        cells: where their patches lie.
        per_layer: (rows, targets, layers, *grid); the null target is the last.
        values: (rows, targets).
        scores: the targets, for the rows' labels.
    """

    rows: list[int]
    patch_grid: geometry.PatchGrid
    per_layer: Tensor
    values: Tensor
    scores: Sequence[ResolvedTarget]


@dataclass(frozen=True)
class _Maps:
    """Merged maps of a part, without the null target."""

    relevance: Tensor
    per_layer: Tensor
    scores: Tensor
    flat: Tensor
    insensitive: Tensor


def assemble(
    parts: Sequence[PassResult],
    inputs: Sequence[Input],
    valid: Tensor,
    *,
    null_threshold: float | None,
    keep_layers: bool,
    same_for_all_targets: bool = False,
    layers: list[int],
    axes: tuple[str, ...],
    settings: dict[str, Any],
) -> Explanation:
    """Put the parts together in the order of the inputs.

    Args:
        parts: every input is in one of them.
        inputs: the images.
        valid: (images, targets) bool.
        null_threshold: the parts' last target is the null target, with this threshold; None if there is none.
        keep_layers: keep the maps of all layers too.
        same_for_all_targets: the method does not look at the target, which is not worth a warning.
        layers: ascending indices.
        axes: names of the grid's axes.
        settings: for the record.

    Warns:
        FlatMapWarning: maps without contrast (returned as zeros).
        UserWarning: maps that hardly depend on the target.
    """
    merged = [_merge(part, valid[part.rows], null_threshold) for part in parts]
    order = torch.tensor([row for part in parts for row in part.rows]).argsort()
    flat, insensitive, values = (
        torch.cat(found)[order]
        for found in ([m.flat for m in merged], [m.insensitive for m in merged], [m.scores for m in merged])
    )
    labels, predicted = _labels(parts, valid)
    _warn(flat & valid, insensitive & (not same_for_all_targets), valid, inputs, labels)
    cells = {row: part.patch_grid for part in parts for row in part.rows}
    return Explanation(
        relevance=_padded([m.relevance for m in merged])[order],
        layer_relevance=_padded([m.per_layer for m in merged])[order] if keep_layers else None,
        layers=tuple(layers),
        scores=values.masked_fill(~valid, 0),
        valid=valid,
        labels=labels,
        prompt_independent=insensitive,
        placements=[one.placement for one in inputs],
        patch_grids=[cells[row] for row in range(len(inputs))],
        images=[one.image for one in inputs],
        names=[one.name for one in inputs],
        settings=settings,
        axes=axes,
        predicted=predicted,
        timings=[one.timing for one in inputs],
        frequencies=[one.frequencies for one in inputs],
    )


def _labels(parts: Sequence[PassResult], valid: Tensor) -> tuple[list[list[str]], Tensor]:
    """Labels of (images, targets), and which classes the model chose."""
    labels, predicted = [[""] * valid.shape[1] for _ in range(len(valid))], torch.zeros_like(valid)
    for part in parts:
        for place, row in enumerate(part.rows):
            for target in valid[row].nonzero()[:, 0].tolist():
                score = part.scores[target]
                labels[row][target] = score.label_of(place)
                predicted[row, target] = score.is_predicted(place)
    return [_distinct(row) for row in labels], predicted


def _distinct(labels: list[str]) -> list[str]:
    """Labels that come again get a number: two callables are both "<lambda>"."""
    return [
        f"{label} ({labels[:index].count(label) + 1})" if label and label in labels[:index] else label
        for index, label in enumerate(labels)
    ]


def _merge(part: PassResult, valid: Tensor, null_threshold: float | None) -> _Maps:
    per_layer, scores = part.per_layer, part.values
    maps = relevance.merge_layers(per_layer.unbind(2))
    dims = maps.ndim - 2
    grid = (...,) + (None,) * dims
    flat = _flat(maps)
    maps = maps.masked_fill(flat[grid], 0)
    null = None
    if null_threshold is not None:
        null, maps, per_layer = maps[:, -1:], maps[:, :-1], per_layer[:, :-1]
        scores, flat = scores[:, :-1], flat[:, :-1]
    insensitive = _target_independent(maps, null, valid & ~flat)
    if null is not None and null_threshold is not None:
        maps = relevance.mask_null(maps, null, null_threshold, dims)
    keep = valid[grid]
    return _Maps(maps * keep, per_layer * keep[:, :, None], scores, flat, insensitive)


def _padded(parts: list[Tensor]) -> Tensor:
    """One tensor out of (images, ..., rows, cols) with different grids; zeros behind the smaller ones."""
    rows, cols = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.cat([F.pad(part, (0, cols - part.shape[-1], 0, rows - part.shape[-2])) for part in parts])


def _warn(flat: Tensor, insensitive: Tensor, valid: Tensor, inputs: Sequence[Input], labels: list[list[str]]) -> None:
    if bool(flat.any()):
        image, target = flat.nonzero()[0].tolist()
        warnings.warn(
            f"{int(flat.sum())} maps are flat and returned as zeros, the first for {inputs[image].name}, target "
            f"{labels[image][target]!r}: no patch matters for this score in the chosen layers",
            FlatMapWarning,
            stacklevel=4,
        )
    if bool(insensitive.any()):
        warnings.warn(
            f"{int(insensitive.sum())} of {int(valid.sum())} maps hardly depend on the target (correlation above "
            f"{_INSENSITIVE} with the mean of the others or the null map); see Explanation.prompt_independent",
            UserWarning,
            stacklevel=4,
        )


def _flat(maps: Tensor) -> Tensor:
    """(images, targets) bool: maps whose spread is nothing but rounding."""
    high, low = maps.flatten(2).amax(-1), maps.flatten(2).amin(-1)
    return ~(high - low > _FLAT * high.abs())


def _target_independent(maps: Tensor, null: Tensor | None, valid: Tensor) -> Tensor:
    """(images, targets) bool: maps that correlate with the mean of the others, or with the null map."""
    maps = maps.flatten(2)
    count = valid.sum(1)[:, None]
    shown = maps * valid[..., None]
    others = (shown.sum(1, keepdim=True) - shown) / (count - 1).clamp(min=1)[..., None]
    alike = (_correlation(maps, others) > _INSENSITIVE) & (count > 1)
    if null is not None:
        alike |= _correlation(maps, null.flatten(2).expand_as(maps)) > _INSENSITIVE
    return alike & valid


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the cells; 0 where a map is flat."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=-1, eps=1e-30)
