"""The paper's evaluation as benchmarks: ``legrad bench segmentation``, or ``legrad.bench.runner.run`` from Python."""

import importlib
from typing import Any

_MODULES = (
    "benchmark",
    "cache",
    "classes",
    "data",
    "model",
    "registry",
    "report",
    "result",
    "runner",
    "study",
    "tasks",
    "variants",
)


def __getattr__(name: str) -> Any:
    """The modules of this package, imported when they are first used."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
