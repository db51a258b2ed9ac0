"""Names of the last release that still work for one more, each with a ``DeprecationWarning``; and names that stay."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from legrad.errors import warn

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments by their old names too: ``renamed_arguments(old="new")``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            for old, new in new_names.items():
                if old in kwargs:
                    _warn(f"the argument {old}", new)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def other_names(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments by another name too, for good: ``other_names(other="name")``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            return function(*args, **{names.get(name, name): value for name, value in kwargs.items()})

        return call

    return decorate


def renamed_fields(**new_names: str) -> Callable[[C], C]:
    """Let a dataclass take and show fields by their old names too, also in ``dataclasses.replace``."""

    def decorate(cls: C) -> C:
        setattr(cls, "__init__", renamed_arguments(**new_names)(vars(cls)["__init__"]))  # noqa: B010 - mypy
        for old, new in new_names.items():
            setattr(cls, old, _old_attribute(old, new))
        return cls

    return decorate


def _old_attribute(old: str, new: str) -> property:
    def get(instance: object) -> Any:
        _warn(f"{type(instance).__name__}.{old}", new)
        return getattr(instance, new)

    return property(get, doc=f"Deprecated name of ``{new}``.")


def _warn(old: str, new: str) -> None:
    warn(f"{old} is called {new} now", DeprecationWarning)
