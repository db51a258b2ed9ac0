"""Metrics of one's own, which ``legrad bench segmentation`` and ``localisation`` compute beside theirs."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from legrad.checks import brief
from legrad.choices import check_choice
from legrad.errors import InputError, warn
from legrad.plugins import loaded, source_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = "legrad.metrics"  # of entry points
Measure = Callable[["NDArray[np.float32]", "NDArray[np.bool_]"], float | None]


@dataclass(frozen=True)
class OwnMetric:
    """A metric of one map and one mask; the benchmark's number is the mean over the objects, then over the images.

    Attributes:
        name: in the files, and for ``legrad bench table --metric``.
        function: map (H, W), raw relevance in the pixels of the model's input, and mask (H, W) -> a number; None where
            it has no meaning.
        better: which direction is good, None where neither is.
        title: for the head of a table.
        meaning: one sentence for a new reader.
    """

    name: str
    function: Measure
    better: Literal["higher", "lower"] | None = "higher"
    title: str = ""
    meaning: str = "a metric of your own"

    @property
    def digest(self) -> str:
        """Changes with the function's source: what other code measured is measured again."""
        return source_digest(self.function)


_METRICS: dict[str, OwnMetric] = {}


def register_metric(
    name: str | OwnMetric,
    function: Measure | None = None,
    better: Literal["higher", "lower"] | None = "higher",
    title: str = "",
    meaning: str = "a metric of your own",
) -> OwnMetric:
    """Add a metric of your own to the benchmarks that have masks (segmentation, localisation).

    >>> def covered(saliency, mask):
    ...     return float((saliency[mask] > saliency.mean()).mean())
    >>> legrad.register_metric("covered", covered, meaning="share of the object above the map's mean").name
    'covered'

    In a package: an entry point of the group "legrad.metrics", which names an ``OwnMetric`` or a function.

    Args:
        name: letters, digits, dashes and underscores; one of your own is replaced.
        function: map (H, W), raw relevance in the model's input pixels, and mask (H, W) bool -> a number or None.
        better: "higher", "lower", or None where neither is good.
        title: for the head of a table; default the name.
        meaning: one sentence for the report.

    Raises:
        InputError: an argument that cannot be used.
    """
    metric = name if isinstance(name, OwnMetric) else OwnMetric(name, function, better, title, meaning)  # type: ignore[arg-type] # checked below
    label = metric.name.replace("-", "").replace("_", "") if isinstance(metric.name, str) else ""
    if not label.isalnum():
        raise InputError(f"the name of a metric is made of letters, digits, - and _, got {brief(metric.name)}")
    if not callable(metric.function):
        raise InputError(f"a metric is a function of a map and a mask, got {brief(metric.function)}")
    if metric.better is not None:
        check_choice("better", metric.better, ("higher", "lower"))
    _METRICS[metric.name] = metric
    return metric


def own_metrics() -> Mapping[str, OwnMetric]:
    """All that are registered, by entry points too."""
    _load_entry_points()
    return _METRICS


@functools.cache
def _load_entry_points() -> None:
    for name, value in loaded(GROUP):
        try:
            register_metric(
                value if isinstance(value, OwnMetric) else name, None if isinstance(value, OwnMetric) else value
            )
        except InputError as error:
            warn(f"the entry point {name!r} of {GROUP} is left out: {error}")


def measured(maps: Sequence[Any], masks: Sequence[Any]) -> dict[str, dict[str, float | None]]:
    """ "own": every metric's mean over the objects of an image; nothing where none is registered.

    Raises:
        InputError: a metric that returns no number.
    """
    metrics = own_metrics()
    return {"own": {name: _mean(metric, maps, masks) for name, metric in metrics.items()}} if metrics else {}


def _mean(metric: OwnMetric, maps: Sequence[Any], masks: Sequence[Any]) -> float | None:
    numbers = []
    for saliency, mask in zip(maps, masks, strict=True):
        value = metric.function(saliency, mask)
        if value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"metric {metric.name!r} returns a number or None, got {brief(value)}") from None
        if math.isfinite(number):
            numbers.append(number)
    return sum(numbers) / len(numbers) if numbers else None
