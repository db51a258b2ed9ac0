"""LeGrad's own switches, scored by another benchmark: number of layers, read-out, ReLU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from legrad.anatomy import ViTAnatomy
from legrad.bench.benchmark import Benchmark, Metric
from legrad.bench.subject import Subject, known_methods
from legrad.datasets import Dataset, Sample


def variants(anatomy: ViTAnatomy) -> list[str]:
    """The default first; then the last 1 to L layers with each read-out, with and without the positive part."""
    methods = [name for name in ("legrad", "legrad-norelu") if name in known_methods()]
    return [
        "legrad",
        *(
            f"{method}:layers={layers}:readout={readout}"
            for method in methods
            for readout in anatomy.readouts
            for layers in range(1, len(anatomy.blocks) + 1)
        ),
    ]


@dataclass(frozen=True)
class Ablation:
    """Another benchmark, over the variants of LeGrad.

    Attributes:
        base: that benchmark.
    """

    base: Benchmark
    name: ClassVar[str] = "ablation"
    question: ClassVar[str] = "Which layers, which read-out, and is the positive part needed?"

    @property
    def batch(self) -> int:
        """As the base."""
        return self.base.batch

    @property
    def reading(self) -> str:
        """As the base."""
        return (
            f"Scored by the benchmark '{self.base.name}'. layers=K are the last K blocks; 'norelu' leaves out the "
            f"positive part; differences are from LeGrad's default settings. {self.base.reading}"
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """As the base."""
        return self.base.metrics

    def protocol(self) -> Mapping[str, Any]:
        """The base's, and its name."""
        return {"scored by": self.base.name, **self.base.protocol()}

    def prepare(self, subject: Subject, data: Dataset) -> None:
        """As the base."""
        self.base.prepare(subject, data)

    def measure(self, subject: Subject, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """As the base."""
        return self.base.measure(subject, samples, method)
