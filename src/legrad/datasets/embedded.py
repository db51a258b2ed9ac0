"""The embedded models' scenes as a data set: held-out images with exact masks, and points drawn from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from legrad.datasets.sample import Sample
from legrad.embedded.concepts import NAMES
from legrad.embedded.rendering import TRAINING_SEEDS
from legrad.embedded.rendering import scene as render
from legrad.errors import InputError

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


class EmbeddedScenes:
    """Scenes that the embedded models were not trained on.

    Every sample has the masks of all its objects; its label is the one with most visible pixels. Points of an object
    are drawn from inside its mask (positive), and, half each, from the other objects and from the background (negative;
    all from the background where the object is alone).

    Args:
        seed: the stream of scenes; not one that was trained on.
        objects: smallest and largest number of objects in a scene.
        count: how many scenes there are.
        points: positive points per object, and as many negative ones.

    Raises:
        InputError: a seed that was trained on, or a number out of range.

    Attributes:
        classes: all 200 names.
    """

    def __init__(self, seed: int = 1, objects: tuple[int, int] = (1, 4), count: int = 10_000, points: int = 5) -> None:
        if seed < 0 or seed in TRAINING_SEEDS:
            raise InputError(f"seed {seed} cannot be used: it is negative, or the embedded model was trained on it")
        if not 1 <= objects[0] <= objects[1] <= 8:
            raise InputError(f"objects is (smallest, largest) with 1 <= smallest <= largest <= 8, got {objects}")
        if count < 1 or points < 1:
            raise InputError(f"count and points are at least 1, got {count} and {points}")
        self.name = "embedded"
        self.classes = NAMES
        self.seed, self.objects, self.points = seed, objects, points
        self._count = count
        self.facts: Mapping[str, Any] = {
            "path": "embedded",
            "items": count,
            "problems": [],
            "scenes": "legrad.embedded.scenes, held out",
            "seed": seed,
            "objects": list(objects),
            "points per object": points,
            "classes": len(NAMES),
        }

    def __len__(self) -> int:
        return self._count

    def keys(self) -> Sequence[str]:
        """Names of the scenes, in order."""
        return [f"scene-{self.seed}-{index}" for index in range(len(self))]

    def files(self, index: int) -> list[Path]:
        """None: scenes are drawn by the code."""
        return []

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        scene = render(self.seed, index, objects=self.objects)
        masks = dict(zip(scene.names, scene.masks, strict=True))
        # three numbers: another random stream than that of any scene, whose seed has two
        rng = np.random.default_rng([self.seed, index, 1])
        return Sample(
            key=f"scene-{self.seed}-{index}",
            image=Image.fromarray(scene.image),
            label=scene.names[int(scene.masks.sum((1, 2)).argmax())],
            masks=masks,
            points={name: _points(rng, name, masks, self.points) for name in scene.names},
        )


def _points(rng: np.random.Generator, name: str, masks: Mapping[str, NDArray[np.bool_]], count: int) -> Points:
    """Positive and negative points (count, 2) of one object, as x, y of pixel centres."""
    mask = masks[name]
    others = np.any([other for key, other in masks.items() if key != name] or [np.zeros_like(mask)], axis=0)
    background = ~(mask | others)
    on_others = min(count // 2, int(others.sum()))
    negative = [_draw(rng, others, on_others), _draw(rng, background, count - on_others)]
    return _draw(rng, mask, count), np.concatenate(negative)


def _draw(rng: np.random.Generator, region: NDArray[np.bool_], count: int) -> NDArray[np.float64]:
    """Distinct pixels of a region, (at most count, 2), as x, y of their centres."""
    places: NDArray[np.float64] = np.argwhere(region)[:, ::-1] + np.float64(0.5)
    return places[rng.choice(len(places), min(count, len(places)), replace=False)]
