"""The words that arguments take, for signatures, checks and help texts."""

from collections.abc import Sequence
from typing import Literal, get_args

from legrad.checks import brief
from legrad.errors import InputError

ReadoutName = Literal["auto", "published", "native"]
"""How a layer's tokens become the scored feature, see ``Explainer.explain``."""
Fit = Literal["model", "squash", "pad"]
"""How an image gets to the input size, see ``Explainer.explain``."""
Normalization = Literal["map", "shared"] | None
"""How relevance becomes saliency, see ``Explanation.saliency``."""

ImageFormat = Literal["png", "jpg", "webp"]
"""Of overlays in files, see ``Explanation.save``."""

LIBRARIES = ("embedded", "open_clip", "timm", "torchvision", "hf")
"""What a model's name begins with, see ``legrad.load``."""
READOUTS: tuple[str, ...] = get_args(ReadoutName)
FITS: tuple[str, ...] = get_args(Fit)
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """The value of an argument; raises ``InputError`` unless it is one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} is one of {', '.join(map(repr, allowed))}, got {brief(value)}")
    return value
