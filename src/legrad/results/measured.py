"""The result files of ``legrad bench``: read, and held against what they have to be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from legrad.atomic import parse_json
from legrad.errors import InputError

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


def read(path: Path) -> dict[str, Any]:
    """The content of a result file, see ``bench.result.summarise``; raises ``InputError`` if the file is no result."""
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
    _count(content)
    return {**content, "benchmark": _RENAMED.get(content["benchmark"], content["benchmark"])}


def _count(content: dict[str, Any]) -> None:
    """How many items every number stands on, where a file of an earlier version does not say."""
    scores, reference = content["scores"], content["statistics"]["paired with"]
    for method, result in content["methods"].items():
        pairs = len(scores[method].keys() & scores[reference].keys())
        for numbers in result["metrics"].values():
            numbers.setdefault("items", result["items"])
            numbers.setdefault("pairs", pairs)


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
