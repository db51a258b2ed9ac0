"""Targets for speed and memory, and whether they are met."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from performance.cases import B16, BIGG, L14, SIGLIP, Case
from performance.growth import PROMPTS_BATCH_8, number_or_none
from performance.results import Results
from performance.sampling import Spread, quotient

Value = Callable[[Results], Spread | float | None]


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Attributes:
        title: the case in words.
        limit: the target.
        at_most: it is an upper limit; else a lower one.
        value: the measured number, or None.
        unit: printed after the numbers.
    """

    title: str
    limit: float
    at_most: bool
    value: Value
    unit: str = ""

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """(case, target, measured, verdict): "met", "not met" or "not measured"."""
        target = f"{'at most' if self.at_most else 'at least'} {self.limit:,g}{self.unit}"
        value = self.value(results)
        if value is None:
            return self.title, target, "", "not measured"
        median = value.median if isinstance(value, Spread) else value
        text = value.show() if isinstance(value, Spread) else f"{value:.2f}"
        met = median <= self.limit if self.at_most else median >= self.limit
        return self.title, target, text + self.unit, "met" if met else "not met"


def _time(contender: str, model: str = B16, **settings: Any) -> Case:
    return Case("time", contender, model, **settings)


def _memory(contender: str, model: str = B16, **settings: Any) -> Case:
    return Case("memory", contender, model, **settings)


def _ratio(model: str = B16, **settings: Any) -> Value:
    return lambda results: results.ratio(_time("ours", model, **settings))


def _over(above: Spread | None, below: Spread | None) -> Spread | None:
    return None if above is None or below is None else quotient(above, below)


def _authors_time(prompts: int) -> Value:
    def value(results: Results) -> Spread | None:
        return _over(*(results.ratio(_time(name, prompts=prompts)) for name in ("authors", "ours")))

    return value


def _authors_memory(prompts: int) -> Value:
    def value(results: Results) -> Spread | None:
        return _over(*(results.extra(_memory(name, prompts=prompts)) for name in ("authors", "ours")))

    return value


def _memory_over_bare(layers: int | None) -> Value:
    def value(results: Results) -> Spread | None:
        return _over(results.extra(_memory("ours", batch=64, layers=layers)), results.extra(_memory("bare", batch=64)))

    return value


def _over_weights(results: Results) -> Spread | None:
    case = _memory("ours", BIGG, dtype="bfloat16")
    return _over(results.total(case), results.weights(case))


_ON_GPU: dict[str, Any] = {"batch": 256, "dtype": "bfloat16"}


def _share_of_bare(results: Results) -> Spread | None:
    case = _time("ours", **_ON_GPU)
    return _over(results.rate(case), results.rate(case, "bare"))


GOALS = (
    Goal("1 prompt, last 2 layers, batch 8", 1.10, True, _ratio(batch=8, layers=2)),
    Goal("1 prompt, batch 1", 1.50, True, _ratio()),
    Goal("1 prompt, batch 8", 1.50, True, _ratio(batch=8)),
    Goal(
        "each further prompt, batch 8 (slope)",
        0.40,
        True,
        lambda results: number_or_none(PROMPTS_BATCH_8.slope(results)),
    ),
    Goal("native read-out, 16 prompts, batch 1", 1.25, True, _ratio(prompts=16, readout="native")),
    Goal("native read-out, 16 prompts, batch 8", 1.12, True, _ratio(batch=8, prompts=16, readout="native")),
    Goal("native read-out, 64 prompts, batch 1", 1.35, True, _ratio(prompts=64, readout="native")),
    Goal("native read-out, 64 prompts, batch 8", 1.35, True, _ratio(batch=8, prompts=64, readout="native")),
    Goal("SigLIP B/16, pooler route, 1 prompt, batch 1", 1.30, True, _ratio(SIGLIP)),
    Goal("SigLIP B/16, pooler route, 1 prompt, batch 8", 1.30, True, _ratio(SIGLIP, batch=8)),
    Goal("authors / ours, time, 1 prompt, batch 1", 1.2, False, _authors_time(1)),
    Goal("authors / ours, time, 16 prompts, batch 1", 4.0, False, _authors_time(16)),
    Goal("authors / ours, extra memory, 16 prompts, batch 1", 8, False, _authors_memory(16)),
    Goal("extra memory / bare forward's, batch 64, last 2 layers", 1.3, True, _memory_over_bare(2)),
    Goal("extra memory / bare forward's, batch 64, all layers", 1.3, True, _memory_over_bare(None)),
    Goal(
        "ViT-L/14 at 1022 x 1022, all 24 layers, peak of the process",
        6,
        True,
        lambda results: results.total(_memory("ours", L14, size=1022)),
        " GB",
    ),
    Goal("ViT-bigG/14, bf16, 48 layers, peak of the process / weights", 1.3, True, _over_weights),
    Goal(
        "GPU: ViT-B/16, bf16, batch 256",
        4000,
        False,
        lambda results: results.rate(_time("ours", **_ON_GPU)),
        " images/s",
    ),
    Goal("GPU: the same, share of the bare forward's rate", 0.6, False, _share_of_bare),
)
