"""Errors about names and weights that a library does not have, in the same words for every library."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from legrad.checks import first_line
from legrad.errors import InputError
from legrad.models import files


def spelled(name: str, names: Sequence[str]) -> str:
    """The one of some names that differs in case only; the name itself if there is none, or several."""
    same = [other for other in names if other.lower() == name.lower()]
    return same[0] if len(same) == 1 else name


def unknown_model(library: str, name: str, names: Sequence[str]) -> InputError:
    """Of a library that has models of certain names; the nearest of them are told."""
    by_letters = {other.lower(): other for other in names}
    nearest = [by_letters[letters] for letters in difflib.get_close_matches(name.lower(), by_letters, 3)]
    return InputError(f"{library} has no model {name!r}; nearest: {', '.join(nearest) or 'none'}")


def unknown_weights(library: str, tag: str, model: str, tags: Sequence[str], hint: str = "") -> InputError:
    """Of a model that has weights under certain tags; ``hint`` ends the sentence."""
    return InputError(f"{library} has no weights {tag!r} for {model}; it has {tags}{hint}")


def not_loaded(library: str, name: str, error: Exception, offline: str, path: Path | None = None) -> InputError:
    """A library failed to load a model; ``offline`` says what it could load without a network.

    Args:
        path: the folder or file that was read, if it is known: a damaged file in it is named.
    """
    start = f"{library} could not load {name!r}: "
    if path is None:
        return InputError(f"{start}{first_line(error)}. Without a network only {offline} work")
    if damaged := files.damage(path):
        return InputError(f"{start}{damaged}")
    what = f"its files ({files.contents(path)}) make no model" if path.is_dir() else path.name
    return InputError(f"{start}{what}: {first_line(error)}")
