"""Checks of arguments: one place for all public functions. A message names the argument, what was expected, what came.

Numbers and switches of numpy are welcome where Python's are.
"""

import contextlib
import numbers
import operator
from collections.abc import Iterable
from typing import Any

from legrad.errors import InputError

_LONGEST, _LONGEST_ERROR = 80, 300  # letters of a value in a message, of another library's error


def brief(value: object) -> str:
    """A value for a message: one line, not too long; of arrays their shape and type."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if dtype is not None and isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} {tuple(shape)} {dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a user's own class
        return type(value).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its type if it says nothing, or only a key."""
    first, *rest = str(error).strip().splitlines() or [""]
    text = (f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first)[:_LONGEST_ERROR].rstrip(" .:")
    return f"{type(error).__name__}: {text}".rstrip(" :") if isinstance(error, LookupError) or not text else text


def check_switch(name: str, value: Any) -> bool:
    """True or False; raises ``InputError`` for anything else."""
    if isinstance(value, bool) or (str(getattr(value, "dtype", "")) == "bool" and value.ndim == 0):
        return bool(value)
    raise InputError(f"{name} is True or False, got {brief(value)}")


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """A number within [low, high]; raises ``InputError`` for anything else, NaN included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
        raise InputError(f"{name} is a number in [{low:g}, {high:g}], got {brief(value)}")
    return float(value)


def whole_number(value: Any) -> int | None:
    """A whole number as an ``int``; None for anything else, True, 2.0 and arrays of one element included."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without data
        return None


def check_count(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """A whole number from ``low`` to ``high``; raises ``InputError`` for anything else."""
    number = whole_number(value)
    if number is None or number < low or (high is not None and number > high):
        limits = f"from {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} is a whole number {limits}, got {brief(value)}")
    return number


def check_texts(name: str, value: Any) -> tuple[str, ...]:
    """A non-empty collection of non-empty texts; raises ``InputError`` for anything else, a single text included."""
    texts: tuple[Any, ...] = ()
    if not isinstance(value, str | bytes) and isinstance(value, Iterable):
        with contextlib.suppress(TypeError):  # arrays without dimensions only look iterable
            texts = tuple(value)
    wrong = [text for text in texts if not isinstance(text, str) or not text.strip()]
    if not texts or wrong:
        came = f"{brief(wrong[0])} among them" if wrong else brief(value)
        raise InputError(f"{name}: a non-empty sequence of texts that say something is expected, got {came}")
    return tuple(map(str, texts))
