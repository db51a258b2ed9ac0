"""Does the evidence separate classes that are in an image from classes that are not? Area under the ROC curve."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.metrics import ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = Sequence[tuple[float, bool]]  # of one image: (evidence, is the class in the image) for every prompt


def auroc(
    evidence: Sequence[float], present: Sequence[bool], weights: "Sequence[float] | NDArray[Any] | None" = None
) -> float | None:
    """Chance that a class that is present has more evidence than an absent one, ties half; 0.5 is guessing.

    Args:
        evidence: of every prompt, any range.
        present: whether its class is in the image, same length.
        weights: how often each counts, same length; default once.

    Returns:
        in [0, 1]; None unless there are both present and absent classes.
    """
    truth = np.asarray(present, bool)
    counts = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    return ranking.auroc(truth, np.asarray(evidence, np.float64), counts)


class Table:
    """All prompts of all images, for resampling images."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._image = np.array([index for index, item in enumerate(items) for _ in item], np.int64)
        self.evidence = [float(value) for item in items for value, _ in item]
        self.present = [bool(present) for item in items for _, present in item]

    def statistic(self, weights: "NDArray[Any]") -> float:
        """``auroc`` with every image counted as often as ``weights`` says; NaN if undefined."""
        value = auroc(self.evidence, self.present, np.asarray(weights, np.float64)[self._image])
        return float("nan") if value is None else value
