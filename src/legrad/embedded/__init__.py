"""Small trained image-text models and scenes with exact ground truth, all offline: ``legrad.load("embedded")``."""

import os
from pathlib import Path

from legrad.embedded.concepts import CONCEPTS, NAMES, Concept
from legrad.embedded.rendering import TRAINING_SEEDS, Scene, scene, scenes

__all__ = [
    "CONCEPTS",
    "NAMES",
    "SAMPLE",
    "SPOKEN",
    "TRAINING_SEEDS",
    "Concept",
    "Scene",
    "sample_names",
    "scene",
    "scenes",
]

SAMPLE = Path(__file__).parent / "data" / "sample.png"
"""A scene that ships with the package (PNG), for examples."""
_SIZE = (192, 192)  # of scenes, unless another one is asked for
SPOKEN = SAMPLE.parent / "spoken"
"""Folder of the spoken names of its objects, synthesised, NAME.wav."""


def is_scene(path: "str | os.PathLike[str]") -> bool:
    """Whether a file is a scene: it names its objects as ``SAMPLE`` does, or is a PNG of the size that scenes have."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            names = image.info.get("names")
            if image.format == "PNG" and image.size == _SIZE:
                return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # no image, or no file: a URL
        return False
    return isinstance(names, str) and set(names.split(", ")) <= set(NAMES)


def sample_names() -> list[str]:
    """The names of the objects in ``SAMPLE``."""
    from PIL import Image

    with Image.open(SAMPLE) as image:
        return str(image.info["names"]).split(", ")
