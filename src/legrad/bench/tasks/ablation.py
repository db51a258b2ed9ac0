"""LeGrad's own switches, scored by another benchmark: number of layers, read-out, ReLU, heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from legrad.bench.benchmark import Benchmark, Metric
from legrad.bench.model import ModelUnderTest
from legrad.bench.variants import known_methods
from legrad.datasets import Dataset, Sample
from legrad.errors import UnsupportedModelError
from legrad.methods import heads
from legrad.models.anatomy import ViTAnatomy


def variants(anatomy: ViTAnatomy) -> list[str]:
    """The default first; then the last 1 to L layers with each read-out, with and without the positive part; then some
    heads of all layers, and every single head of the last one."""
    methods = [name for name in ("legrad", "legrad-norelu") if name in known_methods()]
    number = heads_of(anatomy)
    return [
        "legrad",
        *(
            f"{method}:layers={layers}:readout={readout}"
            for method in methods
            for readout in anatomy.readouts
            for layers in range(1, len(anatomy.blocks) + 1)
        ),
        *(f"legrad:heads={choice}" for choice in (heads.CHOICES if number > 1 else ())),
        *(f"legrad:layers=1:heads={head}" for head in range(number)),
    ]


def heads_of(anatomy: ViTAnatomy) -> int:
    """How many there are, 0 if they cannot be told apart."""
    try:
        return heads.num_heads(anatomy)
    except UnsupportedModelError:
        return 0


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
            "positive part. heads=strongest is the one head of every layer with most of the relevance for the asked "
            "target, heads=stronger-half half of them, and the opposite; layers=1:heads=H is head H of the last block "
            f"alone. Differences are from LeGrad's default settings. {self.base.reading}"
        )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """As the base."""
        return self.base.metrics

    def protocol(self) -> Mapping[str, Any]:
        """The base's, and its name."""
        return {"scored by": self.base.name, **self.base.protocol()}

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """As the base."""
        self.base.prepare(model, data)

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """As the base."""
        return self.base.measure(model, samples, method)
