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

from legrad.atomic import WriteError, parse_json, write_atomically
from legrad.bench.benchmark import Benchmark
from legrad.bench.summaries import LEVEL, RESAMPLES, compare
from legrad.errors import InputError
from legrad.versions import versions

SCHEMA = 1
_NUMBERS = (int, float, type(None))
# what a report reads, as it has to be: a dict has these keys, "*" stands for all others, [of] is a list
_SHAPE: Any = {
    "schema": int,
    "benchmark": str,
    "question": str,
    "reading": str,
    "complete": bool,
    "settings": {"protocol": {}, "subject": {"model": str, "weights": str}, "data": {"name": str}, "seed": int},
    "statistics": {"paired with": str},
    "versions": {"*": str},
    "machine": {},
    "metrics": {"*": {"title": str, "better": (str, type(None)), "meaning": str}},
    "chance": {"*": _NUMBERS},
    "methods": {"*": {"items": int, "problems": int, "metrics": {"*": {"value": _NUMBERS, "*": _NUMBERS}}}},
    "cuts": [str],
    "unsupported": {"*": str},
    "problems": [{"key": str, "problem": str, "methods": [str]}],
    "scores": {"*": {"*": {}}},
}
# benchmarks in files of earlier versions -> what they are called now
_RENAMED = {"fingerprint": "layer-importance"}
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
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and isinstance(content.get("schema"), int) and content["schema"] != SCHEMA:
                raise InputError(f"{path} is a result of schema {content['schema']}, expected {SCHEMA}; run it again")
            problem = _misfit(content, _SHAPE) or _inconsistency(content)
            if problem:
                raise ValueError(problem)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not a result of legrad bench ({error})") from error
        return cls({**content, "benchmark": _RENAMED.get(content["benchmark"], content["benchmark"])})


def _misfit(value: Any, shape: Any, where: str = "it") -> str:
    """Where a value is not of a shape, or ""."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where} is no object"
        absent = next((key for key in shape if key != "*" and key not in value), None)
        if absent is not None:
            return f"{absent!r} is missing"
        pairs = [(key, inner, shape.get(key, shape.get("*"))) for key, inner in value.items()]
        return next(filter(None, (_misfit(inner, of, key) for key, inner, of in pairs if of is not None)), "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        return next(filter(None, (_misfit(inner, shape[0], where) for inner in value)), "")
    fits = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    return "" if fits else f"{where} is {type(value).__name__}"


def _inconsistency(content: Mapping[str, Any]) -> str:
    """What does not belong together in a result whose parts are as they should be, or ""."""
    methods, metrics = content["methods"], content["metrics"]
    if content["statistics"]["paired with"] not in methods or not methods.keys() <= content["scores"].keys():
        return "its methods are not those of its scores"
    if not metrics:
        return "it has no metrics"
    if any(metric["better"] not in ("higher", "lower", None) for metric in metrics.values()):
        return "a metric is better in an unknown direction"
    return ""


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
