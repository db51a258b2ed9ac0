"""A folder of images with masks: ``images/`` and ``masks/``.

The content of ``masks/`` decides between three layouts:

- ``masks/<stem>.png``: one mask per image, black and white (0 and 1 or 255), or class ids if ``names`` gives
  their names;
- ``masks/<class>/<stem>.png``: one black and white mask per class and image;
- ``masks/<stem>/<class>.png``: the same, one folder per image.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.datasets.files import PathLike, Problems, check_size, folder, image_paths, read_mask, refuse_empty
from legrad.datasets.sample import IGNORE, Sample
from legrad.errors import InputError
from legrad.inputs import images

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MaskFolder:
    """Images with a mask, or one mask per class.

    Args:
        root: folder with ``images/`` and ``masks/``; a mask has its image's name, with the suffix .png or another.
        names: id in the masks -> class name, for masks of class ids (0 = background unless it is named). None = masks
            are black and white: 0 is background, everything else the object.
        class_name: class of a black and white mask that is not in a class folder.
        ignore: id of pixels that count nowhere, in masks of class ids; usual is 255.

    Attributes:
        classes: of all masks. A sample's label is the class with its largest mask.

    Raises:
        InputError: a folder is missing, or there is no image.
    """

    name = "mask-folder"

    def __init__(
        self,
        root: PathLike,
        names: Mapping[int, str] | None = None,
        class_name: str = "object",
        ignore: int | None = 255,
    ) -> None:
        self._root = folder(root, "a folder with images/ and masks/")
        self._names, self._class_name, self._ignore = names, class_name, ignore
        self._paths = image_paths(folder(self._root / "images", "the folder of images"))
        problems = Problems()
        refuse_empty(self._paths, self._root / "images", "images", problems)
        self._stems = Counter(path.stem for path in self._paths)
        masks = folder(self._root / "masks", "the folder of masks")
        self._masks = _mask_files(masks, self._stems.keys(), class_name, problems)
        present = {name for files in self._masks.values() for name in files}
        self.classes = tuple(sorted(present)) if names is None else tuple(names.values())
        self.facts: Mapping[str, Any] = {
            "path": str(self._root),
            "items": len(self._paths),
            "names": None if names is None else {str(key): name for key, name in names.items()},
            "problems": problems.lines(),
        }

    @property
    def is_unnamed(self) -> bool:
        """Whether the masks are black and white, without a class folder."""
        return self._names is None and self.classes == (self._class_name,)

    def __len__(self) -> int:
        return len(self._paths)

    def keys(self) -> list[str]:
        """The images' file names."""
        return [path.name for path in self._paths]

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        path = self._paths[index]
        return [path, *(file for _, file in sorted(self._masks.get(path.stem, {}).items()))]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``; an image without any mask, or with the stem of another one, is an ``InputError``."""
        path = self._paths[index]
        if self._stems[path.stem] > 1:
            raise InputError(f"{self._root}/images has two images named {path.stem}: whose is the mask?")
        image = images.read(path)
        files = self._masks.get(path.stem, {})
        if not files:
            raise InputError(
                f"{path} has no mask: expected {self._root}/masks/{path.stem}.png, or one in a class folder"
            )
        if self._names is not None:
            return self._class_id_sample(path, image, files)
        masks = {}
        for name, file in sorted(files.items()):
            # in masks/ itself another value may be a class id; a mask in a folder is of one class, whatever its value
            masks[name] = _binary(file, (0, 1, 255, 65535) if file.parent == self._root / "masks" else None)
            check_size(masks[name], image, file)
        return Sample(path.name, image, _largest(masks), masks)

    def _class_id_sample(self, path: Path, image: Any, files: Mapping[str, Path]) -> Sample:
        assert self._names is not None
        if list(files) != [self._class_name]:
            raise InputError(f"{path}: names= is for one mask of class ids per image, here are masks of {list(files)}")
        file = files[self._class_name]
        ids = _grey(file)
        check_size(ids, image, file)
        present = [int(value) for value in np.unique(ids)]
        unknown = [v for v in present if v not in self._names and v not in (0, self._ignore)]
        if unknown:
            raise InputError(f"{file} holds the class id {unknown[0]}, which has no name; names has {len(self._names)}")
        masks = {self._names[value]: ids == value for value in present if value in self._names}
        ignored = np.zeros(ids.shape, bool)
        if self._ignore is not None and self._ignore not in self._names:
            ignored = ids == self._ignore
        return Sample(path.name, image, _largest(masks), masks, extra={IGNORE: ignored})


def _largest(masks: "Mapping[str, NDArray[np.bool_]]") -> str | None:
    """The class with the largest mask; None if there is none with any pixel."""
    areas = {name: int(mask.sum()) for name, mask in masks.items()}
    name = max(areas, key=lambda name: areas[name], default=None)
    return name if name is not None and areas[name] else None


def _mask_files(root: Path, stems: Collection[str], class_name: str, problems: Problems) -> dict[str, dict[str, Path]]:
    """Stem of the image -> class name -> file of the mask."""
    files: dict[str, dict[str, Path]] = {}

    def add(stem: str, name: str, path: Path) -> None:
        if stem not in stems:
            problems.add("a mask without an image", str(path))
        elif name in files.setdefault(stem, {}):
            raise InputError(f"{path} and {files[stem][name]} are both the mask of {name} in {stem}: which one counts?")
        else:
            files[stem][name] = path

    for path in image_paths(root):
        add(path.stem, class_name, path)
    for subfolder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        inner = image_paths(subfolder)
        by_image = subfolder.name in stems
        if by_image and any(path.stem in stems for path in inner):
            raise InputError(
                f"{subfolder}: is {subfolder.name} an image or a class? Both its name and its files are images' names"
            )
        for path in inner:
            add(*((subfolder.name, path.stem) if by_image else (path.stem, subfolder.name)), path)
    return files


def _grey(path: Path) -> "NDArray[np.int64]":
    mask = read_mask(path)
    if mask.mode not in ("1", "L", "P", "I", "I;16"):
        raise InputError(f"{path}: a mask has one channel, this one has mode {mask.mode}")
    return np.asarray(mask).astype(np.int64)


def _binary(path: Path, allowed: Collection[int] | None) -> "NDArray[np.bool_]":
    values = _grey(path)
    present = np.unique(values).tolist()
    unexpected = allowed is not None and not set(present) <= set(allowed)
    if len(present) > 2 or (len(present) == 2 and present[0] != 0) or unexpected:
        object_value = "one other value" if allowed is None else "1 or 255"
        raise InputError(
            f"{path} holds the values {', '.join(map(str, present[:4]))}{' ...' if len(present) > 4 else ''}; a "
            f"black and white mask holds 0 and {object_value}. If these are class ids, say what they mean with names= "
            "(a file of ids and names behind --names on the command line)"
        )
    return np.asarray(values != 0)
