"""Images per second, next to the bare forward pass of the same model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Item, Summary
from legrad.bench.variants import Variant
from legrad.datasets import Dataset, Sample
from legrad.metrics.bootstrap import Statistic


def median(of: str) -> Summary:
    """Median of one number over a draw of items."""

    def make(items: Sequence[Item]) -> Statistic:
        values = np.array([item[of] for item in items], np.float64)
        order = np.argsort(values)

        def statistic(weights: NDArray[Any]) -> float:
            total = np.cumsum(weights[order])
            if not len(total) or not total[-1]:
                return float("nan")
            low, high = (int(np.searchsorted(total, total[-1] / 2, side)) for side in ("left", "right"))
            return float(values[order][[low, min(high, len(order) - 1)]].mean())

        return statistic

    return make


def per_second(of: str) -> Summary:
    """One over the median seconds."""

    def make(items: Sequence[Item]) -> Statistic:
        seconds = median(of)(items)
        return lambda weights: 1 / seconds(weights)

    return make


def slowdown(items: Sequence[Item]) -> Statistic:
    """Median seconds of the method over those of the bare forward."""
    method, forward = median("seconds")(items), median("forward")(items)
    return lambda weights: method(weights) / forward(weights)


@dataclass(frozen=True)
class Speed:
    """One image and one prompt at a time; methods take turns on every image.

    Attributes:
        warm_up: images that each method explains before the clock counts.
    """

    warm_up: int = 3
    _warm: set[str] = field(default_factory=set, compare=False, repr=False)
    name: ClassVar[str] = "speed"
    batch: ClassVar[int] = 1
    question: ClassVar[str] = "How many images per second does a method explain?"
    reading: ClassVar[str] = (
        "Batch of one image and one prompt, image already a tensor, text already encoded, from the call to the "
        "map on the patch grid in main memory; the median over the images. Methods take turns, and every call has a "
        "bare forward pass beside it, so that a busy machine hurts all alike. Numbers of other machines do not compare."
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "fps": Metric("images per second", per_second("seconds"), "higher", "one over the median seconds"),
        "slowdown": Metric("bare forwards", slowdown, "lower", "median seconds over those of the bare forward", 1.0),
        "fps_forward": Metric(
            "images per second, bare forward", per_second("forward"), None, "the same model without any explanation"
        ),
    }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            "warm_up": self.warm_up,
            "batch": 1,
            "prompts": 1,
            "timed": "tensor in, map on the patch grid in main memory out; no decoding, no text tower",
            "order": "methods take turns on every image",
            "clock": "time.perf_counter, device synchronised before both readings",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Any model and any data with labels will do."""
        ground_truth.need(data, "label")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """Seconds of the explanation and of the bare forward."""
        variant = Variant.parse(method).on_patches()
        scores = []
        for sample in samples:
            inputs, targets = model.inputs([sample.image]), [[model.classes.target(ground_truth.label(sample))]]

            def explain() -> None:
                model.explain(inputs, targets, variant.method, **variant.arguments)  # noqa: B023 - called at once

            def forward() -> None:
                model.forward(inputs)  # noqa: B023 - called at once

            for _ in range(0 if method in self._warm else self.warm_up):
                explain()
                forward()
            self._warm.add(method)
            scores.append({"seconds": _timed(model, explain), "forward": _timed(model, forward)})
        return scores


def _timed(model: ModelUnderTest, call: Callable[[], None]) -> float:
    model.synchronize()
    start = time.perf_counter()
    call()
    model.synchronize()
    return time.perf_counter() - start
