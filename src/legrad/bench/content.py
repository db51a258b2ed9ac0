"""A digest of what an item of a data set is made of: an image that was replaced under its name is another item."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from legrad.datasets import Dataset, Sample

_BLOCK = 1 << 20


class Contents:
    """Digests of the items of a data set, each made once.

    A data set with a method ``files(index)`` names the files that decide about an item, whose bytes are hashed without
    being decoded; items of other data sets are read.
    """

    def __init__(self, data: Dataset) -> None:
        self._data = data
        self._files: dict[Path, str] = {}
        self._items: dict[int, str] = {}

    def __getitem__(self, index: int) -> str:
        if index not in self._items:
            files = getattr(self._data, "files", None)
            try:
                self._items[index] = self._of_sample(index) if files is None else self._of_files(files(index))
            except Exception:  # whatever is wrong with the item: measuring it will say so
                self._items[index] = "unreadable"
        return self._items[index]

    def _of_files(self, paths: Sequence[Path]) -> str:
        for path in paths:
            if path not in self._files:
                self._files[path] = _file_digest(path)
        return hashlib.blake2b("\n".join(self._files[path] for path in paths).encode(), digest_size=8).hexdigest()

    def _of_sample(self, index: int) -> str:
        sample = self._data[index]
        digest = hashlib.blake2b(digest_size=8)
        _update(digest, [getattr(sample, name) for name in Sample.__dataclass_fields__])
        return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:  # the item will be a problem
        return type(error).__name__
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Add a value of a sample: images, arrays, texts, numbers, and collections of those."""
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        digest.update(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        _update(digest, sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for inner in value:
            _update(digest, inner)
    else:
        digest.update(ascii(value).encode() + b";")
