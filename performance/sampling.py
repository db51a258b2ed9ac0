"""Comparable clock readings: the calls take turns in one process."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST, MOST = 3, 15


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int | None,
    budget: float,
    synchronise: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every contender, A B C A B C ..., after one warm-up each.

    Calls of one round run under the same load of the machine, so ratios within a round are meaningful on a busy machine
    too.

    Args:
        contenders: in the order of a round.
        repeats: rounds; None takes as many as fit ``budget`` seconds, between 3 and 15.
        budget: seconds, judged by the warm-up.
        synchronise: waits for the device; called before both readings.
        clock: seconds.

    Returns:
        ({name: one reading per round}, {name: the warm-up's reading}).
    """

    def read(call: Callable[[], Any]) -> float:
        synchronise()
        start = clock()
        call()
        synchronise()
        return clock() - start

    first = {name: read(call) for name, call in contenders.items()}
    if repeats is None:
        repeats = min(MOST, max(FEWEST, int(budget / max(sum(first.values()), 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            samples[name].append(read(call))
    return samples, first


@dataclass(frozen=True)
class Spread:
    """Median and range of some samples."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))

    def show(self, digits: int = 2) -> str:
        """``1.43 [1.40, 1.51]``, and ``1.43`` alone for a single sample."""
        if self.count == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def ratios(samples: Sequence[float], bare: Sequence[float]) -> Spread:
    """Ratios of every round's reading to the bare forward's in the same round."""
    return Spread.of([sample / base for sample, base in zip(samples, bare, strict=True)])


def quotient(above: Spread, below: Spread) -> Spread:
    """Ratio of two spreads that were not measured together: the range is the widest that they allow."""
    count = min(above.count, below.count)
    return Spread(above.median / below.median, above.low / below.high, above.high / below.low, count)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares through (x, y): (slope, intercept)."""
    if len({x for x, _ in points}) < 2:
        return math.nan, math.nan
    fit = statistics.linear_regression(*zip(*points, strict=True))
    return fit.slope, fit.intercept
