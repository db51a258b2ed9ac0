"""Versions of distributions, for the settings of results."""

import functools
import importlib.metadata

_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}


@functools.cache  # metadata is read and parsed every time, for each map
def version(name: str) -> str | None:
    """The version of an import name or distribution; None where it is not installed as a distribution."""
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*names: str) -> dict[str, str]:
    """The versions of those that are installed."""
    return {name: number for name in names if (number := version(name)) is not None}
