"""Versions of installed distributions, for the settings of results."""

import importlib.metadata

_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}


def installed(*libraries: str) -> dict[str, str]:
    """Import name or distribution -> version, "unknown" where it is not installed as a distribution."""
    versions = {}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions
