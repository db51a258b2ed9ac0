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
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from legrad.atomic import Fingerprint, WriteError, fits, is_fingerprint, lock, parse_json, publish
from legrad.atomic import fingerprint as fingerprint_of
from legrad.checks import shown
from legrad.errors import InputError
from legrad.names import fold

FORMAT = "legrad results 1"
JOURNAL = ".legrad-journal"
_FILE_KEYS = ("figure", "arrays", "overlay", "animation", "layers_figure")  # of the manifest: their values are files


@dataclass
class Manifest:
    """What a manifest says.

    Attributes:
        entries: one per image: names of its files and what is in them, its ``targets`` a list of such records.
        files: name -> fingerprint.
        facts: of the run, above all entries; what is different for an entry stands in the entry itself.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Fingerprint] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """None if there is none, or none of ours."""
        try:
            content = parse_json(path.read_bytes())
            return cls.of(content) if content["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Manifest":
        """Out of the parsed JSON; anything that is not as we write it raises."""
        entries, files = list(content["images"]), dict(content["files"])
        for entry in entries:
            files_of(entry)
        # a name with path parts in it is not ours
        own = {name: known for name, known in files.items() if name == Path(name).name and is_fingerprint(known)}
        return cls(entries, own, {key: content[key] for key in content if key not in ("format", "images", "files")})

    def content(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"format": FORMAT, **self.facts, "images": self.entries, "files": self.files}

    def write(self, path: Path, staging: Path) -> None:
        """Whole or not at all; ``staging`` is a folder for the draft.

        Raises:
            WriteError: it cannot be written.
        """
        # file names may hold bytes that are no UTF-8: Python's escape for those is JSON's too
        text = json.dumps(self.content(), indent=2, ensure_ascii=False)
        draft = staging / path.name
        try:
            staging.mkdir(exist_ok=True)
            draft.write_bytes(text.encode("utf-8", "backslashreplace"))
            draft.replace(path)
        except OSError as error:
            raise WriteError.of(path, error) from error

    def own_files(self, entries: Sequence[dict[str, Any]]) -> dict[str, Fingerprint]:
        """The files of some entries with their fingerprints."""
        return {name: self.files[name] for entry in entries for name in files_of(entry) if name in self.files}

    def with_own_facts(self, entry: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """One of our entries as it stands below other facts."""
        return {**{key: value for key, value in self.facts.items() if facts.get(key) != value}, **entry}


def files_of(entry: Mapping[str, Any]) -> list[str]:
    """The names of all files of an entry."""
    return [record[key] for record in (entry, *entry["targets"]) for key in _FILE_KEYS if key in record]


class Folder:
    """Collects the files of many images, one after the other, in ``with`` blocks; a block inside another is part of it.

    A block that ends well replaces earlier results; one that raises leaves them as they were, and if there were none,
    keeps the images that are complete. While it is open, ``manifest.json`` names at least half of the images that are
    complete (if there were no earlier results), so that a long run does not write it anew for every image.

    Args:
        root: made if missing.
        clear: all results of earlier runs are replaced; otherwise only those of images with the same names, and the
            manifest keeps the others.

    Attributes:
        root: the folder.
        files: all that was written, without the manifest.
        entries: the manifest's new entries, one per image.
        manifest: the JSON file with settings, scores, shapes and file names; ``manifest.json`` where that is free.

    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, root: str | os.PathLike[str], clear: bool = False) -> None:
        self.root = folder_path(root)
        self.files: list[Path] = []
        self.entries: list[dict[str, Any]] = []
        self._facts: list[dict[str, Any]] = []  # of every entry
        self._clear, self._saved = clear, 0  # how many entries the manifest has
        self._written: dict[str, Fingerprint] = {}
        self._staged: set[str] = set()
        self._names: set[str] = set()
        self._stems: set[str] = set()
        self.manifest = self.root / "manifest.json"
        self._before = Manifest()  # as it was when the folder was opened
        self._old = Manifest()  # what other runs wrote
        self._replaced: list[dict[str, Any]] = []
        self._depth = 0
        self._journal: _Journal | None = None
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

    def _opened(self) -> "_Journal":
        """The journal, which no other run has; at the first call what a killed run left is mended.

        Raises:
            WriteError: another run writes into the folder.
        """
        if self._journal is None:
            journal = _Journal(self.root)
            try:
                self.manifest = _manifest_path(self.root)
                self._before = Manifest.read(self.manifest) or Manifest()
                others = [e for e in self._before.entries if not self._written.keys() & set(files_of(e))]
                self._old = Manifest(others, self._before.own_files(others), self._before.facts)
                self._replaced = list(others) if self._clear else []
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
        self._replaced += [e for e in self._old.entries if e.get("image") == image and e not in self._replaced]
        kept = {fold(_stem_of(entry)) for entry in self._old.entries if entry not in self._replaced}
        chosen = next(name for name in numbered(stem) if fold(name) not in self._stems | kept)
        self._stems.add(fold(chosen))
        return chosen

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
            journal.staging.mkdir(exist_ok=True)
            draft.write_bytes(data)
            if name not in self._staged:
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
        # twice as many each time: all writing together is in proportion to the result
        if not self._old.entries and len(self.entries) >= 2 * self._saved:
            self._save()

    def _close(self) -> None:
        """All images are done: what is replaced goes, and the manifest is complete."""
        assert self._journal is not None
        if not self.entries:
            self._abandon()
            return
        try:
            removed = self._old.own_files(self._replaced)
            for name in self._staged:
                if not fits(self.root / name, removed.get(name)):
                    raise WriteError(
                        f"{self.root / name} has been changed while its successor was made, and stays; save elsewhere"
                    )
            final = self._current()
            if removed or self._staged:
                self._journal.append({"commit": final.content(), "remove": removed})
                _complete(self.root, self.manifest, final, removed, self._staged, self._journal.staging)
                self._saved = len(self.entries)
            elif len(self.entries) > self._saved:
                self._save()
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
        if self._old.entries and Manifest.read(self.manifest) != self._before:
            self._journal.close(remove=False)  # in the middle of replacing them: the next run goes on with it
            self._journal = None
            return
        if not self._old.entries and len(self.entries) > self._saved:
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
            _remove(self.root / name, self._written[name])
        self._written = {name: known for name, known in self._written.items() if name in named}
        self.files = [path for path in self.files if path.name in named]

    def _is_free(self, name: str) -> bool:
        if fold(name) in self._names:
            return False
        path = self.root / name
        return not os.path.lexists(path) or fits(path, self._old.own_files(self._replaced).get(name))

    def _current(self) -> Manifest:
        """The manifest of what is kept and what is new."""
        facts = self._facts[-1] if self._facts else self._old.facts
        kept = [entry for entry in self._old.entries if entry not in self._replaced]
        manifest = Manifest(facts=facts)
        manifest.entries = [self._old.with_own_facts(entry, facts) for entry in kept]
        for entry, own in zip(self.entries, self._facts, strict=True):
            manifest.entries.append(Manifest(facts=own).with_own_facts(entry, facts))
        manifest.files = {**self._old.own_files(kept), **self._written}
        named = {name for entry in manifest.entries for name in files_of(entry)}
        manifest.files = {name: known for name, known in manifest.files.items() if name in named}
        return manifest

    def _save(self) -> None:
        self._current().write(self.manifest, self._opened().staging)
        self._saved = len(self.entries)


def _complete(
    root: Path, path: Path, final: Manifest, removed: Mapping[str, Fingerprint], staged: set[str], staging: Path
) -> None:
    """Put the new results in the place of the old ones; done again from the start, it goes on where it was.

    At every moment the manifest names only files that are there.
    """
    waiting = [entry for entry in final.entries if staged.intersection(files_of(entry))]
    interim = [entry for entry in final.entries if entry not in waiting]
    Manifest(interim, final.own_files(interim), final.facts).write(path, staging)
    for name, known in removed.items():
        if not fits(root / name, final.files.get(name)):  # unless its successor is there already
            _remove(root / name, known)
    for name in sorted(staged):
        if (staging / name).is_file() and not fits(root / name, final.files.get(name)):
            try:
                publish(staging / name, root / name)
            except OSError as error:
                raise WriteError.of(root / name, error) from error
    final.write(path, staging)


class _Journal:
    """The journal of a folder: opened by one run at a time, which first mends what a killed one left."""

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / JOURNAL
        self.staging = root / f".legrad-{secrets.token_hex(6)}"
        self._file = self._open()
        try:
            self._mend()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> BinaryIO:
        while True:
            try:
                if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
                    raise WriteError(f"{self._path} is no file of legrad's; move it away, or save elsewhere")
                file = self._path.open("a+b")
                if not lock(file):
                    writer = self._lines(file)[:1]
                    file.close()
                    who = f" (process {writer[0].get('pid')} on {writer[0].get('host')})" if writer else ""
                    raise WriteError(f"another run{who} writes into {self._root}; wait for it, or save elsewhere")
                # the run that held it may have removed it while we waited for the lock
                if self._path.exists() and os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
                file.close()
            except OSError as error:
                raise WriteError(f"cannot write into {self._root}: {error.strerror or error}") from error

    def _lines(self, file: BinaryIO) -> list[dict[str, Any]]:
        """The whole lines; a killed run may have left half a line at the end."""
        file.seek(0)
        lines = []
        for line in file.read().split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                value = parse_json(line)
                lines += [value] if isinstance(value, dict) else []
        return lines

    def _mend(self) -> None:
        """Finish or undo what a killed run did, out of its journal."""
        lines = self._lines(self._file)
        if not lines:
            if os.fstat(self._file.fileno()).st_size and not self._is_begun():
                raise WriteError(f"{self._path} is no journal of legrad's; move it away, or save elsewhere")
            return
        head, *rest = lines
        staging_name, manifest_name = head.get("staging"), head.get("manifest")
        if head.get("format") != FORMAT or not isinstance(staging_name, str) or not isinstance(manifest_name, str):
            raise WriteError(f"{self._path} is no journal of legrad's; move it away, or save elsewhere")
        if not re.fullmatch(r"\.legrad-[0-9a-f]{12}", staging_name) or Path(manifest_name).name != manifest_name:
            raise WriteError(f"{self._path} is damaged; move it away, or save elsewhere")
        staging, path = self._root / staging_name, self._root / manifest_name
        written = {
            line["name"]: line
            for line in rest
            if is_fingerprint(line) and isinstance(line.get("name"), str) and Path(line["name"]).name == line["name"]
        }
        commit = next((line for line in rest if "commit" in line), None)
        if commit is not None:
            waiting = {name for name, line in written.items() if line.get("staged")}
            try:
                final, removed = Manifest.of(commit["commit"]), dict(commit["remove"])
            except (ValueError, KeyError, TypeError, AttributeError):
                raise WriteError(f"{self._path} is damaged; move it away, or save elsewhere") from None
            _complete(self._root, path, final, removed, waiting, staging)
        manifest = Manifest.read(path) or Manifest()
        for name, known in written.items():
            if not known.get("staged") and name not in manifest.files:
                _remove(self._root / name, known)
        _clear_staging(staging, [*written, manifest_name])

    def _is_begun(self) -> bool:
        """Whether the file is the beginning of our first line."""
        self._file.seek(0)
        return json.dumps({"format": FORMAT}).encode()[:-1].startswith(self._file.read(20)[:20])

    def start(self, manifest_name: str) -> None:
        """Write the first line, and nothing else."""
        try:
            self._file.truncate(0)
            head = {"format": FORMAT, "staging": self.staging.name, "manifest": manifest_name}
            self.append({**head, "pid": os.getpid(), "host": socket.gethostname()})
        except OSError as error:
            raise WriteError(f"cannot write into {self._root}: {error.strerror or error}") from error

    def append(self, line: Mapping[str, Any]) -> None:
        """One line; the system has it when this returns, though not yet the disk."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self, remove: bool) -> None:
        """Let others write; ``remove``: nothing is left to mend."""
        with contextlib.suppress(OSError):
            if remove:
                names = os.listdir(self.staging) if self.staging.is_dir() else []
                _clear_staging(self.staging, names)
                self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk: what is buffered is of no use any more
            self._file.close()
        if remove and os.name == "nt":  # where an open file cannot be removed
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def _clear_staging(staging: Path, names: Sequence[str]) -> None:
    if staging.is_symlink():
        return
    for name in names:
        with contextlib.suppress(OSError):
            (staging / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        staging.rmdir()


def _remove(path: Path, known: Fingerprint) -> None:
    """Remove a file if it is still what we wrote."""
    if fits(path, known):
        with contextlib.suppress(OSError):
            path.unlink()


def _manifest_path(root: Path) -> Path:
    """The manifest of ours in a folder, or where to write one."""
    if (root / "manifest.json").is_dir():
        raise WriteError(f"cannot write {root / 'manifest.json'}: it is a folder")
    try:
        names = [name for name in os.listdir(root) if re.fullmatch(r"manifest(-\d+)?\.json", name)]
    except OSError as error:
        raise WriteError(f"cannot write into {root}: {error.strerror or error}") from error
    for name in sorted(names, key=lambda name: (len(name), name)):
        if not (root / name).is_symlink() and Manifest.read(root / name) is not None:
            return root / name
    return next(root / f"{stem}.json" for stem in numbered("manifest") if not os.path.lexists(root / f"{stem}.json"))


def folder_path(root: Any) -> Path:
    """A path that can be a folder's; ``InputError`` for anything else."""
    try:
        text = os.fsdecode(root)
    except TypeError:
        raise InputError(f"the folder is a path, got {type(root).__name__}") from None
    if not text or "\0" in text:
        raise InputError(f"the folder is a path, got {shown(text)}")
    return Path(text)


def numbered(stem: str) -> Iterator[str]:
    """STEM, STEM-2, STEM-3 and so on without end."""
    return itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))


def _stem_of(entry: Mapping[str, Any]) -> str:
    """The stem that an entry's files have."""
    return Path(str(entry.get("figure", ""))).stem.removesuffix("--figure")
