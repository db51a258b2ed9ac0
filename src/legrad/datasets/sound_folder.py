"""Labelled sounds for the perturbation test: a folder per class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from legrad.datasets.files import PathLike, Problems, files_with_suffix, folder, inside, refuse_empty
from legrad.datasets.sample import Sample
from legrad.inputs import sounds


class SoundFolder:
    """Sounds with one class each; ``label`` is the class folder's name, ``image`` the sound's path.

    Args:
        root: a folder of class folders.

    Attributes:
        classes: the labels, sorted.

    Raises:
        InputError: no folder, or no sounds in class folders.
    """

    name = "sound-folder"

    def __init__(self, root: PathLike) -> None:
        self._root = folder(root, "a folder of class folders")
        problems = Problems()
        self._items: list[tuple[str, str]] = []
        for inner in sorted(path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            paths = files_with_suffix(inner, sounds.SUFFIXES, nested=True)
            self._items += [(path.relative_to(self._root).as_posix(), inner.name) for path in paths]
            if not paths:
                problems.add("a class folder without sounds", inner.name)
        for path in files_with_suffix(self._root, sounds.SUFFIXES):
            problems.add("a sound outside the class folders, left out", path.name)
        refuse_empty(self._items, self._root, "sounds in class folders", problems)
        self.classes = sorted({label for _, label in self._items})
        self.facts: Mapping[str, Any] = {
            "path": str(self._root),
            "items": len(self._items),
            "classes": len(self.classes),
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._items)

    def keys(self) -> list[str]:
        """Paths below the folder."""
        return [name for name, _ in self._items]

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        return [inside(self._root, self._items[index][0])]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``, see ``Dataset``; the sound file is not read here."""
        name, label = self._items[index]
        return Sample(name, str(inside(self._root, name)), label)
