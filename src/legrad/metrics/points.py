"""p-mIoU: open-vocabulary localisation measured at labelled points (Open Images V7).

A point is foreground iff the map, min-maxed at the image's resolution, is above 0.5 there, strictly. TP and FN are
positive points in and out of the foreground, FP and TN negative ones; IoU = TP / (TP + FP + FN), foreground only.

The publication does not say what is averaged, so both are computed: ``p_miou`` pools the counts of a class over all
images and takes the mean over classes; ``p_miou_pairs`` takes the mean over pairs of image and class. An IoU whose
denominator is 0 (no positive point, no false one) is skipped.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.metrics.ranges import is_flat, unit_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = dict[str, list[int]]  # class name -> [tp, fp, fn, tn, flat]


def measure(
    saliency: "NDArray[Any]", positive: "NDArray[Any]", negative: "NDArray[Any]", threshold: float = 0.5
) -> list[int]:
    """One class in one image: [tp, fp, fn, tn, flat].

    Args:
        saliency: (H, W), any range: min-max is taken here. Without contrast everything is background, and flat is 1.
        positive: (P, 2) x, y as indices into the map, see ``framing.frame_points``.
        negative: (N, 2), the same.
        threshold: of the min-maxed map.
    """
    above = unit_range(saliency) > threshold
    yes, no = (above[points[:, 1], points[:, 0]] for points in (np.asarray(positive), np.asarray(negative)))
    hits, false_alarms = int(yes.sum()), int(no.sum())
    return [hits, false_alarms, len(yes) - hits, len(no) - false_alarms, int(is_flat(saliency))]


class Table:
    """The pairs of many images as arrays, for resampling: ``statistic`` takes how often each image was drawn.

    Args:
        items: one {class: ``measure``} per image.
    """

    def __init__(self, items: Sequence[Mapping[str, Sequence[int]]]) -> None:
        names = {name: index for index, name in enumerate(sorted({name for item in items for name in item}))}
        rows = [(index, names[name], *counts) for index, item in enumerate(items) for name, counts in item.items()]
        values = np.array(rows, np.int64).reshape(-1, 7)
        self._image, self._class, self._classes = values[:, 0], values[:, 1], len(names)
        self.counts = values[:, 2:6].astype(np.float64)

    def class_counts(self, weights: "NDArray[Any]") -> "NDArray[np.float64]":
        """(classes, 4), every image counted as often as ``weights`` (images,) says."""
        weighted = self.counts * np.asarray(weights, np.float64)[self._image, None]
        return np.stack([np.bincount(self._class, column, self._classes) for column in weighted.T], -1)

    def statistic(self, weights: "NDArray[Any]") -> float:
        """``p_miou`` of a resample; classes that were not drawn are skipped."""
        return mean_iou(self.class_counts(weights))

    def pairs_statistic(self, weights: "NDArray[Any]") -> float:
        """``p_miou_pairs`` of a resample."""
        return mean_iou(self.counts, np.asarray(weights, np.float64)[self._image])


def mean_iou(counts: "NDArray[Any]", weights: "NDArray[Any] | None" = None) -> float:
    """Mean of TP / (TP + FP + FN) over rows (rows, 4); those with an empty union are skipped, NaN if all are."""
    union = counts[:, :3].sum(1)
    defined = union > 0
    row_weights = defined.astype(np.float64) if weights is None else defined * weights
    if not row_weights.sum():
        return float("nan")
    return float(np.average(counts[defined, 0] / union[defined], weights=row_weights[defined]))
