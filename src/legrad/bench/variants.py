"""Methods with arguments of their own, as the command line writes them: ``legrad:layers=2:readout=native``."""

from dataclasses import dataclass
from typing import Any

from legrad.errors import InputError
from legrad.methods import Method, all_methods
from legrad.methods.heads import CHOICES, of_heads


def known_methods() -> tuple[str, ...]:
    """Names that ``explain(method=...)`` takes."""
    return tuple(all_methods())


@dataclass(frozen=True)
class Variant:
    """A method with arguments of its own: ``legrad``, ``legrad:layers=2``, ``legrad:layers=1:readout=native``,
    ``legrad:heads=0+3``, ``legrad:heads=strongest``.

    Attributes:
        method: as in ``explain``.
        arguments: that replace the run's.
        heads: numbers of heads that the method names.
    """

    method: str | Method
    arguments: dict[str, Any]
    heads: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Raises ``InputError`` for an unknown method or argument, with the known ones."""
        name, *parts = text.split(":")
        if name not in known_methods():
            raise InputError(f"no method {name!r}; known: {', '.join(known_methods())}")
        method: str | Method = name
        arguments: dict[str, Any] = {}
        head_numbers: tuple[int, ...] = ()
        for part in parts:
            argument, _, value = part.partition("=")
            numbers = value.split("+")
            if argument == "layers" and value.isdecimal():
                arguments[argument] = int(value)
            elif argument == "readout" and value in ("published", "native"):
                arguments[argument] = value
            elif argument == "heads" and method == "legrad" and all(number.isdecimal() for number in numbers):
                head_numbers = tuple(map(int, numbers))
                method = of_heads(head_numbers)
            elif argument == "heads" and method == "legrad" and value in CHOICES:
                method = of_heads(value)
            else:
                raise InputError(
                    f"method {text!r}: a variant is METHOD:layers=K, METHOD:readout=published|native or "
                    f"legrad:heads=0+3|{'|'.join(CHOICES)}, got {part!r}"
                )
        return cls(method, arguments, head_numbers)
