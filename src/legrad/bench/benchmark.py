"""What a benchmark is: switches, a measurement per item, and metrics that summarise the items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Summary, mean
from legrad.datasets import Dataset, Sample
from legrad.metrics import own


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


@dataclass(frozen=True)
class Switch:
    """One setting of a benchmark, as its command line offers it.

    Attributes:
        kind: type of its values; ``str`` where ``allowed`` lists them.
        default: None where it depends on what is measured.
        help: one line.
        allowed: all values that it takes, empty where any value of its type will do.
        optional: the command line hands it on only if the user gives it: its default depends on the model.
    """

    kind: type
    default: Any
    help: str
    allowed: tuple[str, ...] = ()
    optional: bool = False


def switch(help: str, optional: bool = False) -> dict[str, Any]:
    """Metadata of a field of a benchmark's dataclass that is an option of its command, see ``Switch``."""
    return {"help": help, "optional": optional}


def switches_of(benchmark: type) -> dict[str, Switch]:
    """The fields of a benchmark's dataclass that ``switch`` marks as options, by their names."""
    hints = get_type_hints(benchmark)
    switches = {}
    for entry in fields(benchmark):
        if "help" in entry.metadata:
            hint = hints[entry.name]
            allowed = get_args(hint) if get_origin(hint) is Literal else ()
            kind = str if allowed else hint
            switches[entry.name] = Switch(
                kind, entry.default, entry.metadata["help"], allowed, entry.metadata["optional"]
            )
    return switches


def with_own_metrics(metrics: Mapping[str, Metric]) -> Mapping[str, Metric]:
    """A benchmark's metrics with those that users have registered."""

    def statistic(name: str) -> Summary:
        return mean(lambda item: item.get("own", {}).get(name))

    return {
        **metrics,
        **{
            name: Metric(metric.title or name, statistic(name), metric.better, metric.meaning)
            for name, metric in own.own_metrics().items()
        },
    }


def own_protocol() -> dict[str, Any]:
    """The part of a protocol that is about metrics of users; nothing where there are none."""
    digests = {name: metric.digest for name, metric in own.own_metrics().items()}
    return {"own metrics": digests} if digests else {}


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

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Called once before the first item: ``InputError`` where this model or data cannot be measured."""
        ...

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """The scores of every sample, ready for JSON.

        Raises:
            UnsupportedModelError: the model does not support the method.
            InputError: a sample that cannot be measured.
        """
        ...
