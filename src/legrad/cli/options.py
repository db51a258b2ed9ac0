"""Options that are read from text, the same for every command."""

import re
from collections.abc import Sequence

from legrad.choices import check_choice
from legrad.errors import InputError


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """One of some words, in any case."""
    word = value.strip().lower()
    return check_choice(name, word if word in allowed else value, allowed)


def method_name(text: str) -> str:
    """A method's own spelling for one in another case or with other dashes; what is no method stays as it is."""
    from legrad.methods import METHODS

    same = [name for name in METHODS if _letters(name) == _letters(text)]
    return same[0] if same else text


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def parse_layers(text: str | None) -> int | list[int] | None:
    """``"3"`` -> 3, ``"0,3,-1"`` or ``"-1,"`` -> a list, None -> None."""
    if text is None:
        return None
    try:
        layers = [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError as error:
        raise InputError(f"--layers takes a number or a list such as 0,3,-1, got {text!r}") from error
    if isinstance(layers, int) and layers < 0:
        raise InputError(
            f"--layers={text} is no number of layers; for one block, counted from the end, add a comma: '{text},'"
        )
    return layers


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """``"448"`` -> 448, ``"384x512"`` -> (384, 512), height first."""
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError as error:
        raise InputError(f"--size takes pixels such as 448 or HEIGHTxWIDTH such as 384x512, got {text!r}") from error
    if len(sides) > 2:
        raise InputError(f"--size takes at most two sides, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
