"""Scenes with exact ground truth: emoji pasted on textured backgrounds, a mask and a name for every object.

A scene depends on ``(seed, index, size, objects)`` alone, so any slice of a stream can be rendered by any process.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from legrad.embedded.concepts import NAMES
from legrad.embedded.sprites import load_sprites
from legrad.equality import ByValue
from legrad.errors import InputError

TRAINING_SEED = 1_000_000_007
# stage k of training draws from stream TRAINING_SEED + k; every seed outside of this range is held out
TRAINING_SEEDS = range(TRAINING_SEED, TRAINING_SEED + 100)
_MIN_VISIBLE = 0.5


@dataclass(frozen=True, eq=False)
class Scene(ByValue):
    """An image with a mask and a name for every object.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: (K, H, W) bool, the visible pixels of each object; disjoint.
        names: K distinct names out of ``legrad.embedded.NAMES``, in the order of the masks.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    names: tuple[str, ...]


def scenes(
    n: int, seed: int = 0, size: int = 192, objects: tuple[int, int] = (1, 4), *, start: int = 0
) -> Iterator[Scene]:
    """Yield ``n`` scenes of ``objects[0]`` to ``objects[1]`` different things each.

    Args:
        n: number of scenes.
        seed: the stream; the embedded model was trained on some of ``TRAINING_SEEDS``.
        size: height and width in pixels; at least 32.
        objects: smallest and largest number of objects, both included, between 1 and 8.
        start: index of the first scene in the stream.

    Returns:
        An iterator of ``Scene``. Each object keeps at least half of its area visible, overlap and border included.

    Raises:
        InputError: a value outside the ranges above.
    """
    low, high = objects
    if n < 0 or start < 0 or seed < 0:
        raise InputError(f"n, seed and start must not be negative, got n={n}, seed={seed}, start={start}")
    if size < 32:
        raise InputError(f"scenes need size >= 32 pixels, got {size}")
    if not 1 <= low <= high <= 8:
        raise InputError(f"objects must be (smallest, largest) with 1 <= smallest <= largest <= 8, got {objects}")
    return (scene(seed, index, size, objects) for index in range(start, start + n))


def scene(
    seed: int,
    index: int,
    size: int = 192,
    objects: tuple[int, int] = (1, 4),
    *,
    reference: int | None = None,
    among: Sequence[int] | None = None,
) -> Scene:
    """Scene number ``index`` of the stream ``seed``; arguments as for ``scenes``.

    Args:
        reference: image size in pixels that the objects' sizes are relative to, default ``size``. A small canvas
            with objects as large as on a big one is cheap to train on.
        among: indices of the concepts to choose from, at least as many as objects; default all.
    """
    rng = np.random.default_rng([seed, index])
    canvas = _background(rng, size)
    count = int(rng.integers(objects[0], objects[1] + 1))
    concepts = rng.choice(len(NAMES) if among is None else np.asarray(among), count, replace=False)
    masks: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    names: list[str] = []
    for concept in concepts:
        for attempt in itertools.count():
            # crowded scenes: shrink until the object fits
            side = (reference or size) * rng.uniform(0.30, 0.60 if count == 1 else 0.48) * 0.97**attempt
            rgb, alpha, window, area = _place(rng, int(concept), size, side)
            region = np.zeros((size, size), np.bool_)
            region[window] = alpha > 0.5
            if area == 0 or region.sum() < _MIN_VISIBLE * area:
                continue
            remaining = [mask & ~region for mask in masks]
            if all(mask.sum() >= _MIN_VISIBLE * full for mask, full in zip(remaining, areas, strict=True)):
                canvas[window] += (rgb - canvas[window]) * alpha[..., None]
                masks = [*remaining, region]
                areas.append(area)
                names.append(NAMES[concept])
                break
    image = _finish(rng, canvas)
    return Scene(image, np.stack(masks), tuple(names))


def _place(
    rng: np.random.Generator, concept: int, size: int, side: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[slice, slice], int]:
    """A randomly transformed sprite at a random place: rgb (h, w, 3), alpha (h, w) in [0, 1], its window, its area.

    The window is what lies on the canvas; the area, in pixels, counts what lies outside too.
    """
    sprite = load_sprites()[concept]
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = min(max(8, round(side)), size)
    sprite = sprite.resize((pixels, pixels), Image.Resampling.BILINEAR)
    sprite = sprite.rotate(rng.uniform(-30, 30), Image.Resampling.BILINEAR, expand=True)
    width, height = sprite.size
    left = round(rng.uniform(-0.3 * width, size - 0.7 * width))
    top = round(rng.uniform(-0.3 * height, size - 0.7 * height))
    full = np.asarray(sprite, np.float32)
    area = int((full[..., 3] > 127.5).sum())
    y0, y1 = max(0, top), min(size, top + height)
    x0, x1 = max(0, left), min(size, left + width)
    part = full[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = part[..., 3] / np.float32(255)
    return _jitter(rng, part[..., :3]), alpha, (slice(y0, y1), slice(x0, x1)), area


def _jitter(rng: np.random.Generator, rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Brightness and saturation, gently: the colour names in "red apple" must stay true."""
    brightness, saturation = rng.uniform(0.75, 1.25, 2).astype(np.float32)
    grey = rgb.mean(-1, keepdims=True)
    return np.clip((grey + (rgb - grey) * saturation) * brightness, 0, 255)


def _noise(rng: np.random.Generator, size: int, cells: int, channels: int = 3) -> NDArray[np.float32]:
    """Smooth random field (size, size, channels) in [0, 1] with about ``cells`` bumps along a side."""
    grid = rng.integers(0, 256, (cells + 1, cells + 1, channels), dtype=np.uint8)
    image = Image.fromarray(grid if channels == 3 else grid[..., 0])
    field = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
    return field if channels == 3 else field[..., None]


def _fractal(rng: np.random.Generator, size: int, channels: int = 3) -> NDArray[np.float32]:
    """Sum of octaves of noise, like clouds, foliage or stone."""
    start = int(rng.integers(2, 5))
    weights = np.float32(0.6 if rng.random() < 0.5 else 0.85) ** np.arange(4, dtype=np.float32)
    octaves = [w * _noise(rng, size, start * 3**k, channels) for k, w in enumerate(weights) if start * 3**k < size]
    return sum(octaves[1:], octaves[0]) / weights[: len(octaves)].sum()


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """A colour (3,) in [0, 255], mostly muted as in photographs."""
    colour = rng.uniform(20, 250, 3)
    return (colour.mean() + rng.uniform(0.2, 1) * (colour - colour.mean())).astype(np.float32)


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A textured or photo-like background, (size, size, 3) in [0, 255], a little out of focus."""
    half = _pattern(rng, -(-size // 2)).astype(np.uint8)
    blurred = Image.fromarray(half).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(blurred, np.float32)


def _pattern(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    first, second = _colour(rng), _colour(rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    kind = rng.integers(0, 6)
    if kind == 0:  # gradient
        angle = rng.uniform(0, 2 * np.pi)
        mix = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
        mix = (mix - mix.min()) / (np.ptp(mix) + 1e-6)
    elif kind == 1:  # clouds, stone, foliage in two colours
        mix = _fractal(rng, size, 1)
        mix = np.clip((mix - 0.5) * 3 + 0.5, 0, 1)
    elif kind == 2:  # sky over ground, hilly horizon
        horizon = rng.uniform(0.3, 0.8) + 0.15 * (_noise(rng, size, 4, 1)[0, :, 0] - 0.5)
        mix = (y > horizon[None, :]).astype(np.float32)[..., None]
    elif kind == 3:  # stripes
        angle = rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi * rng.uniform(2, 12) * (np.cos(angle) * x + np.sin(angle) * y))
        mix = (0.5 + 0.5 * np.tanh(3 * wave))[..., None]
    elif kind == 4:  # checks or tiles
        count = rng.uniform(3, 10)
        mix = ((np.floor(x * count) + np.floor(y * count)) % 2)[..., None]
    else:  # many colours
        return np.clip((_fractal(rng, size) - 0.5) * np.float32(rng.uniform(100, 400)) + first, 0, 255)
    shade = 1 + rng.uniform(0, 0.5) * (_fractal(rng, size, 1) - 0.5)
    return np.clip((first * mix + second * (1 - mix)) * shade, 0, 255).astype(np.float32)


def _finish(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Exposure and a little sensor noise over the whole image."""
    canvas = canvas * np.float32(rng.uniform(0.8, 1.15))
    grain = rng.standard_normal(canvas.shape[:2], np.float32) * np.float32(rng.uniform(0, 6))
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8)
