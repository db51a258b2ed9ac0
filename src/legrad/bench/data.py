"""Opens what ``--data`` names: the embedded scenes, or a file or folder in one of the known formats."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from legrad import datasets
from legrad.datasets import Dataset, files
from legrad.datasets.embedded import EmbeddedScenes
from legrad.datasets.spoken import SpokenScenes
from legrad.errors import InputError
from legrad.inputs import sounds

SEED = 1  # of the held-out scenes
# benchmark -> objects in an embedded scene: one where an image is one class
_OBJECTS = {
    "segmentation": (1, 1),
    "perturbation": (1, 1),
    "sanity": (1, 1),
    "speed": (1, 1),
}
_SEVERAL = (2, 4)


def open_data(
    name: str,
    benchmark: str,
    *,
    images: Path | None = None,
    classes: Path | None = None,
    explained: str | None = None,
    unit: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """The samples.

    Args:
        name: "embedded", "embedded:LOW-HIGH" (objects in a scene), or a path: ``gtsegs_ijcv.mat``, a table of points
            (.csv), or a folder: ImageNet-S, ``images/`` with ``masks/``, class folders of images or
            of sounds, ImageNet's validation set, ADE20K Sound- or Speech-Prompted. For the audio
            benchmark "embedded" has the clips of the package, "embedded:espeak" espeak-ng to speak all 200 names.
        benchmark: decides how many objects "embedded" scenes have.
        images: the folder of images that belongs to a table of points.
        classes: class descriptions of Open Images, or the class list of ImageNet-S.
        explained: as the segmentation benchmark has it: "truth" explains each of several objects.
        unit: of the points in a table of one's own, see ``PointsCsv``.
        names: class -> name; if the classes are whole numbers, they are the ids in masks that lie in ``masks/`` itself.

    Raises:
        InputError: nothing there, or of no known format.
    """
    if unit is not None and not name.lower().endswith(".csv"):
        raise InputError(f"--unit is of the points in a table (.csv), which --data {name} is not")
    if name.partition(":")[0] == "embedded" and benchmark == "audio":
        scenes, colon, rest = name.rpartition(":espeak")
        spoken = bool(colon) and not rest
        objects = _objects(scenes if spoken else name, _SEVERAL)
        return SpokenScenes(SEED, objects, voices="espeak" if spoken else "samples")
    if name.partition(":")[0] == "embedded":
        several = benchmark not in _OBJECTS or (benchmark == "segmentation" and explained == "truth")
        return EmbeddedScenes(SEED, _objects(name, _SEVERAL if several else _OBJECTS[benchmark]))
    if not os.path.exists(name):
        raise InputError(f"--data: no file or folder {name!r}; 'embedded' are the scenes inside the package")
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            return datasets.ImageNetSegmentation(path)
        if images is None:
            raise InputError(f"--data {name} is a table of points; say where its images are with --images FOLDER")
        if "EstimatedYesNo" in files.header(path):
            if unit == "pixels":
                raise InputError("--unit is for a table of points of your own; those of Open Images are relative")
            return datasets.OpenImagesPoints(path, images, classes)
        point_unit: Any = unit or "pixels"  # checked by the reader
        return datasets.PointsCsv(path, images, point_unit)
    if (path / "prompted_segmentation.csv").is_file():
        return datasets.ADE20KPrompted(path)
    if (path / "validation-segmentation").is_dir():
        return datasets.ImageNetS(path, classes)
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return datasets.MaskFolder(path, _ids(path / "masks", names))
    if any(path.suffix.lower() in sounds.SUFFIXES for path in path.glob("*/*")):
        return datasets.SoundFolder(path)
    return datasets.ImageFolder(path)


def _ids(masks: Path, names: Mapping[str, str] | None) -> dict[int, str] | None:
    """What class ids in masks mean, or None for masks that are black and white."""
    if not names or not all(name.isdecimal() for name in names) or not files.image_paths(masks):
        return None
    return {int(name): meaning for name, meaning in names.items()}


def _objects(name: str, default: tuple[int, int]) -> tuple[int, int]:
    _, colon, text = name.partition(":")
    if not colon:
        return default
    bounds = re.fullmatch(r"(\d)(?:-(\d))?", text)
    if not bounds:
        raise InputError(f"--data {name!r}: expected embedded:LOW-HIGH, the number of objects, as in embedded:2-4")
    low = int(bounds[1])
    return low, int(bounds[2] or low)
