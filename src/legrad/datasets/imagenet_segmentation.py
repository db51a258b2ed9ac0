"""ImageNet-Segmentation (Guillaumin et al., IJCV 2014): ``gtsegs_ijcv.mat``, the set of the Chefer lineage.

A MATLAB v7.3 file, which is HDF5. ``/value`` holds four (N, 1) arrays of object references: ``img`` -> uint8 (3, W, H);
``gt`` -> references (1 to 32, the first one counts) -> uint8 (W, H) of 0 and 1; ``id`` and ``target`` -> uint16
character codes, the image's name and its WordNet id.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad.datasets.files import PathLike, Problems, check_size, file, refuse_empty
from legrad.datasets.names import is_wordnet_id
from legrad.datasets.sample import Sample
from legrad.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PUBLISHED = {"images": 4276, "classes": 445}
_MOST_PARTS = 32


class ImageNetSegmentation:
    """Images of one object class each, with its mask: ``masks`` has the one key ``label``, a WordNet id.

    The file is opened when the first item is read, and again in every forked or spawned worker: HDF5 handles survive
    neither. Needs h5py (``pip install 'legrad[bench]'``).

    Args:
        path: ``gtsegs_ijcv.mat``.

    Attributes:
        classes: the WordNet ids, sorted.

    Raises:
        InputError: missing, or not of this layout.
    """

    name = "imagenet-segmentation"

    def __init__(self, path: PathLike) -> None:
        self._path = str(file(path, "ImageNet-Segmentation (gtsegs_ijcv.mat)"))
        self._handle: Any = None
        self._pid = 0
        problems = Problems()
        with self._context("incomplete or damaged"), self._file() as opened:
            columns = self._columns(opened)
            self._keys: list[str] = []
            self._labels: list[str | None] = []
            for index in range(len(columns["img"])):
                self._keys.append(self._key(opened, columns["id"], index, problems))
                self._labels.append(self._label(opened, columns["target"], index, problems))
        refuse_empty(self._keys, self._path, "images", problems)
        self.classes = sorted({label for label in self._labels if label is not None})
        found = {"images": len(self), "classes": len(self.classes)}
        if found != PUBLISHED:
            problems.add("not the published set of 4276 images and 445 classes", " and ".join(map(str, found.values())))
        self.facts: Mapping[str, Any] = {
            "path": self._path,
            "items": len(self),
            "classes": len(self.classes),
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        """The images' own identifiers."""
        return list(self._keys)

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``; ``extra["parts"]`` is how many masks the file refers to, the first of which is taken."""
        key, label = self._keys[index], self._labels[index]
        if label is None:
            raise InputError(f"{self._path}, {key}: its class is not a WordNet id such as n01440764")
        with self._context(key):
            opened = self._open()
            columns = opened["value"]
            image = self._image(opened, columns["img"][index, 0])
            mask, parts = self._mask(opened, columns["gt"][index, 0])
        check_size(mask, image, f"{self._path}, {key}")
        return Sample(key, image, label, {label: mask}, extra={"parts": parts})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def _open(self) -> Any:
        if self._handle is None or self._pid != os.getpid():
            self._handle, self._pid = self._file(), os.getpid()
        return self._handle

    def _file(self) -> Any:
        if not _h5py().is_hdf5(self._path):
            raise InputError(
                f"{self._path} is not a MATLAB v7.3 (HDF5) file; gtsegs_ijcv.mat is expected, perhaps it came "
                "incomplete"
            )
        return _h5py().File(self._path, "r")

    def _columns(self, opened: Any) -> Mapping[str, Any]:
        h5py = _h5py()
        group = opened.get("value")
        if group is not None and group.file.id != opened.id:
            raise InputError(f"{self._path}: /value is a link to another file; data must not lead out of its own")
        found = {name: group.get(name) for name in ("img", "gt", "id", "target")} if _is_group(group) else {}
        if not found or None in found.values():
            missing = [name for name, column in found.items() if column is None] or ["value"]
            raise InputError(f"{self._path} is not gtsegs_ijcv.mat: {', '.join(missing)} is missing in it")
        for name, column in found.items():
            if not isinstance(column, h5py.Dataset) or h5py.check_ref_dtype(column.dtype) is not h5py.Reference:
                raise InputError(f"{self._path}: value/{name} must be an array of object references")
            if column.ndim != 2 or column.shape[1] != 1:
                raise InputError(f"{self._path}: value/{name} must have shape (N, 1), not {column.shape}")
        lengths = {name: len(column) for name, column in found.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{self._path}: the arrays in /value differ in length: {lengths}")
        return found

    def _key(self, opened: Any, column: Any, index: int, problems: Problems) -> str:
        try:
            with self._context(f"item {index}"):
                key = _text(opened, column[index, 0])
        except InputError as error:
            problems.add("an unreadable identifier", str(error))
            return f"item {index}"
        if not key or key in self._keys:
            problems.add("an identifier that is empty or not unique", f"{key!r} of item {index}")
            return f"{key}#{index}"
        return key

    def _label(self, opened: Any, column: Any, index: int, problems: Problems) -> str | None:
        try:
            with self._context(f"item {index}"):
                label = _text(opened, column[index, 0])
        except InputError as error:
            problems.add("an unreadable class", str(error))
            return None
        if not is_wordnet_id(label):
            problems.add("a class that is not a WordNet id", f"{label!r} of item {index}")
            return None
        return label

    def _image(self, opened: Any, reference: Any) -> Image.Image:
        values = _array(opened, reference, "an image")
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[0] != 3 or values.size == 0:
            raise ValueError(f"an image is uint8 (3, width, height), this one {values.dtype} {values.shape}")
        return Image.fromarray(np.ascontiguousarray(values.transpose(2, 1, 0)))

    def _mask(self, opened: Any, reference: Any) -> "tuple[NDArray[np.bool_], int]":
        h5py = _h5py()
        parts = opened[reference]
        if not isinstance(parts, h5py.Dataset) or h5py.check_ref_dtype(parts.dtype) is not h5py.Reference:
            raise ValueError("gt must refer to an array of references, and these to masks")
        if parts.ndim != 2 or not 1 <= parts.size <= _MOST_PARTS:
            raise ValueError(f"gt must refer to 1 to {_MOST_PARTS} masks in a 2-D array, this one has {parts.shape}")
        values = _array(opened, parts[0, 0], "a mask")
        if values.dtype != np.uint8 or values.ndim != 2:
            raise ValueError(f"a mask is uint8 (width, height), this one {values.dtype} {values.shape}")
        if values.size and values.max() > 1:
            raise ValueError(f"a mask holds 0 and 1, this one {np.unique(values)[:5].tolist()}")
        return np.ascontiguousarray(values.T).astype(bool), int(parts.size)

    @contextmanager
    def _context(self, key: str) -> Iterator[None]:
        """Whatever h5py or a check says, as one line with the item's name."""
        try:
            yield
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise InputError(f"{self._path}, {key}: {error}") from error


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise InputError("gtsegs_ijcv.mat is read with h5py: pip install 'legrad[bench]'") from error


def _is_group(value: Any) -> bool:
    return isinstance(value, _h5py().Group)


def _array(opened: Any, reference: Any, what: str) -> "NDArray[Any]":
    found = opened[reference]
    if not isinstance(found, _h5py().Dataset):
        raise ValueError(f"the reference to {what} leads to a group")
    if found.external or found.is_virtual:
        raise ValueError(f"{what} is stored in another file; data must not lead out of its own")
    if Image.MAX_IMAGE_PIXELS is not None and found.size > 3 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{what} has {found.size} values, more than Pillow's limit for images")
    return np.asarray(found)


def _text(opened: Any, reference: Any) -> str:
    codes = _array(opened, reference, "a text")
    if codes.dtype != np.uint16:
        raise ValueError(f"a text is uint16 character codes, this one {codes.dtype}")
    return "".join(map(chr, codes.ravel()))
