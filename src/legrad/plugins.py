"""What users bring themselves: entry points of installed packages, and digests that tell versions of code apart."""

import functools
import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from legrad.checks import first_line
from legrad.errors import warn


def loaded(group: str) -> Iterator[tuple[str, Any]]:
    """(name, object) of all entry points of a group.

    Warns:
        UserWarning: one that cannot be imported, and is left out.
    """
    for point in importlib.metadata.entry_points(group=group):
        try:
            yield point.name, point.load()
        except Exception as error:  # whatever another package does when it is imported
            warn(f"the entry point {point.name!r} of {group} ({point.value}) is left out: {first_line(error)}")


def names_of(group: str) -> list[str]:
    """Of all entry points of a group; none is imported."""
    return [point.name for point in importlib.metadata.entry_points(group=group)]


def source_digest(function: Callable[..., Any]) -> str:
    """Changes with the source of a function, and with the arguments of a ``functools.partial``."""
    if isinstance(function, functools.partial):
        arguments = f"{function.args!r} {sorted(function.keywords.items())!r}"
        return _digest(source_digest(function.func) + arguments)
    try:
        return _digest(inspect.getsource(inspect.unwrap(function)))
    except (OSError, TypeError):  # typed into a prompt, or of a class
        code = getattr(function, "__code__", None)
        return _digest(type(function).__qualname__ if code is None else f"{code.co_code.hex()} {code.co_consts!r}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
