"""Shared by the readers: paths inside the data root, tables, masks with their stored values, and lists of problems."""

import csv
import os
import posixpath
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad.checks import first_line
from legrad.errors import InputError
from legrad.inputs import formats, images

if TYPE_CHECKING:
    from numpy.typing import NDArray

PathLike = str | os.PathLike[str]


def folder(path: PathLike, what: str) -> Path:
    """An existing folder as an absolute path, so that the same data has the same path however the user names it.

    Args:
        path: the folder.
        what: what is expected there, for the message.

    Raises:
        InputError: no such folder.
    """
    name = images.path_of(path)
    if not os.path.isdir(name):
        raise InputError(f"{what}: no folder {name!r}")
    return Path(name).resolve()


def file(path: PathLike, what: str) -> Path:
    """An existing file as an absolute path; as ``folder``."""
    name = images.path_of(path)
    if not os.path.isfile(name):
        raise InputError(f"{what}: no file {name!r}")
    return Path(name).resolve()


def inside(root: Path, name: str) -> Path:
    """The path of a name that a data file contains; it must not lead out of the data root.

    Only the name is checked: symbolic links inside the root are trusted (ImageNet-S consists of them).

    Raises:
        InputError: empty, absolute, or with ``..`` beyond the root.
    """
    normal = posixpath.normpath(name.replace("\\", "/"))
    escapes = normal.split("/")[0] in ("", "..") or os.path.splitdrive(normal)[0]
    if not name.strip() or "\0" in name or normal == "." or escapes:
        raise InputError(f"{name!r} is not a file inside {root}; paths in data files must stay there")
    return root / normal


def files_with_suffix(root: Path, suffixes: Collection[str], nested: bool = False) -> list[Path]:
    """The files of a folder with one of the suffixes, sorted, without hidden ones; ``nested``: of its folders too."""
    paths = root.rglob("*") if nested else root.iterdir()
    return sorted(p for p in paths if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file())


def image_paths(root: Path, nested: bool = False) -> list[Path]:
    """The images of a folder, see ``files_with_suffix``."""
    return files_with_suffix(root, images.SUFFIXES, nested)


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with a header; columns are found by name, in any order.

    Raises:
        InputError: missing, not text, not a table, or without one of ``columns``.
    """
    with _open(path) as lines:
        reader = csv.DictReader(lines)
        try:
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(map(repr, missing))}; its header is "
                    f"{', '.join(reader.fieldnames or ()) or 'empty'}"
                )
            for row in reader:
                # a short line leaves None
                yield reader.line_num, {name: row[name] or "" for name in row if isinstance(name, str)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a CSV table in UTF-8: {first_line(error)}") from error


def header(path: Path) -> list[str]:
    """The first row of a CSV file."""
    with _open(path) as lines:
        try:
            return next(csv.reader(lines), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a CSV table in UTF-8: {first_line(error)}") from error


def cells(path: Path) -> list[list[str]]:
    """All rows of a CSV file, a header included, without empty lines."""
    with _open(path) as lines:
        try:
            return [row for row in csv.reader(lines) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a CSV table in UTF-8: {first_line(error)}") from error


def _open(path: Path) -> Any:
    try:
        return open(path, newline="", encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


def read_mask(path: Path) -> Image.Image:
    """A mask's image with the values of the file: no conversion, no EXIF rotation.

    Raises:
        InputError: missing, unreadable, or too large.
    """
    if not path.is_file():
        raise InputError(f"no such mask: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with formats.open_image(path) as image:
                image.load()
                return image
    except Exception as error:  # Pillow's readers raise errors of any type for a broken file
        raise InputError(f"{path} is not a mask that Pillow can read: {formats.reason(path, error)}") from error


def rgb_codes(path: Path) -> "NDArray[np.int64]":
    """The three channels (H, W, 3) of a mask whose colours encode numbers."""
    mask = read_mask(path)
    if mask.mode != "RGB":
        raise InputError(f"{path}: an RGB-coded mask is expected, this one has mode {mask.mode}")
    return np.asarray(mask, np.int64)


def check_size(mask: "NDArray[Any]", image: Image.Image, name: Any) -> None:
    """Raise ``InputError`` unless a mask (H, W, ...) has the size of its image, and surely its orientation."""
    height, width = mask.shape[:2]
    orientation = image.info.get(images.TURNED)
    if orientation is not None and (width, height) == image.size and (width == height or orientation < 5):
        raise InputError(
            f"{name}: its image was turned by its EXIF orientation {orientation}, and the mask's size does not tell "
            "whether it was drawn before or after; save the image upright, without the orientation, to fit the mask"
        )
    if (width, height) != image.size:
        raise InputError(
            f"{name}: the mask is {width} x {height} pixels, its image {image.width} x {image.height}; must be equal"
        )


class Problems:
    """What is wrong in a data set: problems of one kind are counted, and the first is kept as an example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one more problem of a kind."""
        count, first = self._kinds.get(kind, (0, example))
        self._kinds[kind] = count + 1, first

    def lines(self) -> list[str]:
        """One line per kind: the count, the kind and the first example."""
        return [f"{count} x {kind}; first: {first}" for kind, (count, first) in self._kinds.items()]


def refuse_empty(items: Iterable[Any], path: PathLike, what: str, problems: Problems) -> None:
    """Raise ``InputError`` if a data set has no item; the message lists the problems."""
    if not any(True for _ in items):
        reasons = "; ".join(problems.lines())
        raise InputError(f"{os.fspath(path)} holds no {what}" + (f" ({reasons})" if reasons else ""))
