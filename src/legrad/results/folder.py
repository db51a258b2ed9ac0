"""A folder of files and a manifest that names them. It knows names and bytes, not what they show.

A file in the folder is ours if a manifest of ours names it and its content is still what we wrote. Nothing else is ever
replaced or removed: a name that is taken gets a number.

What a run leaves behind if it is killed, at any moment:

- ``manifest.json`` names files that are there, whole;
- ``.legrad-journal`` names everything that the run has begun to write, before it is written. It is locked as long as
  the run lives. The next run finishes what was to be finished, and removes what belongs to nothing.

Results of an earlier run stay until the new ones are complete; a new file in the place of an old one waits in a folder
``.legrad-...`` until then.
"""

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from legrad.atomic import Fingerprint, WriteError, fits, publish
from legrad.atomic import fingerprint as fingerprint_of
from legrad.errors import InputError
from legrad.names import fold
from legrad.results.journal import FolderJournal, complete, remove
from legrad.results.manifest import Manifest, files_of, folder_path, manifest_path, numbered, stem_of


class Folder:
    """Collects the files of many images, one after the other, in ``with`` blocks; a block inside another is part of it.

    A block that ends well replaces earlier results; one that raises leaves them as they were, and if there were none,
    keeps the images that are complete. While it is open, ``manifest.json`` names at least half of the images that are
    complete (if there were no earlier results), so that a long run does not write it anew for every image.

    Args:
        root: made if missing.
        clear: all results of earlier runs are replaced; otherwise only those of images with the same names, and the
            manifest keeps the others.
        resume: results are added to those of an earlier run, and stay even if this one is interrupted.

    Attributes:
        root: the folder.
        files: all that was written, without the manifest.
        entries: the manifest's new entries, one per image.
        table: the file with a table of all entries; "" without one.
        failures: the manifest's list of images without a result; the caller fills it.
        manifest: the JSON file with settings, scores, shapes and file names; ``manifest.json`` where that is free.

    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, root: str | os.PathLike[str], clear: bool = False, resume: bool = False) -> None:
        self.root = folder_path(root)
        self.files: list[Path] = []
        self.entries: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self._facts: list[dict[str, Any]] = []  # of every entry
        self._clear, self._resume, self._saved = clear, resume, 0  # how many of the entries the manifest has
        self._written: dict[str, Fingerprint] = {}
        self._staged: set[str] = set()
        self._names: set[str] = set()
        self._stems: set[str] = set()
        self.manifest = self.root / "manifest.json"
        self._on_disk = Manifest()  # as it was when the folder was opened, or as this run saved it
        self.table = ""
        self._old = Manifest()  # what other runs wrote
        self._kept: dict[int, dict[str, Any]] = {}  # place in the old manifest -> entry
        self._replaced: set[Any] = set()  # images of old entries that are not kept
        self._places: dict[Any, list[int]] = {}  # image -> its places there
        self._removable: dict[str, Fingerprint] = {}  # files of the old entries that are not kept
        self._depth = 0
        self._journal: FolderJournal | None = None
        try:
            self._made = not self.root.exists()
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot write into {self.root}: {error.strerror or error}") from error

    def __enter__(self) -> "Folder":
        self._opened()
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth:
            if error is None:
                self._close()
            else:
                self._abandon()

    def _opened(self) -> "FolderJournal":
        """The journal, which no other run has; at the first call what a killed run left is mended.

        Raises:
            WriteError: another run writes into the folder.
        """
        if self._journal is None:
            journal = FolderJournal(self.root)
            try:
                self.manifest = manifest_path(self.root)
                self._on_disk = before = Manifest.read(self.manifest) or Manifest()
                others = [e for e in before.entries if not self._written.keys() & set(files_of(e))]
                self._old = Manifest(others, before.own_files(others), before.facts, before.failures)
                self._kept = {} if self._clear else dict(enumerate(others))
                self._removable = self._old.own_files(others) if self._clear else {}
                if before.table in before.files and before.table not in self._written:
                    # a table of all entries, which will be other ones
                    self._old = replace(self._old, table=before.table)
                    self._old.files[before.table] = self._removable[before.table] = before.files[before.table]
                self._replaced.clear()
                self._places = {}
                for place, entry in self._kept.items():
                    self._places.setdefault(entry.get("image"), []).append(place)
                    self._stems.add(fold(stem_of(entry)))
                self._staged.clear()
                journal.start(self.manifest.name)
            except BaseException:
                journal.close(remove=True)
                raise
            self._journal = journal
        return self._journal

    def stem(self, image: str, stem: str) -> str:
        """The stem of all file names of an image, numbered if another image has it.

        Args:
            image: as its entry will name it; results of an earlier run for the same name are replaced.
            stem: as it should be.
        """
        self._opened()
        for place in self._places.pop(image, []):
            entry = self._kept.pop(place)
            self._removable |= self._old.own_files([entry])
            self._replaced.add(image)
            self._stems.discard(fold(stem_of(entry)))
        chosen = next(name for name in numbered(stem) if fold(name) not in self._stems)
        self._stems.add(fold(chosen))
        return chosen

    def sub_folder(self, path: str) -> str:
        """Where in the folder the files of a sub-folder go: ``path`` (with "/"), numbered where a file or link is."""
        chosen = ""
        for part in path.split("/") if path else ():
            names = (f"{chosen}{name}" for name in numbered(part))
            chosen = next(name for name in names if self._is_folder(name)) + "/"
        return chosen

    def _is_folder(self, name: str) -> bool:
        place = self.root / name
        return fold(name) not in self._names and (
            not os.path.lexists(place) or (place.is_dir() and not place.is_symlink())
        )

    def name(self, stem: str, ending: str, otherwise: str | None = None) -> str:
        """A file name that is free here, or that of a file to be replaced; it is taken afterwards.

        Args:
            stem: as it should be; a number is added if it is taken.
            ending: with its dot.
            otherwise: another stem, to be numbered if ``stem`` is taken.
        """
        self._opened()
        stems = numbered(stem) if otherwise is None else itertools.chain([stem], numbered(otherwise))
        chosen = next(name + ending for name in stems if self._is_free(name + ending))
        self._names.add(fold(chosen))
        if os.path.lexists(self.root / chosen):
            self._staged.add(chosen)
        return chosen

    def write(self, name: str, data: bytes) -> str:
        """Write one file.

        Args:
            name: as ``name`` gave it.
            data: the whole content.

        Returns:
            The name.

        Raises:
            WriteError: it cannot be written.
        """
        journal = self._opened()
        path, known = self.root / name, fingerprint_of(data)
        draft = journal.staging / name
        try:
            journal.append({"name": name, "staged": name in self._staged, **known})
            self._written[name] = known
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            if name not in self._staged:
                path.parent.mkdir(parents=True, exist_ok=True)
                publish(draft, path)
        except OSError as error:
            raise WriteError.of(path, error) from error
        self.files.append(path)
        return name

    def add(self, entries: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> None:
        """Add entries, whose files are written, to the manifest.

        Args:
            entries: see ``Manifest``.
            facts: of these entries, ready for JSON.
        """
        self.entries.extend(entries)
        self._facts.extend([dict(facts)] * len(entries))
        if not self._lasting():
            return
        try:
            for entry in filter(self._lasts, entries):
                self._opened().append({"entry": entry, "facts": facts})
        except OSError as error:
            raise WriteError.of(self.manifest, error) from error
        # twice as many each time: all writing together is in proportion to the result
        if len(self.entries) >= 2 * self._saved:
            self._save()

    def set_table(self, stem: str, ending: str, data: bytes) -> None:
        """Write the file with a table of all entries, in place of that of an earlier run."""
        self.table = self.write(self.name(stem, ending), data)

    def every_entry(self) -> list[dict[str, Any]]:
        """The entries that the manifest will have: those that are kept of earlier runs, and the new ones."""
        return [*self._kept.values(), *self.entries]

    def _lasting(self) -> bool:
        """Whether results stay that are complete when this run is interrupted."""
        return self._resume or not self._old.entries

    def _lasts(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry takes no place of an old one, which waits for the end of the run."""
        return entry.get("image") not in self._replaced and not self._staged.intersection(files_of(entry))

    def _close(self) -> None:
        """All images are done: what is replaced goes, and the manifest is complete."""
        assert self._journal is not None
        if not self.entries and not (self._resume and self._kept):
            self._abandon()
            return
        try:
            removed = self._removable
            for name in self._staged:
                if not fits(self.root / name, removed.get(name)):
                    raise WriteError(
                        f"{self.root / name} has been changed while its successor was made, and stays; save elsewhere"
                    )
            final = self._current()
            if removed or self._staged:
                self._journal.append({"commit": final.content(), "remove": removed})
                complete(self.root, self.manifest, final, removed, self._staged, self._journal.staging)
                self._saved = len(self.entries)
            else:
                final.write(self.manifest, self._journal.staging)
                self._saved = len(self.entries)
        except OSError as error:
            self._abandon()
            raise WriteError.of(self.manifest, error) from error
        except BaseException:
            self._abandon()
            raise
        self._end()

    def _abandon(self) -> None:
        """Not all images are done: earlier results stay; without any, the images that are complete do."""
        assert self._journal is not None
        if self._old.entries and Manifest.read(self.manifest) != self._on_disk:
            self._journal.close(remove=False)  # in the middle of replacing them: the next run goes on with it
            self._journal = None
            return
        if self._lasting() and len(self.entries) > self._saved:
            lasting = [number for number, entry in enumerate(self.entries) if self._lasts(entry)]
            self.entries = [self.entries[number] for number in lasting]
            self._facts = [self._facts[number] for number in lasting]
            self._remove_unnamed()  # also room for the manifest
            with contextlib.suppress(InputError):
                self._save()
        del self.entries[self._saved :], self._facts[self._saved :]
        self._remove_unnamed()
        self._end()

    def _end(self) -> None:
        assert self._journal is not None
        self._journal.close(remove=True)
        self._journal = None
        if self._made:
            with contextlib.suppress(OSError):  # unless something is in it
                self.root.rmdir()

    def _remove_unnamed(self) -> None:
        named = {name for entry in self.entries for name in files_of(entry)}
        for name in self._written.keys() - named - self._staged:
            remove(self.root, name, self._written[name])
        self._written = {name: known for name, known in self._written.items() if name in named}
        self.files = [path for path in self.files if path.relative_to(self.root).as_posix() in named]
        self.table = ""

    def _is_free(self, name: str) -> bool:
        if fold(name) in self._names:
            return False
        path = self.root / name
        return not os.path.lexists(path) or fits(path, self._removable.get(name))

    def _current(self) -> Manifest:
        """The manifest of what is kept and what is new."""
        kept = list(self._kept.values())
        base = Manifest(kept, self._old.own_files(kept), self._old.facts, self.failures, self.table)
        return base.extended(self.entries, self._facts, self._written)

    def _save(self) -> None:
        """Write the manifest as it is in the middle of a run: old results are all there, new ones if they last."""
        pairs = [pair for pair in zip(self.entries, self._facts, strict=True) if self._lasts(pair[0])]
        self._old.failures = self.failures
        current = self._old.extended([entry for entry, _ in pairs], [facts for _, facts in pairs], self._written)
        current.write(self.manifest, self._opened().staging)
        self._on_disk = Manifest.read(self.manifest) or Manifest()
        self._saved = len(pairs)
