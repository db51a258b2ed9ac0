"""A folder of results: files that appear whole, and a manifest that names them and says what made them."""

import contextlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from legrad.atomic import write_atomically
from legrad.errors import InputError

# keys of the manifest that hold file names
_FILES = ("figure", "arrays", "overlay", "animation", "layers_figure")


class Folder:
    """Collects the files of many images, one after the other; the manifest is up to date after each ``add``.

    Args:
        folder: made if missing; files of the same names are replaced.
        clear: before the first file is written, remove the files that an earlier manifest in the folder names, and
            nothing else.
    """

    def __init__(self, folder: str | os.PathLike[str], clear: bool = False) -> None:
        self.root = Path(folder)
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
        """Model, versions, settings, scores, shapes and files of everything added so far."""
        return self.root / "manifest.json"

    def stem(self, name: str) -> str:
        """A safe file name without suffix that no other image of this folder has."""
        return unused(slug(name), self._stems)

    def write(self, name: str, data: bytes) -> str:
        """Write one file; returns its name.

        Raises:
            InputError: the file cannot be written.
        """
        if self._clear:
            self._remove_earlier()
            self._clear = False
        write_atomically(self.root / name, data)
        self.files.append(self.root / name)
        return name

    def add(self, entries: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        """Write the manifest anew, with further entries.

        Args:
            entries: one per image, with the names of its files; ready for JSON.
            facts: what else the manifest says, in front of the entries.
        """
        self.entries.extend(entries)
        # file names may hold bytes that are no UTF-8: Python's escape for those is JSON's too
        text = json.dumps({**facts, "images": self.entries}, indent=2, ensure_ascii=False)
        write_atomically(self.manifest, text.encode("utf-8", "backslashreplace"))

    def _remove_earlier(self) -> None:
        """Files of the run that wrote the manifest here before; names with path parts in them are not ours."""
        try:
            content = json.loads(self.manifest.read_bytes())
            entries = content["images"]
            records = [*entries, *(record for entry in entries for record in entry["targets"])]
            names = [record[key] for record in records for key in _FILES if key in record]
        except (OSError, ValueError, KeyError, TypeError):
            return  # no manifest, or none of ours
        for name in names:
            if isinstance(name, str) and name == Path(name).name:
                with contextlib.suppress(OSError, ValueError):
                    (self.root / name).unlink(missing_ok=True)


def slug(text: str, longest: int = 60) -> str:
    """A name that is safe as a part of a file name: lower-case letters, digits and dashes, never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:longest].strip("-") or "x"


def unused(name: str, used: set[str]) -> str:
    """The name, numbered if taken; it is taken afterwards."""
    candidate, number = name, 2
    while candidate in used:
        candidate, number = f"{name}-{number}", number + 1
    used.add(candidate)
    return candidate
