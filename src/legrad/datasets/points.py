"""Points labelled with a class that is or is not there: Open Images V7, and any CSV file of points."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from legrad.datasets.files import PathLike, Problems, cells, file, folder, inside, refuse_empty, rows
from legrad.datasets.sample import Sample
from legrad.errors import InputError
from legrad.inputs.images import read

if TYPE_CHECKING:
    from PIL import Image

_YES = {"yes", "y", "true", "1", "positive", "pos", "+"}
_NO = {"no", "n", "false", "0", "-1", "negative", "neg", "-"}
_DROPPED = {"unsure", ""}

# file name -> class -> ([positive (x, y)], [negative (x, y)])
_Points = dict[str, dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]]]


class PointsCsv:
    """Points from a table with one line per point.

    Args:
        table: CSV with a header; columns in any order: ``image`` (file name in ``images``), ``class``, ``x``,
            ``y``, ``label`` (yes or no; also 1/0, true/false, positive/negative; unsure points are left out).
        images: the folder of images.
        unit: of x and y, "pixels" of the upright image, or "relative" to its width and height, in [0, 1].
        absent: also give classes that have only negative points in an image. The published protocol asks only for
            classes that are there.
        columns: names of the five columns in the table, in the order above.

    Raises:
        InputError: a file or column is missing, no usable point is left, or "pixels" that all lie in [0, 1].
    """

    name = "points"

    def __init__(
        self,
        table: PathLike,
        images: PathLike,
        unit: Literal["pixels", "relative"] = "pixels",
        absent: bool = False,
        columns: tuple[str, str, str, str, str] = ("image", "class", "x", "y", "label"),
    ) -> None:
        if unit not in ("pixels", "relative"):
            raise InputError(f"unit is 'pixels' or 'relative', got {unit!r}")
        self._root, self._unit = folder(images, "the folder of images"), unit
        path, problems = file(table, "the table of points"), Problems()
        points: _Points = {}
        image_column, class_column, x_column, y_column, label_column = columns
        for line, row in rows(path, columns):
            where = f"line {line}"
            if not row[image_column].strip() or not row[class_column].strip():
                problems.add("a point without image or class", where)
                continue
            key, place = (row[image_column], row[class_column]), (row[x_column], row[y_column])
            _add(points, key, place, row[label_column], unit, where, problems)
        if unit == "pixels" and _look_relative(points):
            raise InputError(
                f"{path}: all x and y lie in [0, 1], which are no pixels; say unit='relative' (--unit relative) if "
                "they are shares of the image's width and height"
            )
        self._items = _usable(points, self._root, absent, problems)
        refuse_empty(self._items, path, "usable points", problems)
        self.facts: Mapping[str, Any] = {
            "path": str(path),
            "images": str(self._root),
            "items": len(self._items),
            "unit": unit,
            "absent": absent,
            **_counts(self._items),
            "problems": problems.lines(),
        }
        self._keys = list(self._items)

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        """The images' names in the table."""
        return list(self._keys)

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        return [Path(self.facts["path"]), inside(self._root, self._keys[index])]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``; points outside the image are an ``InputError``."""
        key = self._keys[index]
        return _sample(key, read(inside(self._root, key)), self._items[key], self._unit)


class OpenImagesPoints:
    """Open Images V7 point labels: ``points`` of the classes that are in the image, by display name.

    Args:
        table: ``oidv7-val-annotations-point-labels.csv``; only ImageId, X, Y, Label and EstimatedYesNo are needed.
        images: folder with ``<ImageId>.jpg``. Images that are not there are left out, and counted in the facts.
        classes: ``oidv7-class-descriptions.csv`` (code, display name; with or without header). None = the table's own
            ``TextLabel`` column.
        absent: also give classes that have only negative points in an image; the protocol asks for those with at
            least one positive point.

    EXIF rotation is applied to the images; whether the published JPEGs need the rotation of Open Images' own list too
    is not documented: check a few.

    Raises:
        InputError: a file is missing or not of this layout, or nothing usable is left.
    """

    name = "openimages-points"

    def __init__(
        self, table: PathLike, images: PathLike, classes: PathLike | None = None, absent: bool = False
    ) -> None:
        self._root = folder(images, "the folder of Open Images images")
        path, problems = file(table, "Open Images' table of points"), Problems()
        names = {} if classes is None else read_descriptions(file(classes, "Open Images' class descriptions"))
        codes: dict[str, str] = {}
        points: _Points = {}
        unsure = 0
        for line, row in rows(path, ("ImageId", "X", "Y", "Label", "EstimatedYesNo")):
            where = f"line {line}"
            if row["EstimatedYesNo"].strip().lower() == "unsure":
                unsure += 1
                continue
            code = row["Label"]
            name = names.get(code) or row.get("TextLabel", "").strip()
            if not name:
                problems.add("a point whose class has no name", f"{code!r} in {where}")
                continue
            if codes.setdefault(name, code) != code:
                problems.add("a point whose class shares its name with another", f"{name} is {codes[name]} and {code}")
            image = f"{row['ImageId']}.jpg"
            _add(points, (image, name), (row["X"], row["Y"]), row["EstimatedYesNo"], "relative", where, problems)
        self._items = _usable(points, self._root, absent, problems)
        refuse_empty(self._items, path, "usable points", problems)
        self._keys = list(self._items)
        self.facts: Mapping[str, Any] = {
            "path": str(path),
            "images": str(self._root),
            "items": len(self._keys),
            "absent": absent,
            "unsure": unsure,
            **_counts(self._items),
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        """``<ImageId>.jpg`` of every image."""
        return list(self._keys)

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        return [Path(self.facts["path"]), inside(self._root, self._keys[index])]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``, see ``Dataset``."""
        key = self._keys[index]
        return _sample(key, read(inside(self._root, key)), self._items[key], "relative")


def read_descriptions(path: Path) -> dict[str, str]:
    """Freebase code -> display name, from a table of two columns with or without a header."""
    table = cells(path)
    # codes begin with a slash (/m/..., /g/...), a header does not
    described = table[1:] if table and not table[0][0].startswith("/") else table
    wrong = [row for row in described if len(row) != 2 or not row[0].startswith("/")]
    if wrong or not described:
        raise InputError(
            f"{path} must hold two columns, a code such as /m/0bt9lr and a name; "
            + (f"it has the line {','.join(wrong[0])[:80]!r}" if wrong else "it is empty")
        )
    return {code: name.strip() for code, name in described}


def _add(
    points: _Points,
    key: tuple[str, str],
    place: tuple[str, str],
    label: str,
    unit: str,
    where: str,
    problems: Problems,
) -> None:
    """Add the point ``place`` (x, y) of ``key`` (image, class), or a problem."""
    answer = label.strip().lower()
    if answer in _DROPPED:
        problems.add("a point that is unsure", where)
        return
    if answer not in _YES | _NO:
        problems.add("a point that is neither yes, no nor unsure", f"{label!r} in {where}")
        return
    try:
        x, y = map(float, place)
    except ValueError:
        x = y = math.nan
    largest = 1.0 if unit == "relative" else math.inf
    if not (0 <= x <= largest and 0 <= y <= largest) or math.isinf(x + y):
        expected = "in [0, 1]" if unit == "relative" else "of pixels"
        problems.add(f"a point whose x and y are not numbers {expected}", f"{place} in {where}")
        return
    image, name = key
    pair = points.setdefault(image, {}).setdefault(name, ([], []))
    pair[0 if answer in _YES else 1].append((x, y))


def _look_relative(points: _Points) -> bool:
    """Whether no coordinate exceeds 1 and some lie between 0 and 1: relative coordinates declared as pixels."""
    places = [value for classes in points.values() for pair in classes.values() for side in pair for value in side]
    values = [value for place in places for value in place]
    return any(0 < value < 1 for value in values) and max(values) <= 1


def _usable(points: _Points, root: Path, absent: bool, problems: Problems) -> _Points:
    """The points of images that exist and have at least one class to ask for."""
    usable: _Points = {}
    for image, classes in points.items():
        try:
            missing = not inside(root, image).is_file()
        except InputError as error:
            problems.add("an image's name that leads out of its folder", str(error))
            continue
        if missing:
            problems.add("an image with points that is not in the folder", image)
            continue
        relevant = classes if absent else {name: pair for name, pair in classes.items() if pair[0]}
        if relevant:
            usable[image] = relevant
    return usable


def _counts(items: _Points) -> dict[str, int]:
    """Numbers for the result file: classes, pairs of image and class, points, pairs without negatives."""
    pairs = [pair for classes in items.values() for pair in classes.values()]
    return {
        "classes": len({name for classes in items.values() for name in classes}),
        "pairs": len(pairs),
        "positive_points": sum(len(yes) for yes, _ in pairs),
        "negative_points": sum(len(no) for _, no in pairs),
        "pairs_without_negatives": sum(not no for _, no in pairs),
    }


def _sample(key: str, image: "Image.Image", classes: Mapping[str, tuple[list[Any], list[Any]]], unit: str) -> Sample:
    """The sample with its points in pixels."""
    size = np.array(image.size, np.float64)
    points = {}
    for name, pair in classes.items():
        yes, no = (np.asarray(places, np.float64).reshape(-1, 2) for places in pair)
        if unit == "relative":
            yes, no = yes * size, no * size
        both = np.concatenate([yes, no])
        outside = both[(both > size).any(1)]
        if len(outside):
            raise InputError(
                f"{key}: the point ({outside[0, 0]:g}, {outside[0, 1]:g}) of {name} lies outside the image of "
                f"{image.width} x {image.height} pixels"
            )
        points[name] = yes, no
    return Sample(key, image, None, points=points)
