"""A folder of files and a manifest that names them. It knows names and bytes, not what they show."""

import contextlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from legrad.atomic import write_atomically
from legrad.errors import InputError

_FILE_KEYS = ("figure", "arrays", "overlay", "animation", "layers_figure")  # of the manifest: their values are files


class Folder:
    """Collects the files of many images, one after the other; every file appears whole.

    Args:
        root: made if missing; files of the same names are replaced.
        clear: before the first file is written, remove the files that an earlier manifest in the folder names, and
            nothing else.

    Attributes:
        root: the folder.
        files: all that was written, without the manifest.
        entries: the manifest's entries, one per image.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, root: str | os.PathLike[str], clear: bool = False) -> None:
        self.root = Path(root)
        self.files: list[Path] = []
        self.entries: list[dict[str, Any]] = []
        self._stems: set[str] = set()
        self._clear = clear
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write into {self.root}: {error}") from error

    @property
    def manifest(self) -> Path:
        """The JSON file with settings, scores, shapes and file names of everything added so far."""
        return self.root / "manifest.json"

    def unused(self, stem: str) -> str:
        """The stem of a file name, numbered if it is taken; it is taken afterwards."""
        candidate, number = stem, 2
        while candidate in self._stems:
            candidate, number = f"{stem}-{number}", number + 1
        self._stems.add(candidate)
        return candidate

    def write(self, name: str, data: bytes) -> str:
        """Write one file.

        Args:
            name: without path parts, ending included.
            data: the whole content.

        Returns:
            The name.

        Raises:
            InputError: it cannot be written.
        """
        self._remove_earlier()
        write_atomically(self.root / name, data)
        self.files.append(self.root / name)
        return name

    def add(self, entries: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> None:
        """Add entries to the manifest and write it.

        Args:
            entries: one per image: names of its files and what is in them, its ``targets`` a list of such records.
            facts: of the run; those of the last call stand above all entries.
        """
        self._remove_earlier()
        self.entries.extend(entries)
        # file names may hold bytes that are no UTF-8: Python's escape for those is JSON's too
        text = json.dumps({**facts, "images": self.entries}, indent=2, ensure_ascii=False)
        write_atomically(self.manifest, text.encode("utf-8", "backslashreplace"))

    def _remove_earlier(self) -> None:
        """Once: the files that the manifest of an earlier run names, if they lie in this folder."""
        if not self._clear:
            return
        self._clear = False
        try:
            content = json.loads(self.manifest.read_bytes())
            entries = content["images"]
            records = [*entries, *(record for entry in entries for record in entry["targets"])]
            names = [record[key] for record in records for key in _FILE_KEYS if key in record]
        except (OSError, ValueError, KeyError, TypeError):
            return  # no manifest, or none of ours
        for name in names:
            # names with path parts in them are not ours
            if isinstance(name, str) and name == Path(name).name:
                with contextlib.suppress(OSError, ValueError):
                    (self.root / name).unlink(missing_ok=True)


def slug(text: str, longest: int = 60) -> str:
    """A name that is safe as a part of a file name: lower-case letters, digits and dashes, never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:longest].strip("-") or "x"
