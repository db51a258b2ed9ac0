"""What a benchmark is: switches, a measurement per item, and metrics that summarise the items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from legrad.bench.subject import Subject
from legrad.bench.summaries import Summary
from legrad.datasets import Dataset, Sample


@dataclass(frozen=True)
class Metric:
    """One number of a benchmark.

    Attributes:
        title: for a table's head.
        statistic: its ``Summary``.
        better: which direction is good, None where neither is.
        chance: what a map that knows nothing gets: a number, or a summary of the items like ``statistic``.
        meaning: one sentence for a new reader.
        detail: left out of the page's tables: one of many numbers that a figure shows better, or another definition
            than the published one.
    """

    title: str
    statistic: Summary
    better: Literal["higher", "lower"] | None
    meaning: str
    chance: float | Summary | None = None
    detail: bool = False


class Benchmark(Protocol):
    """A question to a model's maps; frozen dataclasses whose fields are the protocol's switches."""

    @property
    def name(self) -> str:
        """On the command line, and the stem of the files."""
        ...

    @property
    def batch(self) -> int:
        """How many samples are measured together."""
        ...

    @property
    def question(self) -> str:
        """What is measured, in one sentence."""
        ...

    @property
    def reading(self) -> str:
        """How to read the numbers, a few sentences."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The first one is the headline."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """All switches and conventions, ready for JSON."""
        ...

    def prepare(self, subject: Subject, data: Dataset) -> None:
        """Called once before the first item: ``InputError`` where this model or data cannot be measured."""
        ...

    def measure(self, subject: Subject, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """The scores of every sample, ready for JSON.

        Raises:
            UnsupportedModelError: the model does not support the method.
            InputError: a sample that cannot be measured.
        """
        ...
