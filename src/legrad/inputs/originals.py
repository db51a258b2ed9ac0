"""Originals of image files: the first ones are kept, beyond a limit they are read again when they are shown."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from legrad.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT_BYTES = 1 << 30  # of the originals of a call, unless it is told how much memory it may take


class Allowance:
    """Bytes of originals that a call may keep, for several threads.

    Args:
        limit: bytes; None for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self._left, self._lock = limit, threading.Lock()

    def take(self, count: int) -> bool:
        """Whether so many bytes may be kept too."""
        with self._lock:
            if self._left is None:
                return True
            if count > self._left:
                return False
            self._left -= count
            return True


@dataclass(frozen=True)
class ImageFile:
    """The image of a file, read again when it is needed.

    Attributes:
        path: of the file.
        stamp: when it was changed last, and its size.
        read: path -> the image.
    """

    path: str
    stamp: tuple[int, int]
    read: Callable[[str], Any]

    def array(self) -> "NDArray[np.uint8]":
        """(H, W, 3).

        Raises:
            InputError: the file changed, or is gone.
        """
        try:
            stamp = stamp_of(self.path)
        except OSError:
            stamp = None
        if stamp != self.stamp:
            change = "is gone" if stamp is None else "was changed"
            raise InputError(
                f"{self.path} {change} since it was explained, and the original was not kept in memory: show results "
                "before files change, or explain fewer images at once"
            )
        return np.asarray(self.read(self.path))


def stamp_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """What changes with a file: its time of change in nanoseconds, and its size."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


class Originals(Sequence["NDArray[np.uint8]"]):
    """Images, some of which are read from their files when they are asked for; the last one is remembered.

    Args:
        images: arrays, or files.
    """

    def __init__(self, images: "Sequence[NDArray[np.uint8] | ImageFile]") -> None:
        self._images = tuple(images)
        self._last: tuple[ImageFile, NDArray[np.uint8]] | None = None

    @overload
    def __getitem__(self, index: int) -> "NDArray[np.uint8]": ...
    @overload
    def __getitem__(self, index: slice) -> "Originals": ...
    def __getitem__(self, index: int | slice) -> "NDArray[np.uint8] | Originals":
        if isinstance(index, slice):
            return Originals(self._images[index])
        image = self._images[index]
        if not isinstance(image, ImageFile):
            return image
        last = self._last
        if last is None or last[0] is not image:
            self._last = last = image, image.array()
        return last[1]

    def __len__(self) -> int:
        return len(self._images)


def shown_again(images: "Sequence[NDArray[np.uint8] | ImageFile]") -> "Sequence[NDArray[np.uint8]]":
    """Images for a result: a list, or ``Originals`` where some are to be read again."""
    arrays = [image for image in images if not isinstance(image, ImageFile)]
    return arrays if len(arrays) == len(images) else Originals(images)
