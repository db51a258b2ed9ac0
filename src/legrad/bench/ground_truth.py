"""Truth in the pixels of the model's input, the same for every benchmark."""

import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from legrad.datasets import IGNORE, Dataset, Sample
from legrad.errors import InputError
from legrad.metrics.framing import Geometry, frame_mask

_SAMPLES_READ = 20  # of a data set; an image of nothing but background has no mask


LATTICE = 64  # points along each side of an image with masks, where there are none of the data set's own
_FIXES = {
    "masks": "give a folder with images/ and masks/ (masks/CLASS/NAME.png)",
    "points": "give a table of points (.csv with --images FOLDER), or a folder with images/ and masks/",
    "label": "give a folder of class folders, or one with images/ and masks/ (masks/CLASS/NAME.png)",
}


def need(data: Dataset, *kinds: Literal["masks", "points", "label"]) -> None:
    """Raise ``InputError`` for a data set that has none of these, by a look at some samples from all over it."""
    read = False
    for index in range(0, len(data), -(-len(data) // _SAMPLES_READ)):
        try:
            sample = data[index]
        except Exception:  # reported when the item is measured
            continue
        read = True
        if any(getattr(sample, kind) is not None and getattr(sample, kind) != {} for kind in kinds):
            return
    if read:
        names = [f"{kind}{'s' * (kind == 'label')}" for kind in kinds]
        nor = f" (nor {', '.join(names[1:])})" if names[1:] else ""
        raise InputError(
            f"this benchmark needs {names[0]}, which {data.name} does not have{nor}; {_FIXES[kinds[0]]}, see "
            "docs/datasets.md"
        )


def points(sample: Sample) -> "Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]":
    """Class -> (positive, negative) points, (P, 2) x, y in pixels of the image: the sample's own, or out of its masks.

    Those of masks lie on a lattice all over the image; an object that none of them hits gets points of its own.
    """
    if sample.points or not sample.masks:
        return sample.points
    width, height = sample.image.size
    x, y = (np.unique(((np.arange(LATTICE) + 0.5) / LATTICE * side).astype(int)) for side in (width, height))
    lattice = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    ignored = sample.extra.get(IGNORE)
    if ignored is not None:
        lattice = lattice[~ignored[lattice[:, 1], lattice[:, 0]]]
    named = {}
    for name, mask in sample.masks.items():
        inside = mask[lattice[:, 1], lattice[:, 0]]
        positive = lattice[inside]
        if not len(positive):
            pixels = np.argwhere(mask)[:, ::-1]
            positive = pixels[:: max(1, len(pixels) // LATTICE)]
        named[name] = (positive + 0.5, lattice[~inside] + 0.5)
    return named


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
