"""Truth in the pixels of the model's input, the same for every benchmark."""

import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from legrad.datasets import Dataset, Sample
from legrad.errors import InputError
from legrad.metrics.framing import Geometry, frame_mask

_SAMPLES_READ = 20  # of a data set; an image of nothing but background has no mask


def need(data: Dataset, what: Literal["masks", "points", "label"]) -> None:
    """Raise ``InputError`` for a data set that has none of it, by a look at some samples from all over it."""
    read = False
    for index in range(0, len(data), -(-len(data) // _SAMPLES_READ)):
        try:
            truth = getattr(data[index], what)
        except Exception:  # reported when the item is measured
            continue
        read = True
        if truth is not None and truth != {}:
            return
    if read:
        raise InputError(f"this benchmark needs {what}{'s' * (what == 'label')}, which {data.name} does not have")


def objects(sample: Sample, size: int, geometry: Geometry = "squash") -> dict[str, NDArray[np.bool_]]:
    """Masks (size, size) of the classes that have any pixel at the model's input.

    Raises:
        InputError: there is none.
    """
    masks = {name: frame_mask(mask, size, geometry) for name, mask in sample.masks.items()}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    if not masks:
        raise InputError(f"{sample.key} has no mask with any pixel at {size} x {size}")
    return masks


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
