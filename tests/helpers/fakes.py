"""A model under test whose maps are known, and scenes small enough to count by hand."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from legrad.datasets import Sample
from legrad.errors import InputError

NAMES = ("square", "bar", "dot")
SIZE = 8


def scene(key, masks, label=None, points=None):
    rng = np.random.default_rng(len(key))
    image = Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8))
    return Sample(key=key, image=image, label=label or next(iter(masks)), masks=masks, points=points or {})


def block(rows, cols):
    """A mask that is True in rows x cols."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[slice(*rows), slice(*cols)] = True
    return mask


@dataclass
class Data:
    """A list of samples; None stands for one that cannot be read."""

    samples: list[Any]
    name: str = "tiny"
    classes: tuple[str, ...] = NAMES
    facts: dict[str, Any] = field(default_factory=lambda: {"path": "tiny", "problems": []})

    def __len__(self):
        return len(self.samples)

    def keys(self):
        return [f"item-{i}" for i in range(len(self))]

    def __getitem__(self, index):
        if self.samples[index] is None:
            raise InputError(f"item-{index} is torn")
        return self.samples[index]


class ModelUnderTest:
    """Gives for a class of an image the map ``draw(its sample, the class, method)``, (SIZE, SIZE).

    The model is an eye: the feature of an image is the darkness of its left and right half, and the classes "square"
    and "bar" stand for the one that is lighter.
    """

    size = SIZE
    zero_shot = True
    labels = choices = askable = NAMES
    settings = {"model": "fake", "weights": "none"}  # noqa: RUF012

    def __init__(self, data, draw=None):
        self._by_image = {id(s.image): s for s in data.samples if s is not None}
        self._draw = draw
        self.asked = []

    @property
    def classes(self):
        return self

    def target(self, name):
        return name

    def direction(self, name):
        return name

    def column(self, name):
        return NAMES.index(name)

    def at_column(self, column):
        return NAMES[column]

    def maps(self, images, targets, method, fit="squash"):
        self.asked.append((method, [self._by_image[id(p)].key for p in images], targets))
        return [
            torch.stack([torch.as_tensor(self._draw(self._by_image[id(p)], name, method)).float() for name in own])
            for p, own in zip(images, targets, strict=True)
        ]

    def evidence(self, images, targets, method, fit="squash"):
        maps = self.maps(images, targets, method)
        return maps, [one.flatten(1).sum(1) for one in maps]

    def inputs(self, images, fit="squash"):
        return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in images])

    pixels = inputs

    def extents(self, images, patch=1):
        return [(SIZE, SIZE)] * len(images)

    def seen(self, pixels):
        return torch.stack([pixels[..., : SIZE // 2].mean((1, 2, 3)), pixels[..., SIZE // 2 :].mean((1, 2, 3))], 1)

    features = seen

    def logits(self, features):
        return torch.cat([features, torch.zeros(len(features), 1)], 1)

    def answers(self, images, fit="squash"):
        return self.logits(self.features(self.inputs(images, fit)))

    def synchronize(self):
        pass
