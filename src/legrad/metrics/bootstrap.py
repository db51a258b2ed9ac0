"""Confidence intervals by resampling items (percentile bootstrap), paired: every method sees the same draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# weights (items,), how often each item was drawn, summing to the number of items -> the statistic
Statistic = Callable[["NDArray[Any]"], float]


def mean_of(values: Sequence[float | None]) -> Statistic:
    """The mean over the items that have a value."""
    has_value = np.array([value is not None for value in values], np.float64)
    numbers = np.array([0.0 if value is None else value for value in values])

    def statistic(weights: "NDArray[Any]") -> float:
        total = weights @ has_value
        return float(weights @ numbers / total) if total else float("nan")

    return statistic


def ratio_of(function: Callable[["NDArray[Any]"], Any], counts: "NDArray[Any]") -> Statistic:
    """A function of counts that are summed over the items first.

    Args:
        function: summed counts (columns,) -> number, such as ``lambda sums: segmentation.ratios(sums)[1]``.
        counts: (items, columns).
    """
    table = np.asarray(counts, np.float64)
    return lambda weights: float(function(weights @ table))


def intervals(
    statistics: Mapping[str, Statistic],
    items: int,
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, float | None]]:
    """Percentile intervals of several methods on the same items.

    Args:
        statistics: method -> its statistic; all of the same items in the same order.
        items: their number.
        reference: the method that the others are compared with, on the same draws.
        resamples: draws of ``items`` items with replacement; those without any value are left out of the percentiles.
        seed: same seed and number of items, same draws.
        level: of confidence.

    Returns:
        method -> {"value", "low", "high"} and, with a reference, the method minus the reference as {"difference",
        "difference_low", "difference_high"}; None where there is no value.

    Raises:
        InputError: a number out of range, or an unknown reference.
    """
    if items < 1 or resamples < 1 or not 0 < level < 1:
        raise InputError(f"items and resamples are positive, level in (0, 1); got {items}, {resamples} and {level}")
    if reference is not None and reference not in statistics:
        raise InputError(f"the reference {reference!r} is none of the methods {', '.join(statistics)}")
    rng = np.random.default_rng(seed)
    values = {name: statistic(np.ones(items)) for name, statistic in statistics.items()}
    samples = {name: np.empty(resamples) for name in statistics}
    for draw in range(resamples):
        weights = np.bincount(rng.integers(0, items, items), minlength=items).astype(np.float64)
        for name, statistic in statistics.items():
            samples[name][draw] = statistic(weights)
    result: dict[str, dict[str, float | None]] = {}
    for name in statistics:
        low, high = _percentiles(samples[name], level)
        result[name] = {"value": _none_if_nan(values[name]), "low": low, "high": high}
        if reference is not None:
            low, high = _percentiles(samples[name] - samples[reference], level)
            difference = _none_if_nan(values[name] - values[reference])
            result[name] |= {"difference": difference, "difference_low": low, "difference_high": high}
    return result


def _percentiles(samples: "NDArray[Any]", level: float) -> tuple[float | None, float | None]:
    defined = samples[~np.isnan(samples)]
    if not defined.size:
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
