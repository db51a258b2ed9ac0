"""The result of a run: one JSON file with everything that a reader needs to judge it."""

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from legrad.atomic import WriteError, write_atomically
from legrad.bench.benchmark import Benchmark
from legrad.bench.summaries import LEVEL, RESAMPLES, compare
from legrad.errors import InputError
from legrad.results.measured import SCHEMA, read
from legrad.versions import versions

_DISTRIBUTIONS = ("legrad", "torch", "torchvision", "numpy", "pillow", "timm", "open_clip_torch", "transformers")


@dataclass(frozen=True)
class Result:
    """A result file's content, see ``summarise`` for its parts."""

    content: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Whole or not at all.

        Raises:
            InputError: it cannot be written, or a file that is no result is there.
        """
        if os.path.lexists(path):
            try:
                Result.read(path)
            except InputError as error:
                raise WriteError(f"{path} is in the way, and is not replaced: {error}") from None
        write_atomically(path, json.dumps(finite(self.content), indent=1, allow_nan=False).encode())

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Raises ``InputError`` if the file is no result."""
        return cls(read(path))


def summarise(
    benchmark: Benchmark,
    described: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    *,
    methods: Sequence[str],
    unsupported: Mapping[str, str],
    cuts: Sequence[str],
    complete: bool,
    seed: int,
) -> Result:
    """Summarise the journal's records of one settings; methods of earlier runs that are not named now are kept.

    The content: "benchmark", "question", "reading", "complete", "settings" (protocol, subject, data, seed), "versions",
    "machine", "methods" (items, problems, seconds per item, metrics with intervals and differences from the first
    method), "chance", "cuts", "unsupported", "problems" (one per sample and reason), "scores" (every item's).
    """
    scores: dict[str, dict[str, Any]] = {method: {} for method in methods}
    costs: dict[str, list[float]] = {}
    broken: dict[str, int] = {}
    problems: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if "scores" in record:
            scores.setdefault(record["method"], {})[record["key"]] = record["scores"]
            costs.setdefault(record["method"], []).append(record["seconds"])
        else:
            broken[record["method"]] = broken.get(record["method"], 0) + 1
            problems.setdefault((record["key"], record["problem"]), []).append(record["method"])
    metrics: dict[str, dict[str, Any]] = {method: {} for method in scores}
    chance: dict[str, Any] = {}
    for name, metric in benchmark.metrics.items():
        for method, numbers in compare(scores, metric.statistic, methods[0], seed).items():
            metrics[method][name] = numbers
        if callable(metric.chance):
            items = next((of for of in scores.values() if of), {})
            chance[name] = metric.chance(list(items.values()))(np.ones(len(items))) if items else None
        else:
            chance[name] = metric.chance
    return Result(
        {
            "schema": SCHEMA,
            "benchmark": benchmark.name,
            "question": benchmark.question,
            "reading": benchmark.reading,
            "complete": complete,
            "settings": described,
            "statistics": {"resamples": RESAMPLES, "level": LEVEL, "paired with": methods[0]},
            "versions": {"python": platform.python_version(), **versions(*_DISTRIBUTIONS)},
            "machine": machine(),
            "metrics": {
                name: {
                    "title": metric.title,
                    "better": metric.better,
                    "meaning": metric.meaning,
                    "detail": metric.detail,
                }
                for name, metric in benchmark.metrics.items()
            },
            "chance": chance,
            "methods": {
                method: {
                    "items": len(scores[method]),
                    "problems": broken.get(method, 0),
                    "seconds per item": statistics.median(costs[method]) if method in costs else None,
                    "metrics": metrics[method],
                }
                for method in scores
            },
            "cuts": list(cuts),
            "unsupported": dict(unsupported),
            "problems": [{"key": key, "problem": why, "methods": of} for (key, why), of in problems.items()],
            "scores": scores,
        }
    )


def machine() -> dict[str, Any]:
    """Where it ran."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def finite(value: Any) -> Any:
    """JSON knows no NaN: None stands for it."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
