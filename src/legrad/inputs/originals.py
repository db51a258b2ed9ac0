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


@dataclass(frozen=True, eq=False)
class ImageFile:
    """The image (or the frames) of a file, kept, or read again when it is needed.

    Attributes:
        path: of the file.
        stamp: when it was changed last, and its size.
        read: path -> the image.
        kept: the image, if it is in memory; then the file is not read.
    """

    path: str
    stamp: tuple[int, int]
    read: Callable[[str], Any]
    kept: "NDArray[np.uint8] | None" = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "NDArray[Any]":
        return np.array(self.array(), dtype=dtype, copy=copy)

    def array(self) -> "NDArray[np.uint8]":
        """(H, W, 3), of videos (frames, H, W, 3).

        Raises:
            InputError: the file changed, or is gone.
        """
        if self.kept is not None:
            return self.kept
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


@dataclass(frozen=True)
class AbsentImage:
    """An image that cannot be shown any more.

    Attributes:
        reason: why, and what to do, as a message says it.
    """

    reason: str

    def array(self) -> "NDArray[np.uint8]":
        """Raises ``InputError``, always."""
        raise InputError(self.reason)


def stamp_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """What changes with a file: its time of change in nanoseconds, and its size."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


class Originals(Sequence["NDArray[np.uint8]"]):
    """Images, some of which are read from their files when they are asked for; the last one is remembered.

    Args:
        images: arrays, files, or what is said where there is no image any more.
    """

    def __init__(self, images: "Sequence[NDArray[np.uint8] | ImageFile | AbsentImage]") -> None:
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
        if isinstance(image, AbsentImage):
            return image.array()
        if not isinstance(image, ImageFile):
            return image
        if image.kept is not None:
            return image.kept
        last = self._last
        if last is None or last[0] is not image:
            self._last = last = image, image.array()
        return last[1]

    def __len__(self) -> int:
        return len(self._images)

    def source(self, index: int) -> "NDArray[np.uint8] | ImageFile | AbsentImage":
        """Where an image comes from, without reading it."""
        return self._images[index]


class KeptImages(list[Any]):
    """Images that are all in memory, some of which were read from files.

    Args:
        images: arrays, or files whose image was kept.
    """

    def __init__(self, images: "Sequence[NDArray[np.uint8] | ImageFile]") -> None:
        super().__init__(image.array() if isinstance(image, ImageFile) else image for image in images)
        self.sources = tuple(images)


def source_of(images: "Sequence[NDArray[np.uint8]]", index: int) -> "NDArray[np.uint8] | ImageFile | AbsentImage":
    """An image of a result as it is held: in memory, or as a file."""
    if isinstance(images, Originals):
        return images.source(index)
    return images.sources[index] if isinstance(images, KeptImages) else images[index]


def shown_again(images: "Sequence[NDArray[np.uint8] | ImageFile | AbsentImage]") -> "Sequence[NDArray[np.uint8]]":
    """Images for a result: a list, or ``Originals`` where some are to be read again."""
    in_memory = [image for image in images if not isinstance(image, AbsentImage) and not _is_on_disk(image)]
    return KeptImages(in_memory) if len(in_memory) == len(images) else Originals(images)


def _is_on_disk(image: "NDArray[np.uint8] | ImageFile") -> bool:
    return isinstance(image, ImageFile) and image.kept is None
