"""The words that arguments take, for signatures, checks and help texts."""

from collections.abc import Sequence
from typing import Literal, get_args

from legrad.checks import brief
from legrad.errors import InputError

ReadoutName = Literal["auto", "published", "native"]
"""How a layer's tokens become the scored feature, see ``Explainer.explain``."""
Fit = Literal["model", "squash", "pad"]
"""How an image gets to the input size, see ``Explainer.explain``."""
Scale = Literal["map", "shared", "half"] | None
"""How relevance becomes saliency, see ``Explanation.saliency``."""
Upsampling = Literal["bilinear", "guided"]
"""How relevance on patches becomes relevance on pixels, see ``Explanation.saliency``."""
Opacity = float | Literal["saliency"]
"""How strongly an overlay covers its image, see ``Explanation.overlay``."""
Threshold = Literal["half", "otsu", "mean"]
"""What of a map is its mask, see ``Explanation.masks``."""

ImageFormat = Literal["png", "jpg", "webp"]
"""The file format of overlays and figures."""

LIBRARIES = ("embedded", "open_clip", "timm", "torchvision", "hf")
"""What a model's name begins with, see ``legrad.load``."""
READOUTS: tuple[str, ...] = get_args(ReadoutName)
FITS: tuple[str, ...] = get_args(Fit)
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
UPSAMPLINGS: tuple[str, ...] = get_args(Upsampling)
THRESHOLDS: tuple[str, ...] = get_args(Threshold)
SCALES: tuple[str | None, ...] = ("map", "shared", "half", None)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """The value of an argument; raises ``InputError`` unless it is one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} is one of {', '.join(map(repr, allowed))}, got {brief(value)}")
    return value


def check_scale(scale: object) -> None:
    """Raises ``InputError`` unless it is one of ``SCALES``."""
    if not (scale is None or isinstance(scale, str)) or scale not in SCALES:
        raise InputError(f"scale or normalize is one of {', '.join(map(repr, SCALES))}, got {brief(scale)}")
