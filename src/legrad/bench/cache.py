"""Maps and answers that several benchmarks of a study ask for, computed once."""

import hashlib
from collections.abc import Callable, Hashable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

# images and the targets of each -> for every image a tensor (its targets, ...)
Compute = Callable[[Sequence[Image], Sequence[Sequence[Tensor | int]]], Sequence[tuple[Tensor, ...]]]


class MapCache:
    """Remembers what was computed for an image and a target, as long as the model's weights stay as they are.

    A map never depends on its company in a batch, so that it can be taken from another benchmark's batch. On the patch
    grid it is small: a thousand images with three targets and twenty methods take 40 MB.
    """

    def __init__(self) -> None:
        self._state: Hashable = None
        self._found: dict[Hashable, tuple[Tensor, ...]] = {}

    def __call__(
        self,
        compute: Compute,
        images: Sequence[Image],
        targets: Sequence[Sequence[Tensor | int]],
        what: Hashable,
        state: Hashable,
    ) -> list[tuple[Tensor, ...]]:
        """What ``compute`` gives, asked only for what is not known yet.

        Args:
            compute: for some images and some of their targets.
            images: RGB.
            targets: for every image at least one: an embedding or a class index.
            what: all else that decides about the result: method and arguments.
            state: of the model; with another one everything is forgotten.

        Returns:
            For every image tensors (its targets, ...).
        """
        if state != self._state:
            self._found.clear()
            self._state = state
        keys = [
            [(what, name, _digest(target)) for target in own]
            for name, own in zip(map(_digest, images), targets, strict=True)
        ]
        missing = [
            [target for key, target in zip(names, own, strict=True) if key not in self._found]
            for names, own in zip(keys, targets, strict=True)
        ]
        rows = [row for row, own in enumerate(missing) if own]
        if rows:
            computed = compute([images[row] for row in rows], [missing[row] for row in rows])
            for row, parts in zip(rows, computed, strict=True):
                new = [key for key in keys[row] if key not in self._found]
                for key, *values in zip(new, *parts, strict=True):
                    self._found[key] = tuple(value.clone() for value in values)
        return [tuple(map(torch.stack, zip(*(self._found[key] for key in own), strict=True))) for own in keys]


def _digest(thing: Image | Tensor | int) -> Hashable:
    """Names an image or a target by its content."""
    if isinstance(thing, int):
        return thing
    size = tuple(thing.size if isinstance(thing, Image) else thing.shape)
    content = thing.tobytes() if isinstance(thing, Image) else thing.detach().cpu().contiguous().numpy().tobytes()
    return size, hashlib.blake2b(content, digest_size=16).digest()
