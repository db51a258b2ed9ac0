"""Methods with arguments of their own, as the command line writes them: ``legrad:layers=2:readout=native``."""

from dataclasses import dataclass
from typing import Any

from legrad.choices import UPSAMPLINGS
from legrad.errors import InputError, UnsupportedModelError
from legrad.methods import Method, all_methods
from legrad.methods.heads import CHOICES, of_heads


def known_methods() -> tuple[str, ...]:
    """Names that ``explain(method=...)`` takes."""
    return tuple(all_methods())


@dataclass(frozen=True)
class Variant:
    """A method with arguments of its own: ``legrad``, ``legrad:layers=2``, ``legrad:layers=1:readout=native``,
    ``legrad:heads=0+3``, ``legrad:heads=strongest``, ``gradcam:upsampling=guided:scale=half:cut=0.4``.

    Attributes:
        method: as in ``explain``.
        arguments: that replace the run's.
        heads: numbers of heads that the method names.
        pixels: how its map comes to the pixels: arguments of ``ImageView.saliency``; none for bilinear, raw.
    """

    method: str | Method
    arguments: dict[str, Any]
    heads: tuple[int, ...] = ()
    pixels: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Raises ``InputError`` for an unknown method or argument, with the known ones."""
        name, *parts = text.split(":")
        if name not in known_methods():
            raise InputError(f"no method {name!r}; known: {', '.join(known_methods())}")
        method: str | Method = name
        arguments: dict[str, Any] = {}
        head_numbers: tuple[int, ...] = ()
        pixels: dict[str, Any] = {}
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
            elif (argument == "upsampling" and value in UPSAMPLINGS) or part == "scale=half":
                pixels[argument] = value
            elif argument == "cut" and _is_share(value) and "scale" in pixels:
                pixels[argument] = float(value)
            else:
                raise InputError(
                    f"method {text!r}: a variant is METHOD:layers=K, METHOD:readout=published|native, "
                    "METHOD:upsampling=guided, METHOD:scale=half, METHOD:scale=half:cut=0.6 or "
                    f"legrad:heads=0+3|{'|'.join(CHOICES)}, got {part!r}"
                )
        return cls(method, arguments, head_numbers, tuple(pixels.items()))

    def on_patches(self) -> "Variant":
        """Itself; raises ``UnsupportedModelError`` if it says how maps come to the pixels."""
        if self.pixels:
            raise UnsupportedModelError("this benchmark looks at patches: upsampling and scale have no use in it")
        return self


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False
