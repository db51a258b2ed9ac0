"""A subject whose maps are known, and scenes small enough to count by hand."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from legrad.datasets import Sample
from legrad.errors import InputError, UnsupportedModelError

NAMES = ("square", "bar", "dot")


def scene(key, masks, label=None, points=None, size=(8, 8)):
    rng = np.random.default_rng(len(key))
    image = Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8))
    return Sample(key=key, image=image, label=label or next(iter(masks)), masks=masks, points=points or {})


def block(rows, cols, size=(8, 8)):
    """A mask that is True in rows x cols."""
    mask = np.zeros(size, bool)
    mask[slice(*rows), slice(*cols)] = True
    return mask


@dataclass
class Data:
    """A list of samples; None stands for one that cannot be read."""

    samples: list[Any]
    name: str = "tiny"
    facts: dict[str, Any] = field(default_factory=lambda: {"path": "tiny", "problems": [], "classes": list(NAMES)})

    def __len__(self):
        return len(self.samples)

    def keys(self):
        return [f"item-{i}" for i in range(len(self))]

    def __getitem__(self, index):
        if self.samples[index] is None:
            raise InputError(f"item-{index} is torn")
        return self.samples[index]


class Subject:
    """Gives for the n-th class of a picture the map that ``draw(picture's sample, class, method)`` makes."""

    size = (8, 8)
    zero_shot = True
    settings = {"model": "fake", "weights": "none"}  # noqa: RUF012

    def __init__(self, data, draw):
        self._by_image = {id(s.image): s for s in data.samples if s is not None}
        self._draw = draw
        self.asked = []

    def target(self, name):
        return name

    def maps(self, pictures, targets, method, fit="squash"):
        if method == "legrad:layers=9":
            raise UnsupportedModelError("no such layer")
        self.asked.append((method, [self._by_image[id(p)].key for p in pictures]))
        return [
            torch.stack([self._draw(self._by_image[id(p)], name, method) for name in own])
            for p, own in zip(pictures, targets, strict=True)
        ]

    def synchronize(self):
        pass
