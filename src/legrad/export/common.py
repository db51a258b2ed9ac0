"""What all ways out share: libraries that may be absent, kinds of input that a format does not know, JSON files."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from legrad.atomic import WriteError, write_atomically
from legrad.checks import brief, whole_number
from legrad.errors import InputError
from legrad.results.explanation import Explanation


def library(module: str, extra: str) -> Any:
    """A module that may not be installed.

    Raises:
        InputError: it is not; says which extra has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"this export needs {package}: pip install 'legrad[{extra}]'") from error


def images_only(explanation: Any, what: str) -> Explanation:
    """Raise ``InputError`` for something else than an explanation of still images."""
    if not isinstance(explanation, Explanation):
        raise InputError(f"{what} takes an explanation, as legrad.load(...).explain gives it, got {brief(explanation)}")
    if explanation.axes != ("rows", "cols"):
        raise InputError(
            f"{what} is for still images, this explanation's axes are {', '.join(explanation.axes)}; its masks, boxes "
            "and points are explanation.masks(), .boxes() and .points()"
        )
    return explanation


def index_of(explanation: Explanation, image: int) -> int:
    """The index of an image, from 0 on; raises ``InputError`` if there is none."""
    number, count = whole_number(image), len(explanation.names)
    if number is None or not -count <= number < count:
        raise InputError(f"image is a whole number below {count}, got {brief(image)}")
    return number % count


def written(content: Any, path: str | os.PathLike[str] | None) -> Any:
    """The content; as a JSON file too, whole or not at all, where there is a path.

    Raises:
        InputError: it cannot be written.
    """
    if path is not None:
        save(path, json.dumps(content, indent=1, allow_nan=False).encode())
    return content


def save(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise WriteError.of(Path(path), error) from error
    except TypeError as error:
        raise InputError(f"path is where the file goes, got {brief(path)}") from error
