"""DenseAV's scorer for sound- and speech-prompted segmentation (Hamilton et al., CVPR 2024).

The pixels of all prompts of a class are pooled. AP_c is their exact average precision; IoU_c is the best of 20
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
from legrad.metrics.ranges import unit_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

Normalisation = Literal["dataset", "image"]
THRESHOLDS = 20
BINS = 200  # quantiles of a class's scores, by which resamples are ranked


@dataclass(frozen=True, eq=False)
class Prompted:
    """The map and the mask of one prompt, kept whole: a class can be scored only when all its pixels are there.

    Attributes:
        name: the class.
        relevance: (rows, cols), raw, at the resolution of the features.
        mask: (S, S) bool, in the frame of the model's input.
    """

    name: str
    relevance: "NDArray[Any]"
    mask: "NDArray[Any]"

    def to_json(self) -> dict[str, Any]:
        """A JSON object for a result file; ``relevance`` is stored in float32."""
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
        """Read what ``to_json`` wrote.

        Raises:
            InputError: not such an object.
        """
        try:
            values = np.frombuffer(base64.b64decode(content["relevance"]), "<f4").reshape(content["shape"])
            bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(content["mask"])), np.uint8))
            mask = bits[: int(np.prod(content["side"]))].reshape(content["side"]).astype(bool)
            return cls(str(content["name"]), values.astype(np.float32), mask)
        except (KeyError, ValueError, TypeError, zlib.error) as error:
            raise InputError(f"not a stored prompt of the audio benchmark: {error}") from error


def class_scores(scores: "NDArray[Any]", truth: "NDArray[Any]") -> tuple[float, float]:
    """Average precision and best IoU of one class.

    Args:
        scores: of all its pixels, any shape.
        truth: bool, same shape.

    Returns:
        (AP, best IoU), both in [0, 1]; (0, 0) for a class without a single positive pixel.

    Raises:
        InputError: the shapes differ, or there are no scores.
    """
    pooled, positive = np.asarray(scores, np.float32).ravel(), np.asarray(truth, bool).ravel()
    if pooled.shape != positive.shape or not pooled.size:
        raise InputError(f"scores and truth have one shape, got {np.shape(scores)} and {np.shape(truth)}")
    precision = ranking.average_precision(positive, pooled)
    if precision is None:
        return 0.0, 0.0
    best = 0.0
    for threshold in _thresholds(pooled):
        above = pooled > threshold
        union = int((above | positive).sum())
        best = max(best, int((above & positive).sum()) / union if union else 0.0)
    return precision, best


def _thresholds(pooled: "NDArray[Any]") -> "NDArray[np.float32]":
    return torch.linspace(
        float(pooled.min()), float(pooled.max()), THRESHOLDS, device="cpu", dtype=torch.float32
    ).numpy()


def _by_class(items: Sequence[Prompted]) -> dict[str, list[Prompted]]:
    members: dict[str, list[Prompted]] = {}
    for item in items:
        members.setdefault(item.name, []).append(item)
    return members


class _Scale:
    """Prompt -> scores (S, S), scaled by the minimum and maximum of all prompts or of its own map."""

    def __init__(self, items: Sequence[Prompted], normalisation: Normalisation) -> None:
        self._per_map = normalisation == "image"
        self._low = min(float(np.min(item.relevance)) for item in items)
        self._spread = max(float(np.max(item.relevance)) for item in items) - self._low

    def __call__(self, item: Prompted) -> "NDArray[np.float32]":
        size = item.mask.shape
        if self._per_map:
            return np.asarray(np.nan_to_num(unit_range(_resize(item.relevance, size))), np.float32)
        return _resize((item.relevance - self._low) / (self._spread or 1.0), size)


class Table:
    """The prompts of many images, for resampling: the methods take how often each image was drawn, (images,).

    With every image drawn once they are exact. Resamples are ranked by ``BINS``
    quantiles of a class's scores, and cut at the thresholds of all its prompts; sorting each anew would take hours.

    Args:
        items: the prompts of every image.
        normalisation: "dataset" or "image", see the top of this file.
    """

    def __init__(self, items: Sequence[Sequence[Prompted]], normalisation: Normalisation) -> None:
        prompts = [prompt for item in items for prompt in item]
        image_of = {id(prompt): index for index, item in enumerate(items) for prompt in item}
        scale = _Scale(prompts, normalisation)
        exact, starts, histograms, overlaps = [], [], [], []
        image_indices: list[int] = []
        for group in _by_class(prompts).values():
            scores, masks = [scale(prompt).ravel() for prompt in group], [prompt.mask.ravel() for prompt in group]
            pooled, truth = np.concatenate(scores), np.concatenate(masks)
            exact.append([*class_scores(pooled, truth), float(truth.mean())])
            edges = np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1])
            thresholds = _thresholds(pooled)[:, None]
            starts.append(len(image_indices))
            for prompt, values, mask in zip(group, scores, masks, strict=True):
                image_indices.append(image_of[id(prompt)])
                # bin 0 holds the highest scores
                bins = BINS - 1 - np.searchsorted(edges, values, side="right")
                histograms.append([np.bincount(bins[region], minlength=BINS) for region in (mask, ~mask)])
                above = values > thresholds
                overlaps.append([(above & mask).sum(1), (above | mask).sum(1)])
        self._exact = np.array(exact)
        self._image_indices, self._starts = np.array(image_indices), np.array(starts)
        # (prompts, 2, BINS): positives and negatives; (prompts, 2, THRESHOLDS): intersections and unions
        self._histograms, self._overlaps = np.array(histograms, np.float64), np.array(overlaps, np.float64)

    def map(self, weights: "NDArray[Any]") -> float:
        """mAP; classes that were not drawn are left out."""
        if (weights == 1).all():
            return float(self._exact[:, 0].mean())
        positive, negative = self._weighted_sums(self._histograms, weights)
        hits = positive.cumsum(1)
        above = hits + negative.cumsum(1)
        with np.errstate(invalid="ignore"):
            precision = (positive * np.nan_to_num(hits / above)).sum(1) / hits[:, -1]
        return self._mean(np.nan_to_num(precision), weights)

    def miou(self, weights: "NDArray[Any]") -> float:
        """mIoU; classes that were not drawn are left out."""
        if (weights == 1).all():
            return float(self._exact[:, 1].mean())
        intersection, union = self._weighted_sums(self._overlaps, weights)
        with np.errstate(invalid="ignore"):
            return self._mean(np.nan_to_num(intersection / union).max(1), weights)

    def prevalence(self, weights: "NDArray[Any]") -> float:
        """Share of a class's pixels inside its masks, mean over classes."""
        if (weights == 1).all():
            return float(self._exact[:, 2].mean())
        positive, negative = (part.sum(1) for part in self._weighted_sums(self._histograms, weights))
        with np.errstate(invalid="ignore"):
            return self._mean(np.nan_to_num(positive / (positive + negative)), weights)

    def _weighted_sums(self, counts: "NDArray[Any]", weights: "NDArray[Any]") -> "NDArray[Any]":
        """(2, classes, columns), every image counted as often as it was drawn."""
        weighted = counts * np.asarray(weights, np.float64)[self._image_indices, None, None]
        return np.asarray(np.add.reduceat(weighted, self._starts, 0).swapaxes(0, 1))

    def _mean(self, values: "NDArray[Any]", weights: "NDArray[Any]") -> float:
        is_sampled = np.add.reduceat(np.asarray(weights, np.float64)[self._image_indices], self._starts) > 0
        return float(values[is_sampled].mean()) if is_sampled.any() else float("nan")


def _resize(values: "NDArray[Any]", size: Sequence[int]) -> "NDArray[np.float32]":
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return F.interpolate(tensor[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()
