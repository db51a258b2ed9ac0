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

    A map does not depend on the other images of its batch, so that it can be taken from another benchmark's batch.
    On the patch grid it is small: a thousand images with three targets and twenty methods take 40 MB.
    """

    def __init__(self) -> None:
        self._state: Hashable = None
        self._entries: dict[Hashable, tuple[Tensor, ...]] = {}

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
            self._entries.clear()
            self._state = state
        keys = [
            [(what, image, _digest(target)) for target in row]
            for image, row in zip(map(_digest, images), targets, strict=True)
        ]
        unknown = [
            [target for key, target in zip(key_row, row, strict=True) if key not in self._entries]
            for key_row, row in zip(keys, targets, strict=True)
        ]
        rows = [index for index, row in enumerate(unknown) if row]
        if rows:
            results = compute([images[row] for row in rows], [unknown[row] for row in rows])
            for row, parts in zip(rows, results, strict=True):
                new = [key for key in keys[row] if key not in self._entries]
                for key, *values in zip(new, *parts, strict=True):
                    self._entries[key] = tuple(value.clone() for value in values)
        return [tuple(map(torch.stack, zip(*(self._entries[key] for key in row), strict=True))) for row in keys]


def _digest(item: Image | Tensor | int) -> Hashable:
    """Names an image or a target by its content."""
    if isinstance(item, int):
        return item
    size = tuple(item.size if isinstance(item, Image) else item.shape)
    content = item.tobytes() if isinstance(item, Image) else item.detach().cpu().contiguous().numpy().tobytes()
    return size, hashlib.blake2b(content, digest_size=16).digest()
