"""Read the sprites of the scenes; ``training/sprite_sheet.py`` drew them from Noto Color Emoji."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from legrad.embedded.concepts import CONCEPTS

SHEET = Path(__file__).parent / "data" / "sprites.png"
SPRITE_SIZE = 112  # pixels
COLUMNS = 20


@functools.cache
def load_sprites() -> tuple[Image.Image, ...]:
    """The shipped sprites in the order of ``CONCEPTS``: RGBA, ``SPRITE_SIZE`` square. Do not modify them."""
    with Image.open(SHEET) as image:
        sheet = np.asarray(image.convert("RGBA"))
    sprites = []
    for index in range(len(CONCEPTS)):
        top, left = (SPRITE_SIZE * cell for cell in divmod(index, COLUMNS))
        sprites.append(Image.fromarray(sheet[top : top + SPRITE_SIZE, left : left + SPRITE_SIZE]))
    return tuple(sprites)
