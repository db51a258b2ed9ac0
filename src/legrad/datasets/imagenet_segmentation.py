"""ImageNet-Segmentation (Guillaumin et al., IJCV 2014): ``gtsegs_ijcv.mat``, the set of the Chefer lineage.

A MATLAB v7.3 file, which is HDF5. ``/value`` holds four (N, 1) arrays of object references: ``img`` -> uint8 (3, W, H);
``gt`` -> references (1 to 32, the first one counts) -> uint8 (W, H) of 0 and 1; ``id`` and ``target`` -> uint16
character codes, the image's name and its WordNet id.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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
        with self._context("incomplete or damaged"), self._file() as hdf5:
            columns = self._columns(hdf5)
            self._keys: list[str] = []
            self._labels: list[str | None] = []
            for index in range(len(columns["img"])):
                self._keys.append(self._key(hdf5, columns["id"], index, problems))
                self._labels.append(self._label(hdf5, columns["target"], index, problems))
        refuse_empty(self._keys, self._path, "images", problems)
        self.classes = sorted({label for label in self._labels if label is not None})
        counts = {"images": len(self), "classes": len(self.classes)}
        if counts != PUBLISHED:
            problems.add(
                "not the published set of 4276 images and 445 classes", " and ".join(map(str, counts.values()))
            )
        self.facts: Mapping[str, Any] = {
            "path": self._path,
            "items": len(self),
            "classes": len(self.classes),
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        """The images' identifiers in the file."""
        return list(self._keys)

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        return [Path(self._path)]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``; ``extra["parts"]`` is the number of masks in the file, of which the first is used."""
        key, label = self._keys[index], self._labels[index]
        if label is None:
            raise InputError(f"{self._path}, {key}: its class is not a WordNet id such as n01440764")
        with self._context(key):
            hdf5 = self._open()
            columns = hdf5["value"]
            image = self._image(hdf5, columns["img"][index, 0])
            mask, parts = self._mask(hdf5, columns["gt"][index, 0])
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
                f"{self._path} is not a MATLAB v7.3 (HDF5) file; gtsegs_ijcv.mat is expected, perhaps it is incomplete"
            )
        return _h5py().File(self._path, "r")

    def _columns(self, hdf5: Any) -> Mapping[str, Any]:
        h5py = _h5py()
        group = hdf5.get("value")
        if group is not None and group.file.id != hdf5.id:
            raise InputError(f"{self._path}: /value is a link to another file; data must not lead out of its own")
        columns = {name: group.get(name) for name in ("img", "gt", "id", "target")} if _is_group(group) else {}
        if not columns or None in columns.values():
            missing = [name for name, column in columns.items() if column is None] or ["value"]
            raise InputError(f"{self._path} is not gtsegs_ijcv.mat: {', '.join(missing)} is missing in it")
        for name, column in columns.items():
            if not isinstance(column, h5py.Dataset) or h5py.check_ref_dtype(column.dtype) is not h5py.Reference:
                raise InputError(f"{self._path}: value/{name} must be an array of object references")
            if column.ndim != 2 or column.shape[1] != 1:
                raise InputError(f"{self._path}: value/{name} must have shape (N, 1), not {column.shape}")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{self._path}: the arrays in /value differ in length: {lengths}")
        return columns

    def _key(self, hdf5: Any, column: Any, index: int, problems: Problems) -> str:
        try:
            with self._context(f"item {index}"):
                key = _text(hdf5, column[index, 0])
        except InputError as error:
            problems.add("an unreadable identifier", str(error))
            return f"item {index}"
        if not key or key in self._keys:
            problems.add("an identifier that is empty or not unique", f"{key!r} of item {index}")
            return f"{key}#{index}"
        return key

    def _label(self, hdf5: Any, column: Any, index: int, problems: Problems) -> str | None:
        try:
            with self._context(f"item {index}"):
                label = _text(hdf5, column[index, 0])
        except InputError as error:
            problems.add("an unreadable class", str(error))
            return None
        if not is_wordnet_id(label):
            problems.add("a class that is not a WordNet id", f"{label!r} of item {index}")
            return None
        return label

    def _image(self, hdf5: Any, reference: Any) -> Image.Image:
        values = _array(hdf5, reference, "an image")
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[0] != 3 or values.size == 0:
            raise ValueError(f"an image is uint8 (3, width, height), this one {values.dtype} {values.shape}")
        return Image.fromarray(np.ascontiguousarray(values.transpose(2, 1, 0)))

    def _mask(self, hdf5: Any, reference: Any) -> "tuple[NDArray[np.bool_], int]":
        h5py = _h5py()
        parts = hdf5[reference]
        if not isinstance(parts, h5py.Dataset) or h5py.check_ref_dtype(parts.dtype) is not h5py.Reference:
            raise ValueError("gt must refer to an array of references, and these to masks")
        if parts.ndim != 2 or not 1 <= parts.size <= _MOST_PARTS:
            raise ValueError(f"gt must refer to 1 to {_MOST_PARTS} masks in a 2-D array, this one has {parts.shape}")
        values = _array(hdf5, parts[0, 0], "a mask")
        if values.dtype != np.uint8 or values.ndim != 2:
            raise ValueError(f"a mask is uint8 (width, height), this one {values.dtype} {values.shape}")
        if values.size and values.max() > 1:
            raise ValueError(f"a mask holds 0 and 1, this one {np.unique(values)[:5].tolist()}")
        return np.ascontiguousarray(values.T).astype(bool), int(parts.size)

    @contextmanager
    def _context(self, key: str) -> Iterator[None]:
        """Turn errors of h5py and of the checks into an ``InputError`` that names the item."""
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


def _array(hdf5: Any, reference: Any, what: str) -> "NDArray[Any]":
    data = hdf5[reference]
    if not isinstance(data, _h5py().Dataset):
        raise ValueError(f"the reference to {what} leads to a group")
    if data.external or data.is_virtual:
        raise ValueError(f"{what} is stored in another file; data must not lead out of its own")
    if Image.MAX_IMAGE_PIXELS is not None and data.size > 3 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{what} has {data.size} values, more than Pillow's limit for images")
    return np.asarray(data)


def _text(hdf5: Any, reference: Any) -> str:
    codes = _array(hdf5, reference, "a text")
    if codes.dtype != np.uint16:
        raise ValueError(f"a text is uint16 character codes, this one {codes.dtype}")
    return "".join(map(chr, codes.ravel()))
