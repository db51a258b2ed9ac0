"""ImageNet-S (Gao et al., LUSS, arXiv:2106.03149): validation images with masks of 919, 300 or 50 classes.

``validation/<wnid>/<name>.JPEG`` and ``validation-segmentation/<wnid>/<name>.png``; a mask is RGB, class id =
R + 256 G, 0 = other, 1000 = ignore; ids count from 1 in the sorted list of WordNet ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from legrad.datasets.files import (
    PathLike,
    Problems,
    check_size,
    file,
    folder,
    image_paths,
    inside,
    refuse_empty,
    rgb_codes,
)
from legrad.datasets.sample import IGNORE, Sample
from legrad.errors import InputError
from legrad.inputs import images

_OTHER, _IGNORE = 0, 1000
_PUBLISHED = {919: 12_419, 300: 4_097, 50: 752}  # classes -> validation images


class ImageNetS:
    """Validation images with the masks of all classes in them; ``label`` is the folder's WordNet id.

    ``masks`` always has the class ``label``, with an empty mask if the annotators marked none of it;
    ``extra[IGNORE]`` marks the pixels with id 1000.

    Args:
        root: ``ImageNetS919``, ``ImageNetS300`` or ``ImageNetS50``.
        classes: file with a WordNet id per line (``ImageNetS_categories_im919.txt``), in any order. None = the folders'
            names, which must then be all 919, 300 or 50: with one missing, ids would silently mean other classes.

    Attributes:
        classes: the sorted WordNet ids; id 1 is the first.

    Raises:
        InputError: a folder is missing, or the list of classes is not complete.
    """

    name = "imagenet-s"

    def __init__(self, root: PathLike, classes: PathLike | None = None) -> None:
        self._root = folder(root, "ImageNet-S (the folder that holds validation/ and validation-segmentation/)")
        self._images = folder(self._root / "validation", "ImageNet-S")
        self._masks = folder(self._root / "validation-segmentation", "ImageNet-S")
        folders = sorted(p.name for p in self._images.iterdir() if p.is_dir() and not p.name.startswith("."))
        self.classes = folders if classes is None else _read_ids(file(classes, "the list of ImageNet-S classes"))
        if classes is None and len(folders) not in _PUBLISHED:
            raise InputError(
                f"{self._images} has {len(folders)} class folders, the published sets 919, 300 or 50; mask ids are "
                "positions in the full sorted list: give it as classes=ImageNetS_categories_im919.txt"
            )
        problems = Problems()
        for unknown in sorted(set(folders) - set(self.classes)):
            problems.add("a folder left out because its class is not in the list", unknown)
        self._items = [
            (wnid, path.name) for wnid in folders if wnid in self.classes for path in image_paths(self._images / wnid)
        ]
        refuse_empty(self._items, self._images, "images in class folders", problems)
        published = _PUBLISHED.get(len(self.classes))
        if published not in (None, len(self._items)):
            problems.add(f"not the published set of {published} images", str(len(self._items)))
        self.facts: Mapping[str, Any] = {
            "path": str(self._root),
            "items": len(self._items),
            "classes": len(self.classes),
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._items)

    def keys(self) -> list[str]:
        """``wnid/name`` of every image."""
        return ["/".join(item) for item in self._items]

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        wnid, name = self._items[index]
        return [inside(self._images, f"{wnid}/{name}"), inside(self._masks, f"{wnid}/{Path(name).stem}.png")]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``, see ``Dataset``."""
        wnid, name = self._items[index]
        image = images.read(inside(self._images, f"{wnid}/{name}"))
        path = inside(self._masks, f"{wnid}/{Path(name).stem}.png")
        codes = rgb_codes(path)
        ids = codes[..., 0] + 256 * codes[..., 1]
        check_size(ids, image, path)
        present = [int(value) for value in np.unique(ids) if value not in (_OTHER, _IGNORE)]
        unknown = [value for value in present if value > len(self.classes)]
        if unknown:
            raise InputError(f"{path} holds the class id {unknown[0]}, there are {len(self.classes)} classes")
        masks = {self.classes[value - 1]: ids == value for value in present}
        masks.setdefault(wnid, np.zeros(ids.shape, bool))
        return Sample(f"{wnid}/{name}", image, wnid, masks, extra={IGNORE: ids == _IGNORE})


def _read_ids(path: Path) -> list[str]:
    """The WordNet ids of a file, sorted."""
    try:
        wnids = sorted(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not wnids or len(set(wnids)) < len(wnids):
        raise InputError(f"{path} must hold one WordNet id per line, each once")
    return wnids
