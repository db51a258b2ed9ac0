"""Bootstrap intervals over items, paired across methods: every method sees the same draws of the same items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Item = Mapping[str, Any]
# how often each item was drawn, (items,) -> the metric
Statistic = Callable[[Array], float]

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with the interval that 95 % of the bootstrap draws fall into."""

    value: float
    low: float
    high: float


def ratio(over: Callable[[Item], float], under: Callable[[Item], float]) -> Callable[[Sequence[Item]], Statistic]:
    """Ratio of two sums over items; NaN where the lower sum is zero."""

    def of(items: Sequence[Item]) -> Statistic:
        pairs = np.array([[over(item), under(item)] for item in items], np.float64).reshape(-1, 2)

        def statistic(weights: Array) -> float:
            top, bottom = weights @ pairs
            return float(top / bottom) if bottom else float("nan")

        return statistic

    return of


def mean(of: Callable[[Item], float]) -> Callable[[Sequence[Item]], Statistic]:
    """Mean over the items that have the number; None and NaN are left out."""

    def known(item: Item) -> bool:
        number = of(item)
        return number is not None and not np.isnan(number)

    return ratio(lambda item: of(item) if known(item) else 0.0, lambda item: float(known(item)))


def compare(
    items: Mapping[str, Mapping[str, Item]],
    statistic: Callable[[Sequence[Item]], Statistic],
    reference: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """A metric of every method, and its difference from a reference method, with intervals.

    Args:
        items: method -> sample key -> the item's scores; methods may have different items.
        statistic: items -> how a draw of them is summarised.
        reference: differences are (method - reference) over the items that both have.
        seed: of the draws, which all methods share.
        resamples: number of draws.

    Returns:
        {method: interval} and {method: interval of the difference}, the latter empty without a reference.
    """
    keys = sorted({key for scores in items.values() for key in scores})
    position = {key: index for index, key in enumerate(keys)}
    rng = np.random.default_rng(seed)
    draws = np.stack(
        [np.bincount(rng.integers(0, len(keys), len(keys)), minlength=len(keys)) for _ in range(resamples)]
    ).astype(np.float64)

    def sampled(scores: Mapping[str, Item], common: Sequence[str]) -> tuple[float, Array]:
        one = statistic([scores[key] for key in common])
        columns = [position[key] for key in common]
        return one(np.ones(len(common))), np.array([one(draw[columns]) for draw in draws])

    values = {method: _interval(*sampled(scores, sorted(scores))) for method, scores in items.items() if scores}
    differences = {}
    if reference is not None and items.get(reference):
        for method, scores in items.items():
            common = sorted(set(scores) & set(items[reference]))
            if method != reference and common:
                (value, own), (base, others) = sampled(scores, common), sampled(items[reference], common)
                differences[method] = _interval(value - base, own - others)
    return values, differences


def _interval(value: float, draws: Array) -> Interval:
    """Percentile interval; a draw may lack all items of a method, or all positives: those do not count."""
    known = draws[~np.isnan(draws)]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(value, float(low), float(high))
