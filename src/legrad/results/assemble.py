"""Results of the passes -> one ``Explanation``: apply the null target, and warn of doubtful maps.

Doubtful are maps without contrast, and maps that do not depend on the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad import relevance
from legrad.core.score import ResolvedTarget
from legrad.errors import FlatMapWarning, warn
from legrad.inputs import geometry
from legrad.inputs.originals import shown_again
from legrad.inputs.readers import Input
from legrad.models.anatomy import ViTAnatomy
from legrad.results.explanation import Explanation

_INDEPENDENT = 0.99  # correlation with other targets' maps above which a map does not depend on its target
_FLAT = 1e-6  # a spread this small, relative to the largest value, is rounding


@dataclass(frozen=True, eq=False)
class PassResult:
    """The result of one pass over images of one size.

    Attributes:
        rows: indices of these images among all inputs.
        patch_grid: where their patches lie.
        relevance: mean over layers, (rows, targets, *grid); the null target is the last, if there is one.
        per_layer: the same of every layer, (rows, targets, layers, *grid), if layers are kept.
        values: the scores, (rows, targets).
        scores: the targets, for their labels.
        answer: the model's own, (rows, features); None where it is not known.
    """

    rows: list[int]
    patch_grid: geometry.PatchGrid
    relevance: Tensor
    per_layer: Tensor | None
    values: Tensor
    scores: Sequence[ResolvedTarget]
    answer: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Maps:
    """Maps of one pass, merged over layers, without the null target.

    Attributes:
        relevance: (rows, targets, *grid).
        per_layer: (rows, targets, layers, *grid), if layers are kept.
        scores: (rows, targets).
        flat: (rows, targets) bool, maps without contrast.
        independent: (rows, targets) bool, maps that do not depend on the target.
    """

    relevance: Tensor
    per_layer: Tensor | None
    scores: Tensor
    flat: Tensor
    independent: Tensor


def assemble(
    parts: Sequence[PassResult],
    inputs: Sequence[Input],
    valid: Tensor,
    *,
    null_threshold: float | None,
    keep_layers: bool,
    same_for_all_targets: bool = False,
    layers: list[int],
    anatomy: ViTAnatomy,
    settings: dict[str, Any],
    asker: Any = None,
) -> Explanation:
    """Put the results of all passes together in the order of the inputs.

    Args:
        parts: results of the passes; every input is in one of them.
        inputs: the images.
        valid: (images, targets) bool, which targets an image has; without the null target.
        null_threshold: of the null target, the last one of every part, see ``relevance.mask_null``; None if there is
            none.
        keep_layers: keep the maps of all layers too.
        same_for_all_targets: the method does not look at the target, which is not worth a warning.
        layers: ascending indices of the explained blocks.
        anatomy: for any size.
        settings: what made this result, see ``Explanation.settings``.
        asker: the explainer, see ``results.presence``.

    Warns:
        FlatMapWarning: maps without contrast, which are returned as zeros.
        UserWarning: maps that do not depend on the target, see ``Explanation.prompt_independent``.
    """
    maps_of_parts = [_merge(part, valid[part.rows], null_threshold) for part in parts]
    order = torch.tensor([row for part in parts for row in part.rows], device="cpu").argsort()
    scores = torch.cat([maps.scores for maps in maps_of_parts])[order]
    flat = torch.cat([maps.flat for maps in maps_of_parts])[order]
    independent = torch.cat([maps.independent for maps in maps_of_parts])[order]
    labels, kinds, predicted = _labels(parts, valid, _score_kind(anatomy))
    _warn(flat & valid, independent & (not same_for_all_targets), valid, inputs, labels)
    per_layer = [maps.per_layer for maps in maps_of_parts if maps.per_layer is not None]
    patch_grids = {row: part.patch_grid for part in parts for row in part.rows}
    return Explanation(
        relevance=_padded([maps.relevance for maps in maps_of_parts])[order],
        layer_relevance=_padded(per_layer)[order] if keep_layers else None,
        layers=tuple(layers),
        scores=scores.masked_fill(~valid, 0),
        valid=valid,
        labels=labels,
        prompt_independent=independent,
        placements=[item.placement for item in inputs],
        patch_grids=[patch_grids[row] for row in range(len(inputs))],
        images=shown_again([item.image for item in inputs]),
        names=[item.name for item in inputs],
        settings=settings,
        axes=anatomy.axes,
        predicted=predicted,
        timings=[item.timing for item in inputs],
        frequencies=[item.frequencies for item in inputs],
        score_kinds=kinds,
        answers=_answers(parts, order),
        named=_named(parts, valid),
        asker=asker,
    )


def _answers(parts: Sequence[PassResult], order: Tensor) -> Tensor | None:
    answers = [part.answer for part in parts if part.answer is not None]
    return torch.cat(answers)[order] if len(answers) == len(parts) else None


def _named(parts: Sequence[PassResult], valid: Tensor) -> Tensor:
    """(images, targets) bool: which targets are texts or classes."""
    named = torch.zeros_like(valid)
    for part in parts:
        for index, row in enumerate(part.rows):
            for target in valid[row].nonzero()[:, 0].tolist():
                named[row, target] = part.scores[target].is_named(index)
    return named


def _score_kind(anatomy: ViTAnatomy) -> str:
    """What the inner product of the model's final answer with a target is."""
    if anatomy.output == "logits":
        return "logit"
    return "cosine" if any(readout.normalize for readout in anatomy.readouts.values()) else "product"


def _labels(parts: Sequence[PassResult], valid: Tensor, kind: str) -> tuple[list[list[str]], list[list[str]], Tensor]:
    """Labels and kinds of score of (images, targets), and (images, targets) bool, which classes the model chose."""
    labels, predicted = [[""] * valid.shape[1] for _ in range(len(valid))], torch.zeros_like(valid)
    kinds = [row.copy() for row in labels]
    for part in parts:
        for index, row in enumerate(part.rows):
            for target in valid[row].nonzero()[:, 0].tolist():
                score = part.scores[target]
                labels[row][target] = score.label_of(index)
                kinds[row][target] = score.kind_of(index, kind)
                predicted[row, target] = score.is_predicted(index)
    return [_distinct(row) for row in labels], kinds, predicted


def _distinct(labels: list[str]) -> list[str]:
    """Repeated labels get a number: two callables are both "<lambda>"."""
    return [
        f"{label} ({labels[:index].count(label) + 1})" if label and label in labels[:index] else label
        for index, label in enumerate(labels)
    ]


def _merge(part: PassResult, valid: Tensor, null_threshold: float | None) -> _Maps:
    """Zero the flat maps of one pass and targets that an image does not have, apply the null target."""
    maps, per_layer, scores = part.relevance, part.per_layer, part.values
    dims = maps.ndim - 2
    grid = (...,) + (None,) * dims  # index that lays (rows, targets) along the grid
    flat = _flat(maps)
    maps = maps.masked_fill(flat[grid], 0)
    null = None
    if null_threshold is not None:
        null, maps = maps[:, -1:], maps[:, :-1]
        per_layer = None if per_layer is None else per_layer[:, :-1]
        scores, flat = scores[:, :-1], flat[:, :-1]
    independent = _target_independent(maps, null, valid & ~flat)
    if null is not None and null_threshold is not None:
        maps = relevance.mask_null(maps, null, null_threshold, dims)
    keep = valid[grid]
    per_layer = None if per_layer is None else per_layer * keep[:, :, None]
    return _Maps(maps * keep, per_layer, scores, flat, independent)


def _padded(parts: list[Tensor]) -> Tensor:
    """Concatenate (images, ..., rows, cols) of different grids; zeros follow the smaller ones."""
    rows, cols = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.cat([F.pad(part, (0, cols - part.shape[-1], 0, rows - part.shape[-2])) for part in parts])


def _warn(flat: Tensor, independent: Tensor, valid: Tensor, inputs: Sequence[Input], labels: list[list[str]]) -> None:
    if bool(flat.any()):
        image, target = flat.nonzero()[0].tolist()
        warn(
            f"{int(flat.sum())} maps are flat and returned as zeros, the first for {inputs[image].name}, target "
            f"{labels[image][target]!r}: no patch matters for this score in the chosen layers",
            FlatMapWarning,
        )
    if bool(independent.any()):
        warn(
            f"{int(independent.sum())} of {int(valid.sum())} maps hardly depend on the target (correlation above "
            f"{_INDEPENDENT} with the mean of the others or the null map); see Explanation.prompt_independent",
            UserWarning,
        )


def _flat(maps: Tensor) -> Tensor:
    """(images, targets) bool: maps whose spread is rounding."""
    high, low = maps.flatten(2).amax(-1), maps.flatten(2).amin(-1)
    return ~(high - low > _FLAT * high.abs())


def _target_independent(maps: Tensor, null: Tensor | None, valid: Tensor) -> Tensor:
    """(images, targets) bool: maps that correlate with the mean of the other valid ones, or with the null map."""
    maps = maps.flatten(2)
    count = valid.sum(1)[:, None]
    valid_maps = maps * valid[..., None]
    others = (valid_maps.sum(1, keepdim=True) - valid_maps) / (count - 1).clamp(min=1)[..., None]
    independent = (_correlation(maps, others) > _INDEPENDENT) & (count > 1)
    if null is not None:
        independent |= _correlation(maps, null.flatten(2).expand_as(maps)) > _INDEPENDENT
    return independent & valid


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the cells; 0 where a map is flat."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=-1, eps=1e-30)
