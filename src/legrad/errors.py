"""Errors and warnings.

LeGradError
├── InputError        an argument, image, text or file that cannot be used
├── UnsupportedModelError  a model without plain global attention, or one that we do not know
└── TruthCheckError   the instrumented pass and the model disagree: the maps would be wrong

FlatMapWarning        (UserWarning) a relevance map without any contrast
"""

import contextlib
import contextvars
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_LONGEST = 1500  # letters of a message


class LeGradError(Exception):
    """Base of everything that this library raises on purpose.

    Its message is one line of at most 1,500 letters, whatever file names and arguments hold.
    """

    def __str__(self) -> str:
        text = " ".join(line.strip() for line in super().__str__().splitlines())
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 201]}…{text[-200:]}"


class InputError(LeGradError, ValueError):
    """An argument that cannot be used; the message says what was expected, what came and what to do."""


class UnsupportedModelError(LeGradError):
    """The model cannot be explained with LeGrad, or is not known to this library."""


class TruthCheckError(LeGradError):
    """What was captured does not reproduce what the model computes, so its maps cannot be trusted."""


class FlatMapWarning(UserWarning):
    """A map (or score) does not depend on the image's patches; it is returned as zeros."""


@dataclass(frozen=True)
class UserLine:
    """A line of code outside this package, as ``warnings.warn_explicit`` takes it."""

    filename: str
    lineno: int
    module: str
    registry: dict[Any, Any]


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_caller: contextvars.ContextVar[UserLine | None] = contextvars.ContextVar("legrad_caller", default=None)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called this package, however deep inside it something was noticed."""
    line = _caller.get() or user_line()
    warnings.warn_explicit(message, category, line.filename, line.lineno, line.module, line.registry)


def user_line() -> UserLine:
    """Who called this package."""
    frame: Any = sys._getframe(1)
    caller = frame
    while frame is not None:  # to the end: libraries call back into the package
        if frame.f_code.co_filename.startswith(_PACKAGE):
            caller = frame.f_back or frame
        frame = frame.f_back
    while caller.f_back is not None and caller.f_code.co_filename.startswith("<frozen importlib"):
        caller = caller.f_back
    names = caller.f_globals
    registry = names.setdefault("__warningregistry__", {})
    return UserLine(caller.f_code.co_filename, caller.f_lineno, names.get("__name__", "<unknown>"), registry)


@contextlib.contextmanager
def warnings_at(line: UserLine) -> Iterator[None]:
    """In another thread: its warnings point at the line that ``user_line`` found where the work was given out."""
    token = _caller.set(line)
    try:
        yield
    finally:
        _caller.reset(token)
