"""The command line: ``legrad explain``, ``legrad models``, ``legrad doctor``. Parse, call the library, save, print.

Exit status: 0 all is well, 1 some inputs failed (or a model is not healthy), 2 nothing could be done.
"""

from legrad.errors import InputError


def parse_layers(text: str | None) -> int | list[int] | None:
    """``"3"`` -> 3, ``"0,3,-1"`` or ``"-1,"`` -> a list, None -> None."""
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError as error:
        raise InputError(f"--layers takes a number or a list such as 0,3,-1, got {text!r}") from error
    if isinstance(found, int) and found < 0:
        raise InputError(
            f"--layers={text} is no number of layers; for one block, counted from the end, add a comma: '{text},'"
        )
    return found


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
