"""Truth in the pixels of the model's input, the same for every benchmark."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legrad.datasets import Sample
from legrad.errors import InputError
from legrad.metrics.geometry import Geometry, frame_mask


def objects(sample: Sample, size: int, geometry: Geometry = "squash") -> dict[str, NDArray[np.bool_]]:
    """Masks (size, size) of the classes that have any pixel at the model's input.

    Raises:
        InputError: there is none.
    """
    found = {name: frame_mask(mask, size, geometry) for name, mask in sample.masks.items()}
    found = {name: mask for name, mask in found.items() if mask.any()}
    if not found:
        raise InputError(f"{sample.key} has no mask with any pixel at {size} x {size}")
    return found


def label(sample: Sample) -> str:
    """The sample's class.

    Raises:
        InputError: it has none.
    """
    if sample.label is None:
        raise InputError(f"{sample.key} has no label")
    return str(sample.label)


def generator(sample: Sample, seed: int, *more: Any) -> np.random.Generator:
    """Random numbers of this sample alone, whatever came before it."""
    return np.random.default_rng([seed, zlib.crc32(repr((sample.key, *more)).encode())])
