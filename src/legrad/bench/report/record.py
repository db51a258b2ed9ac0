"""Which files of a folder are those of an earlier report: the page's last line names them, and itself."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from legrad.atomic import Fingerprint, WriteError, fingerprint, fits, is_fingerprint, parse_json, write_atomically
from legrad.names import fold
from legrad.results.manifest import numbered

_BEGIN, _END = "\n<!-- legrad bench report ", " -->\n"


class ReportFiles:
    """The files of a report. A name that belongs to somebody else gets a number; nothing of theirs is replaced.

    Args:
        folder: existing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = (path for path in folder.iterdir() if re.fullmatch(r"report(-\d+)?\.md", path.name))
        pages = {path: record for path in names if (record := _read(path)) is not None}
        self._old: Mapping[str, Sequence[Fingerprint]] = next(iter(pages.values()), {})
        self._taken: set[str] = set()
        self.page = next(iter(pages)) if pages else folder / self.name("report", ".md")

    def name(self, stem: str, ending: str) -> str:
        """A file's name below the folder, with path parts, that is free or that of the earlier report."""
        for name in (stem + ending for stem in numbered(stem)):
            path = self._folder / name
            exists = path.exists() or path.is_symlink()
            if fold(name) not in self._taken and (not exists or self._is_old(name)):
                self._taken.add(fold(name))
                return name
        raise AssertionError("there is always another number")

    def _is_old(self, name: str) -> bool:
        return any(fits(self._folder / name, fingerprints) for fingerprints in self._old.get(name, ()))

    def write(self, files: Mapping[str, bytes], page: str) -> None:
        """Write the files and the page, and remove those of the earlier report that are not made any more.

        Raises:
            InputError: one cannot be written.
        """
        # file names may hold bytes that are no UTF-8
        text = page.encode("utf-8", "backslashreplace")
        new = {name: [fingerprint(data)] for name, data in files.items()}
        # before the files: a killed report leaves nothing that the next one does not know
        names = self._old.keys() | new.keys()
        self._write_page(text, {name: [*self._old.get(name, ()), *new.get(name, ())] for name in sorted(names)})
        for name, data in files.items():
            path = self._folder / name
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise WriteError.of(path.parent, error) from error
            write_atomically(path, data)
        for name in self._old.keys() - files.keys():
            if self._is_old(name):
                (self._folder / name).unlink(missing_ok=True)
        self._write_page(text, new)

    def _write_page(self, text: bytes, files: Mapping[str, Sequence[Fingerprint]]) -> None:
        record = {"files": files, "page": fingerprint(text)}
        write_atomically(self.page, text + f"{_BEGIN}{json.dumps(record)}{_END}".encode())


def _read(path: Path) -> "dict[str, list[Fingerprint]] | None":
    """The files that a page names, and what may be in them; None if it is not as we wrote it."""
    try:
        if path.is_symlink():
            return None
        data = path.read_bytes()
        text, begin, rest = data.rpartition(_BEGIN.encode())
        record: Any = parse_json(rest.removesuffix(_END.encode()))
        if not begin or record["page"] != fingerprint(text):
            return None
        return {
            name: list(filter(is_fingerprint, fingerprints))
            for name, fingerprints in record["files"].items()
            if _is_inside(Path(name))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_inside(path: Path) -> bool:
    return not path.is_absolute() and ".." not in path.parts
