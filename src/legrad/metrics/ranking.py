"""Areas under the curves of a ranking: average precision and ROC.

The definitions are those of scikit-learn, which the tests compare with. They are written out here because
scikit-learn's input checks take four times as long as the sorting, for every map of every method.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def average_precision(truth: "NDArray[Any]", scores: "NDArray[Any]") -> float | None:
    """Exact, step-wise average precision: the sum over distinct scores of (recall gained) * (precision there).

    Args:
        truth: (N,) bool.
        scores: (N,), no NaN.

    Returns:
        in [0, 1]; None without a single positive.
    """
    if not truth.any():
        return None
    order = np.argsort(-scores)
    last = _ends(scores[order])
    hits = np.cumsum(truth[order])[last]
    return float(np.diff(hits, prepend=0) @ (hits / (last + 1)) / hits[-1])


def auroc(truth: "NDArray[Any]", scores: "NDArray[Any]", weights: "NDArray[Any]") -> float | None:
    """Chance that a positive has a higher score than a negative, ties half.

    Args:
        truth: (N,) bool.
        scores: (N,), no NaN.
        weights: (N,), how often each counts, not negative.

    Returns:
        in [0, 1]; None unless there are both kinds.
    """
    order = np.argsort(scores)
    last = _ends(scores[order])
    positive, negative = (
        np.diff(np.cumsum(np.where(selected, weights, 0.0)[order])[last], prepend=0) for selected in (truth, ~truth)
    )
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return None
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / pairs)


def _ends(ordered: "NDArray[Any]") -> "NDArray[np.int64]":
    """Index of the last of every run of equal values."""
    return np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
