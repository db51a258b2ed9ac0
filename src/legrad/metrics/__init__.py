"""Metrics of maps: pure functions of arrays.

Every module works in two steps. ``measure`` (or a record) holds the counts of one image, ready for JSON; a
``bootstrap.Statistic`` computes the number of the data set from them, given how often each image counts: once for the
number itself, as often as it was drawn for its interval. So a run can be stopped and resumed, and shards can be merged
by joining their lists.
"""

import importlib
from typing import Any

_MODULES = (
    "audio",
    "bootstrap",
    "framing",
    "localisation",
    "own",
    "perturbation",
    "points",
    "presence",
    "ranges",
    "ranking",
    "segmentation",
)


def __getattr__(name: str) -> Any:
    """The modules of this package, imported when they are first used."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
