"""Errors about names and weights that a library does not have, in the same words for every library."""

import difflib
from collections.abc import Sequence

from legrad.errors import InputError


def unknown_model(library: str, name: str, names: Sequence[str]) -> InputError:
    """Of a library that has models of certain names; the nearest of them are told."""
    nearest = difflib.get_close_matches(name, names, 3)
    return InputError(f"{library} has no model {name!r}; nearest: {', '.join(nearest) or 'none'}")


def unknown_weights(library: str, tag: str, model: str, tags: Sequence[str], hint: str = "") -> InputError:
    """Of a model that has weights under certain tags; ``hint`` ends the sentence."""
    return InputError(f"{library} has no weights {tag!r} for {model}; it has {tags}{hint}")


def not_loaded(library: str, name: str, error: Exception, offline: str) -> InputError:
    """A library failed to load a model; ``offline`` says what it could load without a network."""
    return InputError(f"{library} could not load {name!r}: {error}. Without a network only {offline} work")
