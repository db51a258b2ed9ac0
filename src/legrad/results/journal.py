"""The journal of a folder of results: one writer at a time, and nothing left of a run that was killed."""

import contextlib
import json
import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from legrad.atomic import Fingerprint, WriteError, fits, is_fingerprint, lock, parse_json, publish
from legrad.results.manifest import FORMAT, Manifest, files_of, is_file_name, manifest_path

_NAME = ".legrad-journal"


class FolderJournal:
    """The journal of a folder: opened by one run at a time, which first mends what a killed one left."""

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / _NAME
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
        names = {
            line["name"]: line
            for line in rest
            if is_fingerprint(line) and isinstance(line.get("name"), str) and is_file_name(line["name"])
        }
        commit = next((line for line in rest if "commit" in line), None)
        if commit is not None:
            waiting = {name for name, line in names.items() if line.get("staged")}
            try:
                final, removed = Manifest.of(commit["commit"]), dict(commit["remove"])
            except (ValueError, KeyError, TypeError, AttributeError):
                raise WriteError(f"{self._path} is damaged; move it away, or save elsewhere") from None
            complete(self._root, path, final, removed, waiting, staging)
        manifest = Manifest.read(path) or Manifest()
        if commit is None and (finished := self._finished(rest, names, manifest)):
            entries, facts = zip(*finished, strict=True)
            manifest = manifest.extended(entries, facts, {name: _known(line) for name, line in names.items()})
            manifest.write(path, staging)
        for name, known in names.items():
            if not known.get("staged") and name not in manifest.files:
                remove(self._root, name, known)
        _clear_staging(staging, [*names, manifest_name])

    def _finished(
        self, lines: Sequence[dict[str, Any]], names: Mapping[str, Any], manifest: Manifest
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Entries with their facts whose files are all there, and which the manifest does not have yet."""
        finished = []
        for line in lines:
            try:
                entry, facts, files = line["entry"], dict(line["facts"]), files_of(line["entry"])
            except (KeyError, TypeError, ValueError, AttributeError):  # another kind of line
                continue
            if not manifest.files.keys() & set(files) and all(
                name in names and not names[name].get("staged") and fits(self._root / name, names[name])
                for name in files
            ):
                finished.append((entry, facts))
        return finished

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
                drafts = self.staging.rglob("*") if self.staging.is_dir() else []
                _clear_staging(self.staging, [str(path.relative_to(self.staging)) for path in drafts])
                self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk: what is buffered is of no use any more
            self._file.close()
        if remove and os.name == "nt":  # where an open file cannot be removed
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def mended(root: Path) -> Manifest | None:
    """The manifest of a folder of ours, after what a killed run left is finished or undone; None if there is none.

    Raises:
        WriteError: another run writes into the folder.
    """
    if os.path.lexists(root / _NAME):
        FolderJournal(root).close(remove=True)
    return Manifest.read(manifest_path(root))


def complete(
    root: Path, path: Path, final: Manifest, removed: Mapping[str, Fingerprint], staged: set[str], staging: Path
) -> None:
    """Put the new results in the place of the old ones; done again from the start, it goes on where it was.

    At every moment the manifest names only files that are there.
    """
    waiting = [entry for entry in final.entries if staged.intersection(files_of(entry))]
    interim = [entry for entry in final.entries if entry not in waiting]
    Manifest(interim, final.own_files(interim), final.facts, final.failures).write(path, staging)
    for name, known in removed.items():
        if not fits(root / name, final.files.get(name)):  # unless its successor is there already
            remove(root, name, known)
    for name in sorted(staged):
        if (staging / name).is_file() and not fits(root / name, final.files.get(name)):
            try:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                publish(staging / name, root / name)
            except OSError as error:
                raise WriteError.of(root / name, error) from error
    final.write(path, staging)


def _clear_staging(staging: Path, names: Sequence[str]) -> None:
    if staging.is_symlink():
        return
    for name in names:
        with contextlib.suppress(OSError):
            (staging / name).unlink(missing_ok=True)
    folders = {parent for name in names for parent in (Path(name), *Path(name).parents)} | {Path()}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):
            (staging / folder).rmdir()


def _known(line: Mapping[str, Any]) -> Fingerprint:
    return {"bytes": line["bytes"], "sha256": line["sha256"]}


def remove(root: Path, name: str, known: Fingerprint) -> None:
    """Remove a file of a folder if it is still what we wrote, and sub-folders that are empty then."""
    if fits(root / name, known):
        with contextlib.suppress(OSError):
            (root / name).unlink()
            for parent in PurePosixPath(name).parents[:-1]:
                (root / parent).rmdir()  # raises where something is in it
