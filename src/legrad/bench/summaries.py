"""A metric of every method with its interval, and its difference from a reference on the items that both have."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from legrad.metrics.bootstrap import Statistic, intervals, mean_of

Item = Mapping[str, Any]
# the scores of some items -> how a draw of them is summarised
Summary = Callable[[Sequence[Item]], Statistic]

RESAMPLES = 1000
LEVEL = 0.95
_DIFFERENCE = ("difference", "difference_low", "difference_high")


def mean(of: Callable[[Item], float | None]) -> Summary:
    """Mean over the items that have the number."""
    return lambda items: mean_of([of(item) for item in items])


def ratio(over: Callable[[Item], float], under: Callable[[Item], float]) -> Summary:
    """Ratio of two sums over the items."""

    def of(items: Sequence[Item]) -> Statistic:
        tops, bottoms = mean_of([over(item) for item in items]), mean_of([under(item) for item in items])

        def statistic(weights: Any) -> float:
            bottom = bottoms(weights)
            return tops(weights) / bottom if bottom else float("nan")

        return statistic

    return of


def compare(
    items: Mapping[str, Mapping[str, Item]], summary: Summary, reference: str, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float | None]]:
    """A metric of every method that has items, with intervals.

    Args:
        items: method -> sample key -> the item's scores; methods may have different items.
        summary: of the metric.
        reference: the difference is (method - reference) over the items that both have, on the same draws.
        seed: of the draws.
        resamples: how many.

    Returns:
        method -> {"value", "low", "high", "difference", "difference_low", "difference_high", "items", "pairs"};
        the difference is None for the reference itself, and where no item is common. "items" is how many there are,
        "pairs" how many of them the reference has too.
    """
    base = items.get(reference, {})
    numbers: dict[str, dict[str, float | None]] = {}
    # most methods have the same items: their draws and their own numbers are needed once
    same_items = [method for method, scores in items.items() if scores and scores.keys() == base.keys()]
    if same_items:
        keys = sorted(base)
        statistics = {method: summary([items[method][key] for key in keys]) for method in same_items}
        numbers.update(intervals(statistics, len(keys), reference, resamples, seed, LEVEL))
        numbers[reference] |= dict.fromkeys(_DIFFERENCE)
    for method, scores in items.items():
        if method in numbers or not scores:
            continue
        alone = intervals({method: summary(list(scores.values()))}, len(scores), None, resamples, seed, LEVEL)[method]
        numbers[method] = {**alone, **dict.fromkeys(_DIFFERENCE)}
        common = sorted(scores.keys() & base.keys())
        if common:
            pair = {name: summary([items[name][key] for key in common]) for name in (reference, method)}
            both = intervals(pair, len(common), reference, resamples, seed, LEVEL)[method]
            numbers[method] |= {name: both[name] for name in _DIFFERENCE}
    for method, result in numbers.items():
        result |= {"items": len(items[method]), "pairs": len(items[method].keys() & base.keys())}
    return {method: numbers[method] for method in items if method in numbers}
