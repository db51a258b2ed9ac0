"""Does evidence tell "it is there" from "it is not"? Area under the ROC curve: 0.5 is chance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.metrics import ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = Sequence[tuple[float, bool]]  # of one image: (evidence, is it there) for every prompt


def auroc(
    evidence: Sequence[float], present: Sequence[bool], weights: "Sequence[float] | NDArray[Any] | None" = None
) -> float | None:
    """Chance that what is there has more evidence than what is not, ties half; None unless there are both."""
    truth = np.asarray(present, bool)
    counted = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    return ranking.auroc(truth, np.asarray(evidence, np.float64), counted)


def summarise(items: Sequence[Item]) -> dict[str, Any]:
    """The data set's numbers.

    Returns:
        ``auroc`` over all prompts of all images together, ``auroc_images`` the mean over images of their own
        (None where undefined), and counts.
    """
    table = Table(items)
    single = [auroc([e for e, _ in item], [p for _, p in item]) for item in items]
    known = [value for value in single if value is not None]
    return {
        "auroc": auroc(table.evidence, table.present),
        "auroc_images": float(np.mean(known)) if known else None,
        "images": len(items),
        "images_without_both": len(items) - len(known),
        "present": int(np.sum(table.present)),
        "absent": int(np.sum(~np.asarray(table.present, bool))),
    }


class Table:
    """All prompts of all images, for resampling images."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._image = np.array([index for index, item in enumerate(items) for _ in item], np.int64)
        self.evidence = [float(value) for item in items for value, _ in item]
        self.present = [bool(there) for item in items for _, there in item]

    def statistic(self, weights: "NDArray[Any]") -> float:
        """``auroc`` with every image counted as often as ``weights`` says; NaN if undefined."""
        value = auroc(self.evidence, self.present, np.asarray(weights, np.float64)[self._image])
        return float("nan") if value is None else value
