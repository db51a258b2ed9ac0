"""Object segmentation from a heatmap, exactly as in the lineage of Chefer et al. (CVPR 2021).

    R    = min-max of the map over the image's pixels, at S x S, after upsampling
    fg   = R > mean(R), strictly (or R > 0.5)
    accuracy = correct pixels / labelled pixels, over all images
    IoU_c    = intersection of class c / its union, both summed over all images first; mIoU = (IoU_bg + IoU_fg) / 2
    AP       = average precision of the vector (1 - R, R) against (1 - G, G), both channels pooled; mAP = its mean
               over images

The pooled AP is 0.5 for any constant map and for random ones, and changes when R is rescaled monotonically. A map
without contrast is NaN in the published code: all background, AP 0.5; ``flat`` counts these.

``measure`` gives the numbers of one image, ready for JSON; ``ratios`` those of a data set, from the sum of its images'
``counts_of``, so that runs can be stopped, merged and resampled.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from legrad.metrics import ranking
from legrad.metrics.ranges import check_shapes, is_flat, unit_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

Threshold = Literal["mean"] | float
Item = dict[str, Any]


def foreground(saliency: "NDArray[Any]", threshold: Threshold = "mean") -> "NDArray[np.bool_]":
    """Prediction (H, W): the min-maxed map is above the threshold, strictly; nothing is if the map is flat."""
    unit = unit_range(saliency)
    limit = unit.mean() if threshold == "mean" else threshold
    return np.asarray(unit > limit)  # comparisons with NaN are False


def average_precision(
    saliency: "NDArray[Any]", mask: "NDArray[Any]", ignore: "NDArray[Any] | None" = None
) -> float | None:
    """The published AP of one image: background and foreground pooled into one ranking.

    Args:
        saliency: (H, W), any range.
        mask: (H, W) bool.
        ignore: (H, W) bool, pixels that do not count.

    Returns:
        in [0, 1]; None if every pixel is ignored.
    """
    check_shapes(saliency, mask)
    keep = _labelled(mask, ignore)
    unit, truth = unit_range(saliency)[keep], np.asarray(mask, bool)[keep]
    # NaN becomes 0 in both channels: equal scores throughout
    scores = np.nan_to_num(np.concatenate([1 - unit, unit]), nan=0.0)
    return ranking.average_precision(np.concatenate([~truth, truth]), scores)


def confusion(prediction: "NDArray[Any]", mask: "NDArray[Any]", ignore: "NDArray[Any] | None" = None) -> dict[str, int]:
    """Pixels of one image: {"tp", "fp", "fn", "tn"}, ignored ones left out."""
    check_shapes(prediction, mask)
    keep = _labelled(mask, ignore)
    guess, truth = np.asarray(prediction, bool)[keep], np.asarray(mask, bool)[keep]
    return {
        "tp": int((guess & truth).sum()),
        "fp": int((guess & ~truth).sum()),
        "fn": int((~guess & truth).sum()),
        "tn": int((~guess & ~truth).sum()),
    }


def measure(
    saliency: "NDArray[Any]",
    mask: "NDArray[Any]",
    ignore: "NDArray[Any] | None" = None,
    threshold: Threshold = "mean",
) -> Item:
    """The counts and scores of one image: {"tp", "fp", "fn", "tn", "ap", "flat"}.

    Args:
        saliency: (H, W), any range: min-max is taken here.
        mask: (H, W) bool, the object.
        ignore: (H, W) bool, pixels that do not count.
        threshold: "mean" of the min-maxed map, or a number.
    """
    return {
        **confusion(foreground(saliency, threshold), mask, ignore),
        "ap": average_precision(saliency, mask, ignore),
        "flat": int(is_flat(saliency)),
    }


RATIOS = ("accuracy", "miou", "iou_background", "iou_foreground")


def counts_of(items: Sequence[Mapping[str, Any]]) -> "NDArray[np.float64]":
    """(images, 4): tp, fp, fn, tn, for ``ratios`` and the bootstrap."""
    return np.array([[row[name] for name in ("tp", "fp", "fn", "tn")] for row in items], np.float64).reshape(-1, 4)


def ratios(counts: "NDArray[Any]") -> "NDArray[np.float64]":
    """Summed counts (..., 4) -> (..., 4) of ``RATIOS``; NaN where nothing is labelled.

    An absent class whose union is empty has IoU 0, as the published code's 0 / eps.
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    total = tp + fp + fn + tn
    labelled = total > 0
    background = np.divide(tn, tn + fp + fn, out=np.zeros_like(total), where=tn + fp + fn > 0)
    object_ = np.divide(tp, tp + fp + fn, out=np.zeros_like(total), where=tp + fp + fn > 0)
    accuracy = np.divide(tp + tn, total, out=np.full_like(total, np.nan), where=labelled)
    mean_iou = np.where(labelled, (background + object_) / 2, np.nan)
    return np.stack([accuracy, mean_iou, background, object_], -1)


def _labelled(mask: "NDArray[Any]", ignore: "NDArray[Any] | None") -> "NDArray[np.bool_]":
    """The pixels that are not ignored, (H, W)."""
    if ignore is None:
        return np.ones(np.shape(mask), bool)
    check_shapes(ignore, mask)
    return ~np.asarray(ignore, bool)
