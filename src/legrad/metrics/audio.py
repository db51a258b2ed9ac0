"""DenseAV's scorer for sound- and speech-prompted segmentation (Hamilton et al., CVPR 2024).

All pixels of all prompts of a class are pooled. AP_c is their exact average precision; IoU_c is the best of 20
thresholds, equally spaced from the least to the greatest of the class's scores (score > threshold, strictly; an empty
union is 0). mAP and mIoU are plain means over classes.

The threshold is chosen per class on the evaluated data, and the lowest one takes almost everything: IoU_c is never
below the class's share of the pixels by more than the pixels at the minimum, which is also the chance level of AP_c.

Because pixels are pooled, it matters how maps are scaled: ``normalisation="dataset"`` as DenseAV does (minimum and
maximum over the whole data set, at the resolution of the features, then bilinear to S x S), or ``"image"`` (each map
resized, then stretched to [0, 1], as LeGrad's maps usually are). Report both.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from legrad.errors import InputError
from legrad.metrics import ranking
from legrad.metrics.ranges import is_flat, unit_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

Normalisation = Literal["dataset", "image"]
THRESHOLDS = 20
BINS = 200  # quantiles of a class's scores, by which resamples are ranked


@dataclass(frozen=True, eq=False)
class Prompted:
    """One prompt's result, kept whole: the scores of a class are known only when all its pixels are.

    Attributes:
        name: the class.
        relevance: (rows, cols), raw, at the resolution of the features.
        mask: (S, S) bool, in the frame of the model's input.
    """

    name: str
    relevance: "NDArray[Any]"
    mask: "NDArray[Any]"

    def to_json(self) -> dict[str, Any]:
        """For a result file; ``relevance`` is kept in float32."""
        values = np.ascontiguousarray(self.relevance, "<f4")
        return {
            "name": self.name,
            "shape": list(values.shape),
            "relevance": base64.b64encode(values.tobytes()).decode("ascii"),
            "side": list(np.shape(self.mask)),
            "mask": base64.b64encode(zlib.compress(np.packbits(self.mask).tobytes())).decode("ascii"),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Prompted":
        """What ``to_json`` gave."""
        try:
            values = np.frombuffer(base64.b64decode(content["relevance"]), "<f4").reshape(content["shape"])
            bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(content["mask"])), np.uint8))
            mask = bits[: int(np.prod(content["side"]))].reshape(content["side"]).astype(bool)
            return cls(str(content["name"]), values.astype(np.float32), mask)
        except (KeyError, ValueError, TypeError, zlib.error) as error:
            raise InputError(f"not a stored prompt of the audio benchmark: {error}") from error


def class_scores(scores: "NDArray[Any]", truth: "NDArray[Any]") -> tuple[float, float]:
    """(AP, best IoU) of one class.

    Args:
        scores: its pooled scores, any shape.
        truth: bool, same shape.

    Returns:
        both in [0, 1]; 0 and 0 for a class without a single pixel.
    """
    pooled, there = np.asarray(scores, np.float32).ravel(), np.asarray(truth, bool).ravel()
    if pooled.shape != there.shape or not pooled.size:
        raise InputError(f"scores and truth have one shape, got {np.shape(scores)} and {np.shape(truth)}")
    precision = ranking.average_precision(there, pooled)
    if precision is None:
        return 0.0, 0.0
    best = 0.0
    for threshold in _thresholds(pooled):
        above = pooled > threshold
        union = int((above | there).sum())
        best = max(best, int((above & there).sum()) / union if union else 0.0)
    return precision, best


def _thresholds(pooled: "NDArray[Any]") -> "NDArray[np.float32]":
    return torch.linspace(float(pooled.min()), float(pooled.max()), THRESHOLDS).numpy()


def summarise(items: Sequence[Prompted], normalisation: Normalisation) -> dict[str, Any]:
    """The data set's numbers.

    Returns:
        ``map`` and ``miou`` in [0, 1]; ``per_class``, name -> [AP, IoU, share of the pixels]; the normalisation, and
        counts: prompts, classes, classes without a pixel (they count as 0), flat maps.
    """
    if normalisation not in ("dataset", "image"):
        raise InputError(f"normalisation is dataset or image, got {normalisation!r}")
    if not items:
        raise InputError("no prompt to summarise")
    scale = _Scale(items, normalisation)
    per_class: dict[str, list[float]] = {}
    for name, group in _by_class(items).items():
        scores, truth = (
            np.concatenate([part.ravel() for part in parts])
            for parts in ([scale(one) for one in group], [one.mask for one in group])
        )
        per_class[name] = [*class_scores(scores, truth), float(truth.mean())]
    table = np.array(list(per_class.values()))
    return {
        "map": float(table[:, 0].mean()),
        "miou": float(table[:, 1].mean()),
        "per_class": per_class,
        "normalisation": normalisation,
        "prompts": len(items),
        "classes": len(per_class),
        "classes_without_pixels": int((table[:, 2] == 0).sum()),
        "flat": sum(is_flat(item.relevance) for item in items),
    }


def _by_class(items: Sequence[Prompted]) -> dict[str, list[Prompted]]:
    members: dict[str, list[Prompted]] = {}
    for item in items:
        members.setdefault(item.name, []).append(item)
    return members


class _Scale:
    """Prompts -> scores (S, S), by the minimum and maximum of all of them or by each map's own."""

    def __init__(self, items: Sequence[Prompted], normalisation: Normalisation) -> None:
        self._alone = normalisation == "image"
        self._low = min(float(np.min(item.relevance)) for item in items)
        self._spread = max(float(np.max(item.relevance)) for item in items) - self._low

    def __call__(self, item: Prompted) -> "NDArray[np.float32]":
        size = item.mask.shape
        if self._alone:
            return np.asarray(np.nan_to_num(unit_range(_resized(item.relevance, size))), np.float32)
        return _resized((item.relevance - self._low) / (self._spread or 1.0), size)


class Table:
    """The prompts of many images, for resampling: the methods take how often each image was drawn.

    With every image drawn once they are exact and as ``summarise`` has them. Resamples are ranked by ``BINS``
    quantiles of a class's scores, and cut at the thresholds of all its prompts; sorting each anew would take hours.

    Args:
        items: the prompts of every image.
        normalisation: as in ``summarise``.
    """

    def __init__(self, items: Sequence[Sequence[Prompted]], normalisation: Normalisation) -> None:
        every = [one for item in items for one in item]
        owner = {id(one): index for index, item in enumerate(items) for one in item}
        scale = _Scale(every, normalisation)
        exact, starts, ranked, cut = [], [], [], []
        owners: list[int] = []
        for group in _by_class(every).values():
            scores, masks = [scale(one).ravel() for one in group], [one.mask.ravel() for one in group]
            pooled, truth = np.concatenate(scores), np.concatenate(masks)
            exact.append([*class_scores(pooled, truth), float(truth.mean())])
            edges = np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1])
            thresholds = _thresholds(pooled)[:, None]
            starts.append(len(owners))
            for one, own, mask in zip(group, scores, masks, strict=True):
                owners.append(owner[id(one)])
                # the highest scores first
                place = BINS - 1 - np.searchsorted(edges, own, side="right")
                ranked.append([np.bincount(place[kind], minlength=BINS) for kind in (mask, ~mask)])
                above = own > thresholds
                cut.append([(above & mask).sum(1), (above | mask).sum(1)])
        self._exact = np.array(exact)
        self._owners, self._starts = np.array(owners), np.array(starts)
        # (prompts, 2, BINS): positives and negatives; (prompts, 2, THRESHOLDS): intersections and unions
        self._ranked, self._cut = np.array(ranked, np.float64), np.array(cut, np.float64)

    def map(self, weights: "NDArray[Any]") -> float:
        """mAP; classes that were not drawn are left out."""
        if (weights == 1).all():
            return float(self._exact[:, 0].mean())
        positive, negative = self._summed(self._ranked, weights)
        hits = positive.cumsum(1)
        taken = hits + negative.cumsum(1)
        with np.errstate(invalid="ignore"):
            found = (positive * np.nan_to_num(hits / taken)).sum(1) / hits[:, -1]
        return self._mean(np.nan_to_num(found), weights)

    def miou(self, weights: "NDArray[Any]") -> float:
        """mIoU; classes that were not drawn are left out."""
        if (weights == 1).all():
            return float(self._exact[:, 1].mean())
        intersection, union = self._summed(self._cut, weights)
        with np.errstate(invalid="ignore"):
            return self._mean(np.nan_to_num(intersection / union).max(1), weights)

    def prevalence(self, weights: "NDArray[Any]") -> float:
        """Share of a class's pixels inside its masks, mean over classes."""
        if (weights == 1).all():
            return float(self._exact[:, 2].mean())
        positive, negative = (part.sum(1) for part in self._summed(self._ranked, weights))
        with np.errstate(invalid="ignore"):
            return self._mean(np.nan_to_num(positive / (positive + negative)), weights)

    def _summed(self, counts: "NDArray[Any]", weights: "NDArray[Any]") -> "NDArray[Any]":
        """(2, classes, columns), every image counted as often as it was drawn."""
        weighted = counts * np.asarray(weights, np.float64)[self._owners, None, None]
        return np.asarray(np.add.reduceat(weighted, self._starts, 0).swapaxes(0, 1))

    def _mean(self, values: "NDArray[Any]", weights: "NDArray[Any]") -> float:
        drawn = np.add.reduceat(np.asarray(weights, np.float64)[self._owners], self._starts) > 0
        return float(values[drawn].mean()) if drawn.any() else float("nan")


def _resized(values: "NDArray[Any]", size: Sequence[int]) -> "NDArray[np.float32]":
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return F.interpolate(tensor[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()
