"""The paper's evaluation as benchmarks: ``legrad bench segmentation``, or from Python:

legrad.bench.measure("segmentation", explainer, "folder", ["legrad", "gradcam"], out="results")
"""

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
    if name == "measure":
        from legrad.bench.single import measure

        return measure
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "measure", *_MODULES})
